"""`landmark train`: one run."""

import dataclasses
from collections.abc import Sequence

import tyro

from landmark.cli import end, run_verb
from landmark.config import Recipe, TrainConfig
from landmark.progress import clock
from landmark.recipes import load_recipe
from landmark.training.run import RunResult, run_training


def train(config: TrainConfig) -> RunResult:
    """Train one model and say where it lies."""
    result = run_training(config)
    best = result.best
    early = " (stopped early)" if result.stopped_early else ""
    figures = f"best epoch {best['epoch']:.0f}: val top-1 {best['val_top1']:.2%}, top-5 {best['val_top5']:.2%}"
    if result.finished_before:
        print(f"finished before, nothing was trained; saved figures: {result.epochs_run} epochs{early}; {figures}")
    else:
        print(f"{result.epochs_run} epochs{early} in {clock(result.seconds)}; {figures}")
    print(f"run: {result.run}  next: landmark evaluate --checkpoint {result.run}")
    return result


def defaults(recipe: str | None, arguments: Sequence[str]) -> TrainConfig | None:
    """Return the defaults of a command line that names a recipe."""
    if recipe is None:
        return None
    found = load_recipe(recipe)
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(Recipe)}
    return TrainConfig(dataset=tyro.MISSING, **values)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code."""
    return run_verb(TrainConfig, train, argv, default=defaults)


if __name__ == "__main__":
    end(main())
