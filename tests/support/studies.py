"""Run small studies for tests from the text of a search space."""

import csv
import dataclasses
import json
from pathlib import Path

from landmark.commands.tune import tune
from landmark.config import TuneConfig
from landmark.search.spaces.space import Space

COMMON = """
metric: val_top1
recipe:
  model: {backbone: reference_mlp}
  optimizer: {name: adam}
  schedule: {name: constant}
  loader: {image_size: 16, batch_size: 16, decode_threads: 1}
"""
LEARNING_RATES = """
parameters:
  optimizer.lr: {grid: [1.0e-9, 0.003, 1.0e-8, 0.002, 1.0e-10, 0.001]}
  epochs: {grid: [6]}
"""


def study(text: str, dataset: str, folder: Path, **changes) -> tuple[dict, Path]:
    """Run or resume a study. Returns its summary and folder. Two trials run at a time: each starts a process."""
    file = folder / "space.yaml"
    file.write_text(text)
    space = Space.load(str(file))
    base = TuneConfig(
        dataset=dataset,
        space=str(file),
        output=str(folder),
        name="study",
        recipe=space.recipe(),
        tensorboard=False,
        resume=True,
    )
    changes.setdefault("max_concurrent", 2)
    return tune(dataclasses.replace(base, **changes)), folder / "study"


def rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    return list(csv.DictReader(file.open()))


def epochs_of(folder: Path) -> dict[str, list[int]]:
    """Return the epochs of each trial in the history of a study."""
    found: dict[str, list[int]] = {}
    for row in rows(folder / "history.csv"):
        found.setdefault(row["trial"], []).append(int(row["epoch"]))
    return found


def events(folder: Path, kind: str) -> list[dict]:
    """Return the events of a kind from all processes of a study, in order."""
    files = sorted((folder / "journal").glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]
