"""Small runs of one worker: a config that trains in seconds, and what the run recorded."""

import csv
import dataclasses
from pathlib import Path

from landmark.config import LoaderConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from landmark.data.dataset import PackedDataset


def small_run(packed: PackedDataset, folder: Path, **changes) -> TrainConfig:
    """Return the config of a small run on a dataset, with changes."""
    base = TrainConfig(
        dataset=packed.location.uri,
        output=str(folder),
        epochs=4,
        model=ModelConfig(backbone="reference_mlp"),
        optimizer=OptimizerConfig(name="adam", lr=0.003),
        schedule=ScheduleConfig(name="constant"),
        loader=LoaderConfig(image_size=16, batch_size=16, decode_threads=2),
        tensorboard=False,
    )
    return dataclasses.replace(base, **changes)


def history(output: Path, name: str = "train") -> list[dict[str, str]]:
    """Return the rows of a run's history.csv."""
    return list(csv.DictReader((output / name / "history.csv").open()))
