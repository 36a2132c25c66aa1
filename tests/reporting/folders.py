"""Complete synthetic folders for the report: a study or run, its evaluation, a comparison, a cleaned dataset.

`python -m tests.reporting.folders FOLDER` writes a study of 20 trials and 100 classes with synthetic photographs.
"""

import io
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from landmark.config import SyntheticConfig
from landmark.data.synthetic import render_image
from tests.reporting.studies import write_study

SIDE = 112
PLACES = (
    *("Abbey", "Arch", "Basilica", "Bridge", "Castle", "Cathedral", "Chapel", "Citadel"),
    *("Column", "Gate", "Hall", "Minaret", "Mosque", "Palace", "Tower"),
)
TOWNS = (
    *("Alder", "Birk", "Calder", "Dunmore", "Elmswell", "Fenwick", "Garth", "Holm"),
    *("Ilkley", "Kelso", "Lund", "Marden", "Norby", "Osmond", "Penrith"),
)


@cache
def names_of(classes: int, hostile: bool = True) -> list[str]:
    """Return class names. hostile: one of them contains markup."""
    names = [f"{PLACES[n % 15]} of {TOWNS[(n // 15) % 15]}{f' {n // 225}' if n >= 225 else ''}" for n in range(classes)]
    if hostile:
        names[min(3, classes - 1)] = 'Église <b>St. Mary</b> & "sons" $x$'
    return names


@cache
def synthetic_photograph(label: int, view: int) -> bytes:
    """Return a synthetic photograph of a class: JPEG, 112 pixels."""
    row = {"view_seed": 1000 * label + view, "kind": "landmark", "duplicate_of": None, "image_id": "0" * 16}
    row["true_landmark_id"] = f"synthetic-{label:06d}"
    image = Image.open(io.BytesIO(render_image(row, SyntheticConfig(image_size=SIDE), 0)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


def grid_study(folder: Path, trials: int = 20, epochs: tuple[int, ...] = (10, 30), **summary) -> Path:
    """Write a study: backbones x optimizers x epochs, with learning curves, early stops and one failed trial."""
    rng = np.random.default_rng(1)
    backbones = {"resnet50": 0.52, "resnet101": 0.58, "inception_v3": 0.49, "efficientnet_b0": 0.62}
    configs = [(b, o, e) for e in epochs for o in ("sgd", "rmsprop", "adam") for b in backbones][:trials]
    rows, history = [], {}
    for number, (backbone, optimizer, length) in enumerate(configs):
        name = f"{number:03d}-{backbone}-{optimizer}-{length}"
        learning_rate = 10 ** rng.uniform(-4, -1)
        top = backbones[backbone] + {"sgd": -0.12, "rmsprop": 0.02, "adam": 0.04}[optimizer] + rng.normal(0, 0.02)
        stopped, failed = optimizer == "sgd" and length > 10, number == trials - 1
        epochs_run = 0 if failed else length // 2 if stopped else length
        curve = top * (1 - np.exp(-np.arange(1, epochs_run + 1) / 7)) + rng.normal(0, 0.006, epochs_run)
        history[name] = curve.round(4).tolist()
        best = float(curve.max()) if epochs_run else None
        test_metrics = (
            {}
            if failed
            else {f"test_top{k}": min(1.0, best + offset - 0.01) for k, offset in ((1, 0), (5, 0.2), (10, 0.27))}
        )
        rows.append(
            {
                "trial": name,
                "status": "failed" if failed else "stopped early" if stopped else "finished",
                "model.backbone": backbone,
                "optimizer.name": optimizer,
                "optimizer.lr": learning_rate,
                "epochs": length,
                "val_top1": best,
                **test_metrics,
                "images_per_s": 700 - 40 * (number % 5),
                "parameters": 23_712_932 + 1_000_000 * (number % 4),
                "seconds": 90.0 * epochs_run,
                "error": "the loss is nan after step 12" if failed else None,
            }
        )
    rows.sort(key=lambda row: (row["status"] == "failed", -(row["val_top1"] or 0)))
    values = {
        "name": "landmarks",
        "dataset": "d",
        "parameters": ["model.backbone", "optimizer.name", "optimizer.lr", "epochs"],
        "scheduler": "asha",
        "epochs_grid": sum(config[2] for config in configs),
        "failed": 1,
        "seconds": 15_432.5,
        "best": {"trial": rows[0]["trial"], "test": {"1": rows[0]["test_top1"]}},
        "baselines": {
            "majority": {"1": 0.0473, "5": 0.151, "10": 0.2373},
            "random": {"1": 0.01, "5": 0.05, "10": 0.1},
        },
        "environment": {
            "command": "landmark tune s3://photos/landmarks --space modern --name landmarks",
            "started": "2026-11-26T08:12:03+00:00",
            "python": "3.11.2",
            "platform": "Linux-6.1-x86_64",
            "packages": {"landmark": "0.1.0", "ray": "2.60.0", "torch": "2.14.1", "pyarrow": "26.0.1"},
            "machine": {"cpu": "An example CPU @ 2.8 GHz", "cpus": 48, "memory_gib": 187.4, "gpus": ["An example GPU"]},
            "cluster": {"nodes": 4, "cpus": 192.0, "gpus": 16.0, "memory_gib": 700.0, "accelerators": ["A100"]},
        },
    }
    study = write_study(folder, rows, history, **{**values, **summary})
    table = pd.read_csv(study / "history.csv")
    table["val_top5"] = (table["val_top1"] + 0.2).clip(upper=1)
    table["train_loss"] = 4.2 * np.exp(-table["epoch"] / 12)
    table["val_loss"] = 4.3 * np.exp(-table["epoch"] / 16) + 0.4
    table.to_csv(study / "history.csv", index=False)
    (study / "config.yaml").write_text(
        "dataset: s3://photos/landmarks\nspace: modern\nmlflow: http://me:secret@host/\n"
    )
    (study / "space.yaml").write_text("metric: val_top1\nparameters:\n  epochs: {grid: [10, 30]}\n")
    return study


def write_run(folder: Path) -> Path:
    """Write a single run's folder."""
    folder.mkdir(parents=True)
    best = {"epoch": 2, "val_top1": 0.5, "val_top5": 0.8}
    values = {"name": "r", "dataset": "d", "best": best, "epochs_run": 3, "best_checkpoint": "c", "seconds": 75.0}
    (folder / "run.json").write_text(json.dumps(values))
    (folder / "history.csv").write_text("epoch,train_loss,val_loss,val_top1\n1,2,2,0.3\n2,1,1,0.5\n3,0.8,1.1,0.49\n")
    return folder


def write_evaluation(
    folder: Path, classes: int, rows: int, *, photographs: bool = True, old: bool = False, hostile: bool = True
) -> Path:
    """Write an evaluation in the format of `landmark evaluate`. old: the format of the first version."""
    rng = np.random.default_rng(classes)
    folder.mkdir(parents=True, exist_ok=True)
    names = names_of(classes, hostile)
    train = np.maximum(2, 4000 * np.arange(1, classes + 1) ** -0.8).astype(int)
    true = rng.choice(classes, rows, p=train / train.sum())
    # Classes of the same kind of building are confused with each other.
    other = (true + 15 * rng.integers(1, 5, rows)) % classes
    correct = rng.random(rows) < 0.45 + 0.5 * rng.random(classes)[true]
    predicted = np.where(correct, true, np.where(rng.random(rows) < 0.8, other, rng.integers(0, classes, rows)))
    cells, counts = np.unique(true * classes + predicted, return_counts=True)
    confusion = pd.DataFrame({"true": cells // classes, "predicted": cells % classes, "count": counts})
    confusion.to_csv(folder / "confusion.csv", index=False)
    images, correct_counts = (
        np.bincount(true, minlength=classes),
        np.bincount(true[true == predicted], minlength=classes),
    )
    predicted_counts = np.bincount(predicted, minlength=classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        table = pd.DataFrame(
            {
                "label": np.arange(classes),
                "name": names,
                "train_images": train,
                "images": images,
                "recall": correct_counts / images,
                "precision": correct_counts / predicted_counts,
            }
        )
    top1, recall = float((true == predicted).mean()), float(table["recall"].mean())
    metrics = {
        "split": folder.name.removeprefix("evaluation-"),
        "rows": rows,
        "classes": classes,
        "loss": 1.234,
        "classes_present": int((images > 0).sum()),
    }
    for k, offset in ((1, 0.0), (5, 0.15), (10, 0.2)):
        metrics |= {f"top{k}": min(1.0, top1 + offset), f"random_top{k}": k / classes, f"majority_top{k}": 0.05 * k}
    metrics["macro_recall"] = recall
    if not old:
        _write_details(folder, metrics, table)
        table["band"] = np.select(
            [table["label"] < classes // 10, table["label"] < classes // 2], ["head", "middle"], "tail"
        )
        table.to_parquet(folder / "per_class.parquet", index=False)
        if photographs:
            _examples(confusion, classes).to_parquet(folder / "examples.parquet", index=False)
    table.to_csv(folder / "per_class.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def _write_details(folder: Path, metrics: dict, table: pd.DataFrame) -> None:
    top1 = metrics["top1"]
    other = {"top5": 0.9, "top10": 0.95, "least_train_images": 10, "most_train_images": 400}
    metrics["bands"] = [
        {"band": band, "classes": n, "rows": 300, "top1": top1, "macro_recall": top1 - 0.03, **other}
        for band, n, top1 in (("head", 4, 0.83), ("middle", 20, 0.7), ("tail", 76, 0.52))
    ]
    metrics["intervals"] = {
        key: [metrics[key] - 0.011, metrics[key] + 0.012] for key in ("top1", "top5", "macro_recall")
    }
    metrics |= {"gap": 0.61, "random_gap": 0.0001, "majority_gap": 0.003, "ece": 0.083, "macro_precision": 0.66}
    metrics |= {"rejection_auroc": 0.91, "rows_without_landmark": 150, "bootstrap": {"samples": 1000, "seed": 0}}
    knn = [{"band": band, "top1": top1, "macro_recall": top1} for band, top1 in (("tail", 0.5), ("head", 0.8))]
    metrics["knn"] = {"top1": 0.62, "gap": 0.55, "rejection_auroc": 0.93, "bands": knn}
    metrics["inference"] = {"seconds": 3.2, "images_per_s": 612.0, "replicas": 1, "device": "cuda"}
    low = np.arange(15) / 15
    confidence = low + 1 / 30
    bins = {"low": low, "high": low + 1 / 15, "rows": (20 + 400 * low**3).astype(int), "confidence": confidence}
    pd.DataFrame({**bins, "accuracy": np.clip(confidence - 0.12 * np.sin(3 * confidence), 0, 1)}).to_csv(
        folder / "calibration.csv", index=False
    )
    difference = {"a": top1, "b": top1 - 0.03, "difference": 0.03, "low": 0.012, "high": 0.047}
    comparison = {"a": "runs/a", "b": "runs/b", "rows": 1000, "both_correct": 600, "only_a": 90, "only_b": 60}
    comparison |= {"both_incorrect": 250, "mcnemar_p": 0.0174, "difference": {"top1": difference, "gap": difference}}
    (folder / "comparison.json").write_text(json.dumps(comparison))
    shown = table[["label", "name", "images"]].head(5).assign(only_a=[5, 3, 2, 1, 0], only_b=[0, 0, 1, 4, 2])
    shown.to_csv(folder / "comparison_classes.csv", index=False)


def _examples(confusion: pd.DataFrame, classes: int) -> pd.DataFrame:
    wrong = confusion[confusion["true"] != confusion["predicted"]].sort_values("count", ascending=False, kind="stable")
    rows = []
    for number, pair in enumerate(wrong.head(48).to_dict("records")):
        true, predicted = pair["true"], pair["predicted"]
        base = {"label": true, "predicted": predicted, "score": 0.99 - 0.008 * number}
        rows.append(
            {"kind": "mistake", "image_id": f"{number:016x}", **base, "thumbnail": synthetic_photograph(true, number)}
        )
        if number < 24:
            for view in (1, 2):
                picture = {"image_id": f"{number:08x}{view:08x}", "thumbnail": synthetic_photograph(true, 100 + view)}
                rows.append({"kind": "pair", **base, **picture})
            for label in (true, predicted):
                one = {"label": label, "predicted": label, "score": 0.9, "image_id": f"c{label:015x}"}
                rows.append({"kind": "class", **one, "thumbnail": synthetic_photograph(label, 0)})
    table = pd.DataFrame(rows)
    return table[~(table["kind"].eq("class") & table.duplicated(["kind", "image_id"]))]


def write_cleaned(folder: Path, classes: int = 30, hostile: bool = True) -> Path:
    """Write the audit of a cleaned dataset: all reasons, with counterparts."""
    folder.mkdir(parents=True, exist_ok=True)
    reasons = (
        "unreadable",
        "degenerate",
        "exact_duplicate",
        "near_duplicate",
        "label_noise",
        "distractor",
        "small_class",
    )
    by_reason = {
        reason: {"dropped": 40 - number, "relabelled": 12 * (reason == "label_noise")}
        for number, reason in enumerate(reasons)
    }
    values = {"dataset": "base", "output": str(folder), "rows_before": {"train": 2800, "val": 600, "test": 600}}
    values |= {
        "rows_after": {"train": 2570, "val": 590, "test": 595},
        "by_reason": by_reason,
        "embeddings": "lite0 weights",
    }
    (folder / "clean.json").write_text(
        json.dumps({**values, "thresholds": {"near": 0.93, "noise": 0.4}, "seconds": {}})
    )
    audit, examples = [], []
    for number, reason in enumerate(reasons):
        for row in range(20):
            label, paired = (number * 5 + row) % classes, "duplicate" in reason
            relabeled = reason == "label_noise" and row % 2 == 0
            one = {
                "reason": reason,
                "action": "relabel" if relabeled else "drop",
                "image_id": f"{number:04x}{row:012x}",
            }
            one |= {"label": label, "score": 1 - row / 40, "other_image_id": "f" * 16 if paired else None}
            one |= {"other_label": float((label + 1) % classes) if paired else None}
            rest = {"split": "train", "sample": row, "threshold": 0.4, "other_split": "test" if paired else None}
            audit.append({**rest, **one, "new_label": float((label + 2) % classes) if relabeled else None})
            if row < 12 and reason != "unreadable":
                examples.append(
                    {
                        **one,
                        "thumbnail": synthetic_photograph(label, row),
                        "other_thumbnail": synthetic_photograph(label, row) if paired else None,
                    }
                )
    pd.DataFrame(audit).to_parquet(folder / "audit.parquet", index=False)
    pd.DataFrame(examples).to_parquet(folder / "examples.parquet", index=False)
    pd.DataFrame({"name": names_of(classes, hostile)}).to_parquet(folder / "labels.parquet", index=False)
    return folder


def complete_study(folder: Path, trials: int = 20, classes: int = 100, hostile: bool = True) -> Path:
    """Write a study with an evaluation and a cleaned dataset: all content that the page supports."""
    cleaned = write_cleaned(folder / "cleaned", min(30, classes), hostile)
    study = grid_study(folder / "study", trials, dataset=str(cleaned))
    write_evaluation(study / "evaluation-test", classes, 50 * classes, hostile=hostile)
    return study


if __name__ == "__main__":
    print(f"landmark report {complete_study(Path(sys.argv[1]), hostile=False)} --price-per-hour 12.5")
