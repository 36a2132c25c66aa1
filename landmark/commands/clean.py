"""`landmark clean`: a packed dataset without its copies, wrong labels and pictures of nothing, and an audit of each."""

from typing import Any

from landmark.cleaning.run import clean_dataset
from landmark.config import CleanConfig
from landmark.storage import check_writable, locate


def clean(config: CleanConfig) -> dict[str, Any]:
    """Clean a dataset, write the selection and the audit, and print what was found; returns what clean.json says."""
    check_writable(locate(config.output))
    summary = clean_dataset(config)
    print_summary(summary)
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    """Print what was found as a table, where the audit lies, and the next command."""
    print(f"{'reason':18}{'dropped':>10}{'relabelled':>12}")
    for reason, counts in summary["by_reason"].items():
        print(f"{reason:18}{counts['dropped']:>10,}{counts['relabelled']:>12,}")
    before, after = summary["rows_before"], summary["rows_after"]
    told = ", ".join(f"{split} {after[split]:,} of {before[split]:,}" for split in before)
    took = sum(summary["seconds"].values())
    print(f"kept {sum(after.values()):,} of {sum(before.values()):,} images ({told}) in {took:.0f}s")
    output = summary["output"]
    print(f"audit: {output}/audit.csv  next: landmark train {output}")
