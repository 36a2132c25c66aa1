"""`landmark evaluate`: a model on a split, every metric beside its trivial baselines; or two models on the same images."""

import sys
from collections.abc import Sequence
from typing import Any

from landmark.cli import run_verb
from landmark.config import EvaluateConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.selection import open_dataset
from landmark.evaluation.comparison import Comparison, compare
from landmark.reporting.evaluation_files import write_comparison
from landmark.storage import Location, check_writable, locate
from landmark.training.checkpoints import read_meta, resolve_checkpoint
from landmark.training.evaluation import Evaluation, evaluate_checkpoint, write_evaluation
from landmark.training.inference import find_replicas


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a model, write the results and print them; returns the metrics."""
    checkpoint = resolve_checkpoint(config.checkpoint)
    meta = read_meta(checkpoint)
    dataset = open_dataset(config.dataset or meta.dataset, meta.subset, meta.subset_seed)
    output = locate(config.output) if config.output else locate(config.checkpoint) / f"evaluation-{config.split}"
    check_writable(output)
    found = _evaluate(config, checkpoint, dataset, output)
    print_summary(found.summary)
    if config.against is not None:
        other = resolve_checkpoint(config.against)
        if read_meta(other).classes != meta.classes:
            raise UserError(
                f"{config.against}: trained on other classes than {config.checkpoint}; compare models of the same"
            )
        print(f"beside {config.against}:")
        against = _evaluate(config, other, dataset, output / "against")
        print_summary(against.summary)
        compared = compare(found.predictions, against.predictions, found.tally.topk, samples=config.bootstrap or 1000)
        write_comparison(output, compared, meta.classes, (config.checkpoint, config.against))
        print_comparison(compared)
    print(f"evaluation: {output}  next: landmark report --run {config.checkpoint}")
    return found.summary


def _evaluate(config: EvaluateConfig, checkpoint: Location, dataset: PackedDataset, output: Location) -> Evaluation:
    replicas, gpus = find_replicas(config)
    found = evaluate_checkpoint(
        checkpoint,
        dataset,
        config.split,
        config.topk,
        config.batch_size,
        output=output,
        replicas=replicas,
        cpus=config.cpus,
        gpus=gpus,
        samples=config.bootstrap,
        neighbours=config.neighbours,
        distractors=locate(config.distractors) if config.distractors else None,
        damaged=config.damaged,
    )
    write_evaluation(found, output)
    return found


def print_summary(summary: dict[str, Any]) -> None:
    """Print a split's metrics as a table: the model, its 95 % interval, and the baselines."""
    lost = f"; {summary['lost_images']:,} images lost in damaged shards" if "lost_images" in summary else ""
    strangers = summary["rows_without_landmark"]
    lost += f"; {strangers:,} more without a landmark" if strangers else ""
    print(f"{summary['split']}: {summary['rows']:,} images of {summary['classes_present']:,} classes{lost}")
    near = f"{'neighbours':>12}" if "knn_gap" in summary else ""
    print(f"{'':18}{'model':>9}{'95 % interval':>19}{'majority':>10}{'random':>10}{near}")
    for key in [*(key for key in summary if key.startswith("top")), "gap"]:
        name = "GAP" if key == "gap" else f"top-{key[3:]}"
        near = f"{summary[f'knn_{key}']:>12.2%}" if "knn_gap" in summary else ""
        beside = f"{summary['majority_' + key]:>10.2%}{summary['random_' + key]:>10.2%}"
        print(f"{name:18}{summary[key]:>9.2%}{_interval(summary, key):>19}{beside}{near}")
    if "distractors_refused" in summary:
        print(f"{summary['distractors_refused']:,} files among the distractors are no readable images: left out")
    for key, name in (
        ("macro_recall", "macro recall"),
        ("macro_precision", "macro precision"),
        ("ece", "calibration error"),
    ):
        print(f"{name:18}{summary[key]:>9.2%}{_interval(summary, key):>19}")
    if strangers:
        print(f"{'rejection AUROC':18}{summary['rejection_auroc']:>9.4f}{'':19}{'':>10}{0.5:>10.4f}")
    for band in summary["bands"]:
        print(
            f"{band['band']:6} {band['classes']:,} classes of {band['least_train_images']:,} to {band['most_train_images']:,} "
            f"training images: top-1 {band['top1']:.2%} of {band['rows']:,}, macro recall {band['macro_recall']:.2%}"
        )
    print(f"loss {summary['loss']:.3f}")


def _interval(summary: dict[str, Any], key: str) -> str:
    low, high = summary.get("intervals", {}).get(key, (None, None))
    return "" if low is None else f"{low:.2%} - {high:.2%}"


def print_comparison(found: Comparison) -> None:
    """Print what two models differ in."""
    print(
        f"right: both {found.both_right:,}, the first alone {found.only_a:,}, the second alone {found.only_b:,}, neither "
        f"{found.both_wrong:,}; McNemar's p {found.mcnemar_p:.3g}"
    )
    for name, each in found.differences.items():
        print(
            f"{'GAP' if name == 'gap' else 'top-' + name[3:]:8}{each.a:>9.2%}{each.b:>9.2%}  difference {each.difference:+.2%} "
            f"({each.interval.low:+.2%} to {each.interval.high:+.2%})"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code."""
    return run_verb(EvaluateConfig, evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
