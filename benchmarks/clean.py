"""Cleaning benchmark on photographs with injected faults: precision and recall per detector, effect on training.

Run: python benchmarks/clean.py [--seeds 3] [--part detectors|worth] [--quick] [--output FOLDER]. The data is
`monuments` and `distractors` in LANDMARK_TEST_DATA. Faults are injected by seed: 4% exact duplicates; 2% each
re-encoded, resized, cropped and watermarked; 8% label errors; 150 distractors (non-landmark photographs); 1% truncated
files; 12 blank images (benchmarks/injected.py). Duplicates are in any split, a quarter of them with any class.
- exact, near: precision is the fraction of dropped rows that are duplicates of the row named in the audit. Recall is
the fraction of injected duplicates that are no longer in the dataset together with their original. Photographs that
`groups.csv` or benchmarks/natural_pairs.csv (ids of pairs, checked manually) list as near-duplicates count as correct.
- noise: F1 over the rows of train and val that show a landmark and are not duplicates. An error is a label that is not
the true one.
- distractor: AUROC of the mean cosine with the nearest embeddings, over the rows of all splits that are not duplicates.
- worth: the same fine-tuning of Lite0 on noisy, cleaned and clean images, tested on the same clean test split.
Duplicates here are of training images, in train, so that no test image leaks. won_back is (cleaned - noisy) /
(clean - noisy) of the means.
--quick: detectors on one seed. Completed parts in --output are reused. The last line is JSON, saved to
benchmarks/results/clean.json for three or more seeds.
"""

import argparse
import csv
import dataclasses
import json
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import numpy as np
from injected import KINDS, Faulty, Row, inject, natural_groups
from monuments import pack_monuments
from seeds import format_mean, mean_and_deviation
from sklearn.metrics import roc_auc_score

from landmark.cleaning.features import EmbeddingModel, extract_features
from landmark.cleaning.run import Cleaning, clean_dataset
from landmark.config import CleanConfig, TrainConfig
from landmark.config.recipe import Recipe
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import open_dataset
from landmark.inference.evaluation import Settings, evaluate_checkpoint
from landmark.recipes import load_recipe
from landmark.storage import locate
from landmark.training.run import run_training

SHORT_SIDE = 160
EMBEDDED_AT = 192
"""Image size for embeddings, pixels."""
PAIRS = Path(__file__).with_name("natural_pairs.csv")
KINDS_OF_DATA = ("noisy", "cleaned", "clean")


class Truth:
    """Images of the same photograph: union-find over injected duplicates, natural groups and manually checked pairs."""

    def __init__(self, rows: list[Row]) -> None:
        self.parent: dict[str, str] = {}
        for image, group in natural_groups().items():
            self._join(image, group)
        if PAIRS.exists():
            with PAIRS.open() as file:
                for line in csv.DictReader(file):
                    self._join(line["a"], line["b"])
        for row in rows:
            if row.source:
                self._join(row.image_id, row.source)

    def _root(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def _join(self, one: str, other: str) -> None:
        self.parent[self._root(one)] = self._root(other)

    def same(self, one: str, other: str) -> bool:
        """Return whether two images show the same photograph."""
        return self._root(one) == self._root(other)


def inject_and_clean(seed: int, base: PackedDataset, output: Path) -> tuple[Faulty, Cleaning]:
    """Create a faulty dataset and run all detectors on it."""
    faulty = inject(base, output / f"faulty-{seed}", seed)
    config = CleanConfig(dataset=faulty.path, output=str(output / f"cleaned-{seed}"), image_size=EMBEDDED_AT)
    dataset = open_dataset(config.dataset)
    model = EmbeddingModel.load(config.weights, config.image_size)
    features = extract_features(dataset, locate(config.output) / "features", model, config)
    cleaning = Cleaning(dataset, features, config)
    cleaning.decide()
    return faulty, cleaning


def detector_figures(faulty: Faulty, cleaning: Cleaning) -> dict[str, Any]:
    """Return precision, recall, F1 and AUROC of each detector."""
    truth = Truth(faulty.rows)
    by_id = {row.image_id: row for row in faulty.rows}
    noted = cleaning.decisions.noted().to_pylist()
    reason = {line["image_id"]: line["reason"] for line in noted}
    figures: dict[str, Any] = {}
    exact = [line for line in noted if line["reason"] == "exact_duplicate"]
    near = [line for line in noted if line["reason"] == "near_duplicate"]
    correct = [by_id[line["image_id"]].data == by_id[line["other_image_id"]].data for line in exact]
    figures["exact_precision"] = statistics.mean(correct)
    same_photograph = [truth.same(line["image_id"], line["other_image_id"]) for line in near]
    figures["near_precision"] = statistics.mean(same_photograph)
    figures["near_false"] = [
        (line["image_id"], line["other_image_id"], line["score"])
        for line, is_correct in zip(near, same_photograph, strict=True)
        if not is_correct
    ]
    for name, kinds, reasons in (
        ("exact", ("exact",), {"exact_duplicate"}),
        ("near", KINDS, {"exact_duplicate", "near_duplicate"}),
        *((kind, (kind,), {"exact_duplicate", "near_duplicate"}) for kind in KINDS),
    ):
        found = [
            reason.get(row.image_id) in reasons or reason.get(row.source) in reasons
            for row in faulty.rows
            if row.fault in kinds
        ]
        figures[f"{name}_recall"] = statistics.mean(found)
    figures |= noise_figures(by_id, cleaning, reason)
    for fault, outcome in (("broken", "unreadable"), ("blank", "degenerate")):
        is_found = [reason.get(row.image_id) == outcome for row in faulty.rows if row.fault == fault]
        is_correct = [by_id[image].fault == fault for image, why in reason.items() if why == outcome]
        figures[f"{outcome}_recall"] = statistics.mean(is_found)
        figures[f"{outcome}_precision"] = statistics.mean(is_correct) if is_correct else 0.0
    return figures


def noise_figures(by_id: dict[str, Row], cleaning: Cleaning, reason: dict[str, str]) -> dict[str, float]:
    """Return how well label errors and distractors are detected."""
    ids = cleaning.rows.image_id.to_pylist()
    has_embedding = np.flatnonzero(np.isfinite(cleaning.mean_neighbor_similarity))
    rows = [by_id[ids[i]] for i in has_embedding]
    is_distractor = np.array([row.true_label < 0 for row in rows])
    figures = {
        "distractor_auroc": float(roc_auc_score(is_distractor, -cleaning.mean_neighbor_similarity[has_embedding]))
    }
    dropped = np.array([reason.get(row.image_id) == "distractor" for row in rows])
    figures["distractor_precision"] = float(is_distractor[dropped].mean()) if dropped.any() else 0.0
    figures["distractor_recall"] = float(dropped[is_distractor].mean())
    eligible = np.array([row.split in cleaning.config.splits and row.true_label >= 0 for row in rows])
    label_errors = np.array([row.label != row.true_label for row in rows])[eligible]
    flagged = np.array([reason.get(row.image_id) == "label_noise" for row in rows])[eligible]
    hits = int((label_errors & flagged).sum())
    figures["noise_precision"] = hits / max(1, int(flagged.sum()))
    figures["noise_recall"] = hits / max(1, int(label_errors.sum()))
    figures["noise_f1"] = 2 * hits / max(1, int(label_errors.sum()) + int(flagged.sum()))
    new = cleaning.decisions.label[has_embedding][eligible]
    old = cleaning.rows.label[has_embedding][eligible]
    true = np.array([row.true_label for row in rows])[eligible]
    figures["relabelled_right"] = float((new == true)[new != old].mean()) if (new != old).any() else 0.0
    return figures


def train_and_test(seed: int, base: PackedDataset, arguments: argparse.Namespace) -> dict[str, float]:
    """Train on noisy, cleaned and clean images and return the top-1 of each on the clean test split."""
    folder = arguments.output / f"worth-{seed}"
    noisy, cleaned = folder / "noisy", folder / "cleaned"
    if not (noisy / "manifest.json").exists():
        inject(base, noisy, seed, leaks=False)
    if not (cleaned / "manifest.json").exists():
        clean_dataset(CleanConfig(dataset=str(noisy), output=str(cleaned), image_size=EMBEDDED_AT))
    uris = {"noisy": str(noisy), "cleaned": str(cleaned), "clean": base.location.uri}
    recipe = load_recipe("finetune")
    recipe = dataclasses.replace(
        recipe,
        epochs=arguments.epochs,
        seed=seed,
        loader=dataclasses.replace(recipe.loader, image_size=arguments.image_size, corrupt="skip"),
    )
    shared = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    top1 = {}
    for kind in KINDS_OF_DATA:
        config = TrainConfig(dataset=uris[kind], output=str(folder), name=f"train-{kind}", tensorboard=False, **shared)
        record = folder / config.name / "run.json"
        if not record.exists():
            run_training(config)
        run = json.loads(record.read_text())
        checkpoint = locate(run["run"]) / run["best_checkpoint"]
        top1[kind] = evaluate_checkpoint(checkpoint, base, "test", Settings(quiet=True)).accumulator.top_k(1)
        print(f"seed {seed}: trained on {kind} images: test top-1 {top1[kind]:.2%} ({run['seconds']:.0f}s)", flush=True)
    return top1


def print_detectors(figures: dict[str, list[float]]) -> None:
    """Print each figure's mean, minimum and maximum over the seeds."""
    print(f"{'figure':24}{'mean':>8}{'min':>8}{'max':>8}")
    for name, values in figures.items():
        print(f"{name:24}{statistics.mean(values):>8.3f}{min(values):>8.3f}{max(values):>8.3f}")


def main() -> None:
    """Print the tables and the figures, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("all", "detectors", "worth"), default="all", help="benchmark part to run")
    parser.add_argument("--quick", action="store_true", help="run only the detectors, on one seed")
    parser.add_argument("--show-false", action="store_true", help="print the false positives among near-duplicates")
    parser.add_argument("--epochs", type=int, default=8, help="epochs per training")
    parser.add_argument("--image-size", type=int, default=96, help="image size for training, pixels")
    parser.add_argument("--output", type=Path, default=Path("runs/clean"), help="folder for datasets and runs")
    arguments = parser.parse_args()
    seeds, arguments.part = (1, "detectors") if arguments.quick else (arguments.seeds, arguments.part)
    base = PackedDataset.open(pack_monuments(arguments.output / f"dataset-{SHORT_SIDE}", SHORT_SIDE))
    line: dict[str, float] = {"seeds": seeds}
    if arguments.part != "worth":
        line |= detectors_part(seeds, base, arguments)
    if arguments.part != "detectors":
        line |= worth_part(seeds, base, arguments)
    line = {name: round(value, 4) for name, value in line.items()}
    if seeds >= 3:
        # Parts that were not run keep the figures of their last run.
        results = Path(__file__).with_name("results") / "clean.json"
        before = json.loads(results.read_text()) if results.exists() else {}
        results.write_text(json.dumps(before | line) + "\n")
    print(json.dumps(line))


def detectors_part(seeds: int, base: PackedDataset, arguments: argparse.Namespace) -> dict[str, float]:
    """Print and return each detector's figures, means over the seeds."""
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        faulty, cleaning = inject_and_clean(seed, base, arguments.output)
        figures = detector_figures(faulty, cleaning)
        false_positives = figures.pop("near_false")
        if arguments.show_false:
            print("\n".join(f"{one},{other},{score:.3f}" for one, other, score in false_positives))
        for name, value in figures.items():
            found.setdefault(name, []).append(float(value))
    print_detectors(found)
    return {name: statistics.mean(values) for name, values in found.items()}


def worth_part(seeds: int, base: PackedDataset, arguments: argparse.Namespace) -> dict[str, float]:
    """Print and return top-1 after training on noisy, cleaned and clean images, and won_back."""
    runs = [train_and_test(seed, base, arguments) for seed in range(seeds)]
    line = {}
    for kind in KINDS_OF_DATA:
        values = [run[kind] for run in runs]
        mean, spread = mean_and_deviation(values)
        line[f"{kind}_top1"] = mean
        if spread is not None:
            line[f"{kind}_top1_spread"] = spread
        print(f"trained on {kind:8} test top-1 {format_mean(mean, spread, '.2%')}")
    cost = line["clean_top1"] - line["noisy_top1"]
    line["won_back"] = (line["cleaned_top1"] - line["noisy_top1"]) / cost if cost else 0.0
    return line


if __name__ == "__main__":
    main()
