"""Transfer learning on photographs: the recipes `probe` and `finetune` compared with trivial baselines and scikit-learn.

Run: python benchmarks/transfer.py [--seeds 3] [--only heads few_shot tail runs combined timm] [--runs probe finetune …]
[--timm FOLDER] [--output FOLDER]. The photographs are
`monuments` in LANDMARK_TEST_DATA (2,939 of 24 monuments). All methods start at the same ImageNet weights of
EfficientNet-Lite0, with images of 256 pixels, and use the same splits. Everything was selected on the validation split.
The test split (442 images) is only used for the tables.
- heads: classifiers on the same features of center crops. The peers are 1-NN by cosine, and scikit-learn's
StandardScaler and LogisticRegression, whose C is the one with the lowest validation loss.
- few_shot: the same with 1, 2, 5 and 10 training images per class, means over the seeds of the choice.
- tail: the same with a long tail of training images (subset.tail 1), and loss weights by class.
- runs: complete runs of `probe` and `finetune`, and of `finetune` without the probe, from reading to the best
checkpoint, as `landmark train` does. ece is the expected calibration error on the test split.
- combined: what `landmark soup` and `--tta flip` add to the runs of `finetune`, on validation and test split. Requires two or more
seeds.
- timm: timm's own training script (train.py and validate.py of its repository, which its package does not contain, in the
folder --timm) with the same weights, JPEGs, batch size and epochs, one seed. TIMM_FLAGS has its flags. Its best epoch on the
validation split is tested.
Dataset, features and runs are stored in --output, and completed runs are reused. The last line is JSON, saved to
benchmarks/results/transfer.json. Figures of parts that were not run are kept.
"""

import argparse
import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import numpy as np
import pyarrow.parquet as pq
import safetensors.torch
import torch
from monuments import pack_monuments
from seeds import format_mean, mean_and_deviation
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from landmark.config import LossConfig, ModelConfig, ProbeConfig, Recipe, SubsetConfig, TrainConfig
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import open_dataset
from landmark.inference.evaluation import Settings, evaluate_checkpoint
from landmark.models import build_model
from landmark.recipes import load_recipe
from landmark.search.soup import METRIC, candidates_of, greedy_soup, write_soup
from landmark.storage import locate
from landmark.training.loop.loaders import training_loader
from landmark.training.loop.state import RunState
from landmark.training.measuring import MeasuringSession
from landmark.training.probe.features import FeatureStore
from landmark.training.probe.heads import Examples, fit_head
from landmark.training.run import run_training

SHORT_SIDE = 256
PARTS = ("heads", "few_shot", "tail", "runs", "combined", "timm")
TIMM_FLAGS = (
    "--num-classes 24 --img-size 256 --batch-size 32 --device cpu --workers 2 --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --crop-pct 1.0 "
    "--opt adamw --weight-decay 0.05 --smoothing 0.1 --sched cosine --warmup-epochs 0 --epochs 5 --log-interval 1000"
)
TIMM_RATES = (1e-4, 5e-4)
"""Learning rates of timm's script. The one with the best validation top-1 counts."""
RUNS = ("probe", "finetune", "finetune_without_probe")
SHOTS = (1, 2, 5, 10)
GRID = tuple(10.0**power for power in range(-4, 3))
RESULTS = Path(__file__).with_name("results") / "transfer.json"
Fit = Callable[["Splits"], float]
"""Fits a classifier, and returns its top-1 accuracy on the test split."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class Splits:
    """Features of a dataset's center crops."""

    train: Examples
    val: Examples
    test: Examples
    classes: int
    counts: np.ndarray
    """Training images per class, int64 (classes,)."""


def features_of(dataset: PackedDataset, folder: Path) -> Splits:
    """Return the features that the recipe `probe` uses, computed at most once per image."""
    recipe = load_recipe("probe")
    session: Any = MeasuringSession()
    run = RunState(recipe, dataset, session)
    loader = training_loader(recipe, dataset, 1)
    store = FeatureStore(
        run.model, recipe, run.info, run.step.precision, dataset, session, locate(str(folder)), loader, None
    )

    def split(name: str) -> Examples:
        found, labels = store.read(name), dataset.sample_labels(name)
        return Examples(features=torch.from_numpy(found.values.copy()), labels=torch.from_numpy(labels[found.samples]))

    return Splits(
        train=split("train"),
        val=split("val"),
        test=split("test"),
        classes=dataset.num_classes,
        counts=dataset.label_counts("train"),
    )


def accuracy(predicted: Any, labels: torch.Tensor) -> float:
    """Return the fraction of predictions that are equal to the labels."""
    return float((torch.as_tensor(np.asarray(predicted)) == labels).double().mean())


def majority(splits: Splits) -> float:
    """Return the accuracy of the most frequent training class."""
    return float((splits.test.labels == int(splits.counts.argmax())).double().mean())


def nearest(splits: Splits) -> float:
    """Return the accuracy of the nearest training image by cosine."""
    train, test = (torch.nn.functional.normalize(each.features) for each in (splits.train, splits.test))
    return accuracy(splits.train.labels[(test @ train.T).argmax(1)], splits.test.labels)


def scikit_learn(splits: Splits) -> float:
    """Return the accuracy of scikit-learn's logistic regression, C by validation loss."""
    scaler = StandardScaler().fit(splits.train.features.numpy())
    train, val, test = (scaler.transform(each.features.numpy()) for each in (splits.train, splits.val, splits.test))
    models = [LogisticRegression(C=c, max_iter=2000).fit(train, splits.train.labels.numpy()) for c in GRID]
    labels = splits.val.labels.numpy()
    losses = [log_loss(labels, model.predict_proba(val), labels=range(splits.classes)) for model in models]
    return accuracy(models[int(np.argmin(losses))].predict(test), splits.test.labels)


def ours(head: str, **loss: Any) -> Fit:
    """Return the fit of a head of the probe."""

    def fit(splits: Splits) -> float:
        recipe = dataclasses.replace(
            load_recipe("probe"),
            probe=ProbeConfig(head=head),  # type: ignore[arg-type]
            loss=LossConfig(**loss),
        )
        found, _ = fit_head(splits.train, splits.val, splits.counts, recipe, lambda: None)
        return accuracy(found.logits(splits.test.features).argmax(1), splits.test.labels)

    return fit


def table(name: str, columns: dict[str, list[Splits]], methods: dict[str, Fit]) -> dict[str, Any]:
    """Print the test top-1 of methods on datasets, each over some seeds, and return it with the seconds of one fit."""
    print(f"\n{name}, test top-1\n{'method':34}" + "".join(f"{column:>18}" for column in columns) + f"{'s/fit':>9}")
    figures: dict[str, Any] = {}
    for label, fit in methods.items():
        cells, start = {}, time.perf_counter()
        for column, seeds in columns.items():
            cells[column] = mean_and_deviation([fit(splits) for splits in seeds])
        seconds = (time.perf_counter() - start) / sum(map(len, columns.values()))
        print(f"{label:34}" + "".join(f"{format_mean(*cell):>18}" for cell in cells.values()) + f"{seconds:>9.2f}")
        figures[label] = {column: round(mean, 4) for column, (mean, _) in cells.items()}
        figures[label]["seconds"] = round(seconds, 2)
    return figures


HEADS: dict[str, Fit] = {
    "majority": majority,
    "1-NN": nearest,
    "scikit-learn": scikit_learn,
    "probe.head logistic": ours("logistic"),
    "probe.head ridge": ours("ridge"),
    "probe.head prototypes": ours("prototypes"),
    "probe.head auto": ours("auto"),
}
WEIGHTS = ("none", "sqrt", "balanced")
TAIL: dict[str, Fit] = {
    **{name: HEADS[name] for name in ("majority", "1-NN", "scikit-learn")},
    **{f"logistic, class_weights {name}": ours("logistic", class_weights=name) for name in WEIGHTS},
    **{f"logistic, logit_adjustment {factor:g}": ours("logistic", logit_adjustment=factor) for factor in (0.5, 1.0)},
    **{f"ridge, class_weights {name}": ours("ridge", class_weights=name) for name in WEIGHTS},
}


def train(name: str, recipe: Recipe, seed: int, dataset: PackedDataset, output: Path) -> dict[str, float]:
    """Train one run, unless it is complete, and evaluate its best checkpoint on the test split."""
    shared = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    config = TrainConfig(
        dataset=dataset.location.uri,
        output=str(output),
        name=f"{name}-{seed}",
        tensorboard=False,
        **{**shared, "seed": seed},
    )
    if config.probe.head != "none":  # each run computes its own features, so that its seconds contain them
        probe = dataclasses.replace(config.probe, features=str(output / config.name / "features"))
        config = dataclasses.replace(config, probe=probe)
    record = output / config.name / "run.json"
    if not record.exists():
        run_training(config)
    run = json.loads(record.read_text())
    found = evaluate_checkpoint(locate(run["run"]) / run["best_checkpoint"], dataset, "test", Settings(quiet=True))
    values = {"top1": found.accumulator.top_k(1), "ece": found.summary["ece"], "val_top1": run["best"]["val_top1"]}
    return {**values, "seconds": run["seconds"]}


def runs(dataset: PackedDataset, output: Path, seeds: int, names: list[str]) -> dict[str, Any]:
    """Train and evaluate the named RUNS with each seed, print the table and return the figures."""
    finetune = load_recipe("finetune")
    recipes = {
        "probe": load_recipe("probe"),
        "finetune": finetune,
        "finetune_without_probe": dataclasses.replace(
            finetune, probe=ProbeConfig(), ema=dataclasses.replace(finetune.ema, start_weight=0.0)
        ),
    }
    rows = {name: [train(name, recipes[name], seed, dataset, output) for seed in range(seeds)] for name in names}
    print(f"\n{'run':24}{'val top-1':>18}{'test top-1':>18}{'ece':>18}{'s/run':>9}")
    figures: dict[str, Any] = {}
    for name, found in rows.items():
        cells = {key: mean_and_deviation([row[key] for row in found]) for key in ("val_top1", "top1", "ece")}
        seconds = statistics.mean(row["seconds"] for row in found)
        print(f"{name:24}" + "".join(f"{format_mean(*cell):>18}" for cell in cells.values()) + f"{seconds:>9.0f}")
        figures |= {f"{name}_{key}": round(mean, 4) for key, (mean, _) in cells.items()}
        figures |= {f"{name}_s": round(seconds, 1), f"{name}_seeds": len(found)}
    return figures


def combined(dataset: PackedDataset, output: Path, seeds: int) -> dict[str, Any]:
    """Combine the runs of `finetune`, print the table and return the figures."""
    start = time.perf_counter()
    places = [str(output / f"finetune-{seed}") for seed in range(seeds)]
    candidates, _ = candidates_of(places, limit=seeds)
    found = greedy_soup(candidates, dataset, batch_size=128)
    seconds = time.perf_counter() - start
    folder = locate(str(output / "soup"))
    write_soup(found, folder)
    print(f"\n{'combination':24}{'val top-1':>18}{'calibrated loss':>18}{'test top-1':>18}{'ece':>18}")
    figures: dict[str, Any] = {"combined_s": round(seconds, 1), "soup_members": len(found.members)}
    models = [
        ("best of the runs", "best_run", found.rows[0].metrics, found.best.checkpoint, False),
        ("best of the runs, flips", "flip", found.row("flip").metrics, found.best.checkpoint, True),
        (f"soup of {len(found.members)}", "soup", found.metrics, folder, False),
        ("soup, flips", "soup_flip", {}, folder, True),
    ]
    for label, key, metrics, place, flips in models:
        tested = evaluate_checkpoint(place, dataset, "test", Settings(quiet=True, flips=flips))
        if not metrics:
            val = evaluate_checkpoint(place, dataset, "val", Settings(quiet=True, flips=flips))
            metrics = {"val_top1": val.accumulator.top_k(1), METRIC: float("nan")}
        top1, ece = tested.accumulator.top_k(1), tested.summary["ece"]
        print(f"{label:24}{metrics['val_top1']:>18.1%}{metrics[METRIC]:>18.4f}{top1:>18.1%}{ece:>18.1%}")
        figures |= {f"{key}_val_top1": round(metrics["val_top1"], 4), f"{key}_top1": round(top1, 4)}
    ensemble = found.row("ensemble").metrics
    print(f"{'ensemble':24}{ensemble['val_top1']:>18.1%}{ensemble[METRIC]:>18.4f}")
    return figures | {"ensemble_val_top1": round(ensemble["val_top1"], 4)}


def write_folders(dataset: PackedDataset, folder: Path) -> None:
    """Write the JPEGs of all splits as FOLDER/split/class/image.jpg, unless already done."""
    if (folder / "done").exists():
        return
    for split, entry in dataset.manifest.splits.items():
        for shard in entry.shards:
            rows = pq.read_table(dataset.location.local_path() / shard.path, columns=["image_id", "label", "image"])
            for row in rows.to_pylist():
                file = folder / split / f"{row['label']:02d}" / f"{row['image_id']}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(row["image"])
    (folder / "done").touch()


def timm_script(dataset: PackedDataset, output: Path, scripts: Path) -> dict[str, Any]:
    """Train and test with timm's own script, print the row and return the figures."""
    folder, weights = output / "folders", output / "lite0.safetensors"
    write_folders(dataset, folder)
    config = ModelConfig(backbone="timm/tf_efficientnet_lite0", weights="lite0")
    model = build_model(config, classes=dataset.num_classes, image_size=256)
    safetensors.torch.save_file(model.state_dict(), weights)
    common = ["--data-dir", str(folder), "--model", "tf_efficientnet_lite0"]
    found = []
    for rate in TIMM_RATES:
        name = f"timm-{rate:g}"
        start = time.perf_counter()
        command = [*common, "--train-split", "train", "--val-split", "val", "--initial-checkpoint", str(weights)]
        command += [*TIMM_FLAGS.split(), "--lr", str(rate), "--output", str(output), "--experiment", name]
        if not (output / name / "summary.csv").exists():
            subprocess.run([sys.executable, str(scripts / "train.py"), *command], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        with (output / name / "summary.csv").open() as file:
            best = max(float(row["eval_top1"]) for row in csv.DictReader(file))
        found.append((best, name, seconds))
    best, name, seconds = max(found)
    results = output / name / "test.json"
    command = [
        *common,
        "--split",
        "test",
        "--checkpoint",
        str(output / name / "model_best.pth.tar"),
        "--num-classes",
        "24",
    ]
    command += ["--img-size", "256", "--crop-pct", "1.0", "--mean", *["0.5"] * 3, "--std", *["0.5"] * 3]
    command += ["--device", "cpu", "--results-file", str(results), "--results-format", "json"]
    subprocess.run([sys.executable, str(scripts / "validate.py"), *command], check=True, stdout=subprocess.DEVNULL)
    values = json.loads(results.read_text())
    top1 = float((values[0] if isinstance(values, list) else values)["top1"]) / 100
    print(f"{name:24}{best / 100:>18.1%}{top1:>18.1%}{'':18}{seconds:>9.0f}")
    return {
        "timm_val_top1": round(best / 100, 4),
        "timm_top1": round(top1, 4),
        "timm_s": round(seconds, 1),
        "timm_run": name,
    }


def main() -> None:
    """Print the tables and the figures, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--timm", type=Path, help="folder with train.py and validate.py of timm's repository")
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"), help="folder for dataset and runs")
    arguments = parser.parse_args()
    uri = pack_monuments(arguments.output / "dataset", SHORT_SIDE)
    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}

    def splits(seed: int = 0, **subset: Any) -> Splits:
        return features_of(open_dataset(uri, SubsetConfig(**subset), seed), arguments.output / "features")

    seeds = range(arguments.seeds)
    if "heads" in arguments.only:
        figures["heads"] = table("all training images", {"all": [splits()]}, HEADS)
    if "few_shot" in arguments.only:
        columns = {f"{shots} per class": [splits(seed, shots=shots) for seed in seeds] for shots in SHOTS}
        figures["few_shot"] = table("few-shot", columns, HEADS)
    if "tail" in arguments.only:
        figures["tail"] = table("long tail", {"tail 1": [splits(seed, tail=1.0) for seed in seeds]}, TAIL)
    if "runs" in arguments.only:
        figures |= runs(PackedDataset.open(uri), arguments.output, arguments.seeds, arguments.runs)
    if "combined" in arguments.only and arguments.seeds > 1:
        figures |= combined(PackedDataset.open(uri), arguments.output, arguments.seeds)
    if "timm" in arguments.only and arguments.timm is not None:
        figures |= timm_script(PackedDataset.open(uri), arguments.output, arguments.timm)
    line = json.dumps(figures)
    RESULTS.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
