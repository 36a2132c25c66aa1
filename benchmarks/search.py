"""Savings and losses of early stopping: a full grid on photographs compared with ASHA, HyperBand and median stopping.

Run: python benchmarks/search.py [--quick] [--seeds N] [--schedulers NAME …] [--output FOLDER]. The photographs are
`monuments` in LANDMARK_TEST_DATA: the 12 monuments with the most photographs, at most 150 each, packed at a short side
of 96 px, with near-duplicates in the same split. The grid is 3 models x 3 optimizers x 2 numbers of epochs at 48 px.
Two cores run the four studies of a seed in about 20 minutes. The seed is the recipe's and sets the weights and the
order of images. Each study is the command `landmark tune` with two parallel trials of one thread each, and nothing else
runs on the machine. Its best trial by validation is evaluated on the test split, which is not used for anything else. A
trial is a function of its recipe, so all studies train the same 18 runs until they stop them.

The learning rate is constant, and the moving average of the weights is validated. A run of few epochs is therefore a
prefix of a run of many epochs. At a rung both have the same metric, and no run is ahead because its schedule ends
earlier (as with a cosine schedule; see docs/explanation/decisions, "the demo uses equal epochs"). Like the end of a
cosine schedule, the average removes the noise of the last steps.

Epochs and wall time are from each study's study.json. `gap` is the grid's best test top-1 minus the study's, as a
fraction (0.01 is a point). Figures are means over the seeds; `_max` is the maximum. Dataset and studies are stored in
--output, and studies with a study.json are reused. The last line is JSON, saved to benchmarks/results/search.json.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")

import ray
from monuments import pack_monuments
from studies import run_together, tune_command

from landmark.config import SubsetConfig

MONUMENTS, PHOTOS_EACH, SHORT_SIDE = 12, 150, 96
MAX_CONCURRENT = 2
RECIPE = {
    "schedule": {"name": "constant", "warmup_epochs": 0.5},
    "ema": {"decay": 0.98},
    "loss": {"label_smoothing": 0.1},
    "loader": {"image_size": 48, "batch_size": 16, "decode_threads": 1},
}
GRID = {
    "model.backbone": ["resnet18", "shufflenet_v2_x1_0", "shufflenet_v2_x0_5"],
    "optimizer.name": ["sgd", "rmsprop", "adam"],
    "epochs": [6, 12],
}
QUICK_GRID = {"model.backbone": ["shufflenet_v2_x0_5"], "optimizer.name": ["sgd", "rmsprop", "adam"], "epochs": [2, 4]}
SCHEDULERS = {
    "grid": {"name": "none"},
    "asha": {"name": "asha", "grace_epochs": 1, "reduction_factor": 3},
    "hyperband": {"name": "hyperband", "grace_epochs": 1, "reduction_factor": 3, "brackets": 2},
    "median": {"name": "median_stopping", "grace_epochs": 1, "min_trials": 3},
}


def run_study(name: str, seed: int, grid: dict[str, list[Any]], dataset: str, output: Path) -> dict[str, Any]:
    """Run or resume one study, unless it is complete. Returns its study.json."""
    summary = output / name / "study.json"
    if not summary.exists() or json.loads(summary.read_text())["interrupted"]:
        space = {
            "metric": "val_top1",
            "recipe": {**RECIPE, "seed": seed},
            "parameters": {key: {"grid": values} for key, values in grid.items()},
            "scheduler": SCHEDULERS[name],
        }
        flags = ["--max-concurrent", str(MAX_CONCURRENT), "--workers.cpus", "1", "--cluster.cpus", str(MAX_CONCURRENT)]
        run_together([tune_command(space, dataset, output, name, *flags, "--test", "best")])
    return json.loads(summary.read_text())


def figures_of(studies: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the figures of all studies, and of each compared with the grid."""
    top1 = {name: study["best"]["test"]["1"] for name, study in studies.items()}
    figures: dict[str, float] = {"grid_best": top1["grid"], "grid_epochs": studies["grid"]["epochs_run"]}
    for name, study in studies.items():
        figures[f"{name}_seconds"] = study["seconds"]
        if name != "grid":
            figures[f"{name}_epoch_share"] = study["epochs_run"] / study["epochs_grid"]
            figures[f"{name}_time_share"] = study["seconds"] / studies["grid"]["seconds"]
            figures[f"{name}_gap"] = top1["grid"] - top1[name]
    return figures


def print_table(studies: dict[str, dict[str, Any]], figures: dict[str, float]) -> None:
    """Print the studies as a table."""
    print(f"{'study':12}{'epochs':>8}{'of grid':>8}{'s':>8}{'val top-1':>11}{'test top-1':>12}{'gap':>8}  best")
    for name, study in studies.items():
        best = study["best"]
        gap = f"{figures[f'{name}_gap']:.1%}" if name != "grid" else "-"
        print(
            f"{name:12}{study['epochs_run']:>8}{study['epochs_run'] / study['epochs_grid']:>8.0%}{study['seconds']:>8.0f}"
            f"{best['val_top1']:>11.1%}{best['test']['1']:>12.1%}{gap:>8}  {best['trial']} at epoch {best['epoch']}"
        )
    print(f"majority baseline: test top-1 {studies['grid']['baselines']['majority']['1']:.1%}")


def over_seeds(found: list[dict[str, float]]) -> dict[str, float]:
    """Return each figure's mean over the seeds, and the maximum for fractions of epochs and for gaps."""
    figures = {key: statistics.mean(row[key] for row in found) for key in found[0]}
    worst = [key for key in found[0] if key.endswith(("_epoch_share", "_gap"))]
    return figures | {f"{key}_max": max(row[key] for row in found) for key in worst} | {"seeds": len(found)}


def main() -> None:
    """Print the table and the figures, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="six small runs on four monuments; results/ is not updated"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for dataset and studies [default: runs/search, or runs/search-quick with --quick]",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--schedulers",
        nargs="+",
        choices=[*SCHEDULERS],
        default=[*SCHEDULERS],
        help="schedulers to run in addition to the grid",
    )
    arguments = parser.parse_args()
    output = arguments.output or Path("runs/search-quick" if arguments.quick else "runs/search")
    quick = arguments.quick
    subset = SubsetConfig(classes=4 if quick else MONUMENTS, max_images=60 if quick else PHOTOS_EACH)
    dataset = pack_monuments((output / "dataset").resolve(), SHORT_SIDE, subset)
    ray.shutdown()  # each study starts its own
    grid = QUICK_GRID if arguments.quick else GRID
    found = []
    for seed in range(1 if quick else arguments.seeds):
        studies = {}
        for name in dict.fromkeys(["grid", *arguments.schedulers]):
            study = studies[name] = run_study(name, seed, grid, dataset, (output / f"seed{seed}").resolve())
            line = f"{study['epochs_run']} of {study['epochs_grid']} epochs, {study['seconds']:.0f} s"
            print(f"seed {seed}, {name}: {line}", flush=True)
        found.append(figures_of(studies))
        print_table(studies, found[-1])
    figures = over_seeds(found)
    line = json.dumps({key: round(value, 4) for key, value in figures.items()})
    if not arguments.quick:
        Path(__file__).with_name("results").joinpath("search.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
