"""Classification heads: linear, ArcFace and sub-center ArcFace on photographs; long-tailed training by frequency band.

Run: python benchmarks/heads.py [--seeds 3] [--processes 2] [--choose] [--output FOLDER]. The photographs are
`monuments` in LANDMARK_TEST_DATA (2,939 of 24 monuments), and `distractors` there, which do not show them. All heads
use the same backbone (EfficientNet-Lite0 with ImageNet weights at 96 px, GeM, a neck of 256) and schedule. `balanced`
trains on the original data, `tail` on a long tail of it (subset.tail). Both are tested on the same test split, by the
classifier and by k-NN. Learning rate, scale and margins were selected on the validation split with one seed; --choose
repeats this selection. A run's best epoch is also selected on the validation split. The test split is only used for the
tables. Dataset and runs are stored in --output, and completed runs are reused. The last line is JSON, saved to
benchmarks/results/heads.json.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

from monuments import pack_monuments, photographs
from seeds import format_mean, mean_and_deviation

from landmark.config import (
    AugmentConfig,
    HeadConfig,
    LoaderConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    SamplingConfig,
    ScheduleConfig,
    SubsetConfig,
    TrainConfig,
)
from landmark.data.subset_view import open_dataset
from landmark.evaluation.metrics import BANDS
from landmark.inference.evaluation import Settings, evaluate_checkpoint
from landmark.storage import locate
from landmark.training.run import run_training

Figures = dict[str, dict[str, list[float | None]]]
"""Mean and spread of each figure, by classifier and by k-NN."""
IMAGE_SIZE, SHORT_SIDE, NECK, FROZEN_STAGES = 96, 128, 256, 6
LAYER_DECAY = 0.8
TAIL = 1.0
"""Zipf's law: 691 of the 2,057 training images, 183 of the first class, 8 of the last."""
EPOCHS = {"balanced": 4, "tail": 6}
NEIGHBORS = 5
METHODS = ("classifier", "knn")
METRICS = ("top1", "macro_recall", "gap", "rejection_auroc")
BAND_METRICS = {"top1": "top-1", "macro_recall": "recall"}
LR, LINEAR_LR = 0.004, {"balanced": 0.004, "tail": 0.008}
"""Peak learning rates of the cosine heads and of the linear head. These values and the following ones have the highest
macro recall on the validation split among `choices`.
"""
ARCFACE: dict[str, Any] = {"name": "arcface", "scale": 30.0}
MARGINS = {"balanced": 0.3, "tail": 0.5}
DYNAMIC: dict[str, Any] = {"margin": 0.3, "min_margin": 0.1}
DYNAMIC_SAMPLED: dict[str, Any] = {"margin": 0.5, "min_margin": 0.3}


@dataclasses.dataclass(kw_only=True, frozen=True)
class Case:
    """A training configuration. All other settings are equal."""

    version: str
    """balanced or tail."""
    name: str
    head: HeadConfig
    sampling: Literal["uniform", "balanced"] = "uniform"
    lr: float = LR
    smoothing: float = 0.0

    def run(self, seed: int) -> str:
        """Return the name of its run, which is equal for equal settings."""
        head = self.head
        parts = [self.version, head.name, self.sampling, f"lr{self.lr}", f"smoothing{self.smoothing}", f"seed{seed}"]
        if head.name != "linear":
            parts[2:2] = [f"scale{head.scale:.0f}", f"margin{head.margin}", f"least{head.min_margin}"]
        return "-".join(parts)


def cases() -> list[Case]:
    """Return the rows of both tables."""
    found = []
    fixed = {version: HeadConfig(**ARCFACE, margin=margin) for version, margin in MARGINS.items()}
    for version in EPOCHS:
        linear = Case(version=version, name="linear", head=HeadConfig(), lr=LINEAR_LR[version])
        found.append(linear)
        if version == "tail":
            found.append(dataclasses.replace(linear, name="linear, sampled", sampling="balanced"))
        found.append(Case(version=version, name="arcface", head=fixed[version]))
        if version == "balanced":
            found.append(
                Case(version=version, name="subcenter", head=dataclasses.replace(fixed[version], name="subcenter"))
            )
    dynamic, combined = HeadConfig(**ARCFACE, **DYNAMIC), HeadConfig(**ARCFACE, **DYNAMIC_SAMPLED)
    found += [
        Case(version="tail", name="arcface, sampled", head=fixed["tail"], sampling="balanced"),
        Case(version="tail", name="arcface, dynamic", head=dynamic),
        Case(version="tail", name="arcface, dynamic, sampled", head=combined, sampling="balanced"),
        Case(
            version="tail",
            name="subcenter, dynamic, sampled",
            head=dataclasses.replace(combined, name="subcenter"),
            sampling="balanced",
        ),
    ]
    return found


def choices() -> list[Case]:
    """Return the candidates for the validation split: the same number of values for the linear head as for ArcFace."""
    found = [
        Case(version="balanced", name=f"linear lr {lr} smoothing {part}", head=HeadConfig(), lr=lr, smoothing=part)
        for lr, part in ((0.0005, 0.0), (0.001, 0.0), (0.002, 0.0), (0.004, 0.0), (0.008, 0.0), (0.002, 0.1))
    ]
    for scale, margin, lr in (
        (16.0, 0.1, 0.002),
        (16.0, 0.3, 0.002),
        (30.0, 0.3, 0.002),
        (16.0, 0.1, 0.001),
        (16.0, 0.1, 0.004),
        (30.0, 0.3, 0.004),
    ):
        head = HeadConfig(name="arcface", scale=scale, margin=margin)
        found.append(Case(version="balanced", name=f"arcface {scale:.0f} {margin} lr {lr}", head=head, lr=lr))
    for lr in (0.002, 0.004, 0.008):
        found.append(Case(version="tail", name=f"linear lr {lr}", head=HeadConfig(), lr=lr))
    for margin, min_margin in ((0.3, None), (0.5, None), (0.3, 0.1), (0.5, 0.1), (0.5, 0.3)):
        head = HeadConfig(name="arcface", scale=30.0, margin=margin, min_margin=min_margin)
        found.append(Case(version="tail", name=f"arcface 30 {margin} min {min_margin}", head=head))
        if min_margin is not None:
            found.append(dataclasses.replace(found[-1], name=f"{found[-1].name}, sampled", sampling="balanced"))
    return found


def recipe_of(case: Case, seed: int) -> Recipe:
    """Return the recipe of a case: the last stages of the pretrained model, with an embedding."""
    return Recipe(
        seed=seed,
        epochs=EPOCHS[case.version],
        model=ModelConfig(
            backbone="timm/tf_efficientnet_lite0",
            weights="lite0",
            freeze_stages=FROZEN_STAGES,
            pooling="gem",
            neck=NECK,
            head=case.head,
        ),
        optimizer=OptimizerConfig(
            name="adamw", lr=case.lr, base_batch_size=32, weight_decay=0.05, layer_decay=LAYER_DECAY
        ),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=1.0),
        loss=LossConfig(label_smoothing=case.smoothing),
        augment=AugmentConfig(crop_area=(0.4, 1.0)),
        loader=LoaderConfig(image_size=IMAGE_SIZE, batch_size=32, decode_threads=1),
        sampling=SamplingConfig(name=case.sampling),
    )


def train_run(case: Case, seed: int, uri: str, output: Path) -> dict[str, Any]:
    """Train one run, unless it is complete, and return its record."""
    recipe = recipe_of(case, seed)
    config = TrainConfig(
        dataset=uri,
        subset=SubsetConfig(tail=TAIL if case.version == "tail" else 0.0),
        output=str(output),
        name=case.run(seed),
        tensorboard=False,
        **{field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)},
    )
    record = output / config.name / "run.json"
    if not record.exists():
        run_training(config)
    return json.loads(record.read_text())


def train_and_evaluate(case: Case, seed: int, uri: str, output: Path) -> dict[str, Any]:
    """Train one run, unless it is complete, and evaluate its best checkpoint on the test split with distractors."""
    run = train_run(case, seed, uri, output)
    subset = SubsetConfig(tail=TAIL if case.version == "tail" else 0.0)
    found = evaluate_checkpoint(
        locate(run["run"]) / run["best_checkpoint"],
        open_dataset(uri, subset),
        "test",
        Settings(
            by="both",
            neighbors=NEIGHBORS,
            distractors=locate(photographs("distractors")),
            samples=0,
            quiet=True,
        ),
    )
    methods = {"classifier": found.summary, "knn": found.summary["knn"]}
    return {method: figures_of(summary) for method, summary in methods.items()} | {"bands": found.summary["bands"]}


def figures_of(summary: dict[str, Any]) -> dict[str, float]:
    """Return the figures of an evaluation for the tables, those of the bands by name."""
    figures = {name: summary[name] for name in METRICS}
    for band in summary["bands"]:
        figures |= {f"{band['band']}_{name}": band[name] for name in BAND_METRICS}
    return figures


def over_seeds(runs: list[dict[str, Any]]) -> Figures:
    """Return each figure's mean and standard deviation over the seeds (None for one seed), by classifier and k-NN."""
    found: Figures = {}
    for method in METHODS:
        found[method] = {}
        for name in runs[0][method]:
            values = [run[method][name] for run in runs]
            mean, spread = mean_and_deviation(values)
            found[method][name] = [round(mean, 4), None if spread is None else round(spread, 4)]
    return found


def print_table(columns: dict[str, str], rows: dict[str, Figures]) -> None:
    """Print figures by case, classifier and k-NN. columns: key and title of each."""
    print("| head | by |" + "".join(f" {title} |" for title in columns.values()))
    print("|---|---|" + "---|" * len(columns))
    for name, figures in rows.items():
        for method in METHODS:
            cells = "".join(f" {_cell(key, figures[method][key])} |" for key in columns)
            print(f"| {name} | {method} |{cells}")


def _cell(name: str, value: list[float | None]) -> str:
    mean, spread = value
    assert mean is not None
    return format_mean(mean, spread, ".3f" if name == "rejection_auroc" else ".1%")


def print_tables(figures: dict[str, Any], runs: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Print the test results of all runs, and those of the long-tailed runs by frequency band."""
    columns = {"top1": "top-1", "macro_recall": "macro recall", "gap": "GAP", "rejection_auroc": "rejection AUROC"}
    by_band = {f"{band}_{name}": f"{band} {title}" for band in BANDS for name, title in BAND_METRICS.items()}
    print("\nbalanced: original data")
    print_table(columns, figures["balanced"])
    print(f"\ntail: subset.tail {TAIL}")
    print_table(columns, figures["tail"])
    print("\ntail by frequency band")
    for band in next(of_case for (version, _), of_case in runs.items() if version == "tail")[0]["bands"]:
        print(
            f"{band['band']}: {band['classes']} classes of {band['least_train_images']} to {band['most_train_images']} "
            f"training images, {band['rows']} test images"
        )
    print_table(by_band, figures["tail"])


def run_in_processes(processes: int, work: Any, jobs: list[tuple[Any, ...]]) -> list[Any]:
    """Return the results of `work` for all jobs, each in its own process."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(work, *job) for job in jobs]]


def choose(uri: str, arguments: argparse.Namespace) -> None:
    """Print the validation results of all candidates."""
    compared = choices()
    records = run_in_processes(arguments.processes, train_run, [(case, 0, uri, arguments.output) for case in compared])
    print(f"{'choice':40}{'val top-1':>11}{'macro recall':>14}")
    for case, record in zip(compared, records, strict=True):
        print(
            f"{case.version + ' ' + case.name:40}{record['best']['val_top1']:>11.1%}{record['best']['val_macro_recall']:>14.1%}"
        )


def main() -> None:
    """Print the tables and the figures, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--choose", action="store_true", help="compare the candidates on the validation split instead")
    parser.add_argument("--output", type=Path, default=Path("runs/heads"), help="folder for dataset and runs")
    arguments = parser.parse_args()
    uri = locate(pack_monuments(arguments.output / f"dataset-{SHORT_SIDE}", SHORT_SIDE)).uri
    if arguments.choose:
        choose(uri, arguments)
        return
    jobs = [(case, seed, uri, arguments.output) for seed in range(arguments.seeds) for case in cases()]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (case, *_), run in zip(jobs, run_in_processes(arguments.processes, train_and_evaluate, jobs), strict=True):
        runs.setdefault((case.version, case.name), []).append(run)
    figures: dict[str, Any] = {version: {} for version in EPOCHS}
    for (version, name), of_case in runs.items():
        figures[version][name] = over_seeds(of_case)
    print_tables(figures, runs)
    line = json.dumps(figures | {"seeds": arguments.seeds})
    Path(__file__).with_name("results").joinpath("heads.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
