"""`landmark clean`: removes duplicates, label errors and distractors from a packed dataset, and writes an audit."""

from typing import Any

from landmark.cleaning.run import clean_dataset
from landmark.config import CleanConfig
from landmark.storage import check_writable, locate


def clean(config: CleanConfig) -> dict[str, Any]:
    """Clean a dataset, write the filtered view and the audit, and print a summary; returns the values of clean.json."""
    check_writable(locate(config.output))
    summary = clean_dataset(config)
    print_summary(summary)
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    """Print the counts per reason, the location of the audit, and the next command."""
    print(f"{'reason':18}{'dropped':>10}{'relabelled':>12}")
    for reason, counts in summary["by_reason"].items():
        print(f"{reason:18}{counts['dropped']:>10,}{counts['relabelled']:>12,}")
    before, after = summary["rows_before"], summary["rows_after"]
    description = ", ".join(f"{split} {after[split]:,} of {before[split]:,}" for split in before)
    took = sum(summary["seconds"].values())
    print(f"kept {sum(after.values()):,} of {sum(before.values()):,} images ({description}) in {took:.0f}s")
    output = summary["output"]
    print(f"audit: {output}/audit.csv  next: landmark train {output}")
