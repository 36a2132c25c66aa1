"""`landmark evaluate`: a model on a split, every metric beside its trivial baselines."""

import sys
from collections.abc import Sequence
from typing import Any

from landmark.cli import run_verb
from landmark.config import EvaluateConfig
from landmark.data.selection import open_dataset
from landmark.storage import check_writable, locate
from landmark.training.checkpoints import read_meta, resolve_checkpoint
from landmark.training.evaluation import evaluate_checkpoint, write_evaluation


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a model, write the results and print them; returns the metrics."""
    checkpoint = resolve_checkpoint(config.checkpoint)
    meta = read_meta(checkpoint)
    dataset = open_dataset(config.dataset or meta.dataset, meta.subset, meta.subset_seed)
    output = locate(config.output) if config.output else locate(config.checkpoint) / f"evaluation-{config.split}"
    check_writable(output)
    found = evaluate_checkpoint(
        checkpoint, dataset, config.split, config.topk, config.batch_size, damaged=config.damaged
    )
    write_evaluation(found, output)
    print_summary(found.summary)
    print(f"evaluation: {output}")
    return found.summary


def print_summary(summary: dict[str, Any]) -> None:
    """Print a split's metrics as a table, the model beside the baselines."""
    lost = f"; {summary['lost_images']:,} images lost in damaged shards" if "lost_images" in summary else ""
    print(f"{summary['split']}: {summary['rows']:,} images of {summary['classes_present']:,} classes{lost}")
    print(f"{'':10}{'model':>10}{'majority':>10}{'random':>10}")
    for key in summary:
        if key.startswith("top"):
            print(
                f"{'top-' + key[3:]:10}{summary[key]:>10.2%}{summary['majority_' + key]:>10.2%}"
                f"{summary['random_' + key]:>10.2%}"
            )
    print(f"macro recall {summary['macro_recall']:.2%}, loss {summary['loss']:.3f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code."""
    return run_verb(EvaluateConfig, evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
