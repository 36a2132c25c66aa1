"""Accuracy of the recipes on photographs: `modern` compared with `reference` from scratch, and Lite0 with `finetune`.

Run: python benchmarks/recipes.py [--seeds 3] [--finetune-seeds 1] [--only reference modern finetune] [--output FOLDER]. The
photographs are `monuments` in LANDMARK_TEST_DATA (2,939 of 24 monuments). `reference` and `modern` train the same ResNet-18
at the same image size for the same number of epochs. `finetune` is unchanged. The recipes' values and each run's best
epoch were selected on the validation split. The test split is only used here, once per run. Dataset and runs are stored
in --output, and completed runs are reused. The last line is JSON, saved to benchmarks/results/recipes.json.
"""

import argparse
import dataclasses
import json
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

from monuments import pack_monuments
from seeds import format_mean, mean_and_deviation

from landmark.config import Recipe, TrainConfig
from landmark.data.dataset import PackedDataset
from landmark.inference.evaluation import Settings, evaluate_checkpoint
from landmark.recipes import load_recipe
from landmark.storage import locate
from landmark.training.run import run_training

SCRATCH = ("reference", "modern")
SHORT_SIDES = {"reference": 160, "modern": 160, "finetune": 256}
"""Short side of the images for each recipe, pixels."""


def recipe_of(name: str, seed: int, arguments: argparse.Namespace) -> Recipe:
    """Return a recipe with the settings that both recipes from scratch share."""
    recipe = dataclasses.replace(load_recipe(name), seed=seed)
    if name not in SCRATCH:
        return recipe
    size, resizing = arguments.image_size, recipe.resizing
    if resizing.start_size is not None:  # same ratio to the full size
        start = round(resizing.start_size * size / recipe.loader.image_size / 16) * 16
        resizing = dataclasses.replace(resizing, start_size=start)
    return dataclasses.replace(
        recipe,
        epochs=arguments.epochs,
        model=dataclasses.replace(recipe.model, backbone="resnet18"),
        loader=dataclasses.replace(recipe.loader, image_size=size),
        resizing=resizing,
    )


def train_and_evaluate(name: str, seed: int, dataset: PackedDataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one run, unless it is complete, and evaluate its best checkpoint on the test split."""
    recipe = recipe_of(name, seed, arguments)
    shared = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    config = TrainConfig(
        dataset=dataset.location.uri,
        output=str(arguments.output),
        name=f"{name}-{seed}",
        tensorboard=False,
        **shared,
    )
    record = arguments.output / config.name / "run.json"
    if not record.exists():
        run_training(config)
    run = json.loads(record.read_text())
    found = evaluate_checkpoint(locate(run["run"]) / run["best_checkpoint"], dataset, "test", Settings(quiet=True))
    return {
        "val_top1": run["best"]["val_top1"],
        "top1": found.accumulator.top_k(1),
        "top5": found.accumulator.top_k(5),
        "majority": found.summary["majority_top1"],
        "seconds": run["seconds"],
        "recipe": recipe,
    }


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return means and standard deviations over the seeds (None for one seed) by recipe."""
    figures: dict[str, Any] = {}
    for name, rows in runs.items():
        key = "lite0" if name == "finetune" else name
        for metric in ("top1", "top5"):
            values = [row[metric] for row in rows]
            figures[f"{key}_{metric}"], figures[f"{key}_{metric}_spread"] = mean_and_deviation(values)
        figures[f"{key}_seconds"] = statistics.mean(row["seconds"] for row in rows)
        figures[f"{key}_seeds"] = len(rows)
    if set(SCRATCH) <= set(runs):
        figures["gain"] = figures["modern_top1"] - figures["reference_top1"]
    return figures


def print_table(runs: dict[str, list[dict[str, Any]]], figures: dict[str, Any]) -> None:
    """Print the recipes as a table."""
    print(
        f"{'recipe':10}{'model':28}{'px':>5}{'epochs':>8}{'seeds':>7}{'val top-1':>11}{'test top-1':>16}{'top-5':>16}"
        f"{'s/run':>9}"
    )
    for name, rows in runs.items():
        key = "lite0" if name == "finetune" else name
        recipe = rows[0]["recipe"]
        cells = [
            format_mean(figures[f"{key}_{metric}"], figures[f"{key}_{metric}_spread"]) for metric in ("top1", "top5")
        ]
        print(
            f"{name:10}{recipe.model.backbone:28}{recipe.loader.image_size:>5}{recipe.epochs:>8}{len(rows):>7}"
            f"{statistics.mean(row['val_top1'] for row in rows):>11.1%}{cells[0]:>16}{cells[1]:>16}"
            f"{figures[f'{key}_seconds']:>9.0f}"
        )
    print(f"majority baseline: test top-1 {next(iter(runs.values()))[0]['majority']:.1%}")


def main() -> None:
    """Print the table and the figures, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--finetune-seeds",
        type=int,
        default=1,
        help="seeds of finetune; one run at 224 px takes 20 minutes on one core",
    )
    parser.add_argument("--only", nargs="+", default=[*SCRATCH, "finetune"], choices=[*SCRATCH, "finetune"])
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the runs from scratch")
    parser.add_argument("--image-size", type=int, default=80, help="image size of the runs from scratch, pixels")
    parser.add_argument("--output", type=Path, default=Path("runs/recipes"), help="folder for dataset and runs")
    arguments = parser.parse_args()
    runs = {}
    for name in arguments.only:
        side = SHORT_SIDES[name]
        dataset = PackedDataset.open(pack_monuments(arguments.output / f"dataset-{side}", side))
        seeds = arguments.seeds if name in SCRATCH else arguments.finetune_seeds
        runs[name] = [train_and_evaluate(name, seed, dataset, arguments) for seed in range(seeds)]
    figures = summary(runs)
    print_table(runs, figures)
    line = json.dumps({key: None if value is None else round(value, 4) for key, value in figures.items()})
    if set(runs) == {*SCRATCH, "finetune"}:
        Path(__file__).with_name("results").joinpath("recipes.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
