"""The page of metrics."""

import ast
import re

from scripts.reference.markdown import code, table
from scripts.reference.source import definition, sources

METRICS = (
    ("Accuracy", ("top_k", "macro_recall", "macro_precision")),
    ("Global average precision (GAP)", ("gap", "gap_order")),
    ("Calibration", ("error", "confidence_bins")),
    ("Rejection of images without a landmark", ("rejection_auroc", "rejection_threshold")),
    ("Class frequency", ("class_bands",)),
    ("Trivial baselines", ("random_top_k", "majority_top_k", "random_gap", "majority_gap")),
    ("Confidence intervals", ("intervals", "calibration_interval")),
    ("Comparison of two models", ("mcnemar",)),
    ("Nearest neighbors", ("knn_vote",)),
)
"""Headings of the page of metrics, and the functions in landmark/evaluation and landmark/retrieval whose docstrings define them."""


KEYS = (
    ("`top1`, `top5`, `top10`", "Top-k accuracy.", "all images with a landmark"),
    (
        "`macro_recall`, `macro_precision`",
        "Mean over the classes that occur in the split.",
        "all images with a landmark",
    ),
    ("`gap`", "Global average precision.", "all images"),
    ("`ece`", "Expected calibration error.", "all images with a landmark"),
    ("`loss`", "Cross entropy. k-NN has none.", "all images with a landmark"),
    ("`rejection_auroc`", "AUROC of the best score, with `--distractors`.", "all images"),
    ("`rejection`", "Threshold, kept and refused fraction, with `--distractors`.", "all images"),
    ("`bands`", "Top-k and macro recall of many-shot, medium-shot and few-shot classes.", "the classes of a band"),
    ("`random_…`, `majority_…`", "The same metrics of the trivial baselines.", "the same images"),
    ("`intervals`", "95% intervals, low and high.", "bootstrap replicates"),
    ("`lost_images`", "Number of images lost to corrupt shards, with `--corrupt skip`.", "the split"),
)


EPOCH_METRICS = {
    "train_loss": "Mean loss of the training images.",
    "train_top1": "Top-1 accuracy on the training images, as augmented.",
    "val_loss": "Mean loss on the validation split.",
    "val_top1": "Top-1 accuracy on the validation split.",
    "val_top5": "Top-5 accuracy on the validation split.",
    "val_macro_recall": "Macro recall on the validation split.",
    "val_calibrated_loss": "`val_loss` with the logits divided by `temperature`.",
    "temperature": "Factor by which the checkpoint's logits are divided, so that validation probabilities are calibrated.",
    "images_per_s": "Training images per second, over all processes.",
    "data_wait_fraction": "Fraction of the training time that was spent waiting for data.",
    "storage_wait_fraction": "Part of `data_wait_fraction` for reading from the storage or a cache.",
    "decoding_wait_fraction": "Part of `data_wait_fraction` for decoding images.",
    "transfer_wait_fraction": "Part of `data_wait_fraction` for copying through Ray's object store and to the GPU.",
    "epoch_seconds": "Wall time of the epoch, validation included.",
    "lost_images": "Number of images that could not be read, with `loader.corrupt skip`.",
    "skipped_steps": "Number of steps that were not finite, with `optimizer.nonfinite skip`.",
}
"""Metrics of an epoch; each must be a key in the code of landmark/training."""


def metrics() -> str:
    """Return the page of metrics; raises SystemExit if the code has no such metric of an epoch."""
    text = "".join(text for name, text in sources().items() if name.startswith("training/"))
    missing = [name for name in EPOCH_METRICS if f'"{name}"' not in text]
    if missing:
        raise SystemExit(f"scripts/reference: error: not in landmark/training: {', '.join(missing)}")
    parts = [
        "# Metrics",
        "[`landmark evaluate`](command-line.md#evaluate) writes metrics.json with these keys. "
        "[Evaluation](../explanation/evaluation.md) explains why they were chosen.",
        table(("Key", "Meaning", "Computed over"), KEYS),
        "During training, history.csv and TensorBoard have these metrics per epoch. `--monitor` names the one that chooses the "
        "best checkpoint.",
        table(("Metric", "Meaning"), [(code(name), text) for name, text in EPOCH_METRICS.items()]),
        "The definitions below are the docstrings of the functions that compute the metrics.",
    ]
    for heading, names in METRICS:
        parts.append(f"## {heading}")
        for name in names:
            node = definition(name, ("evaluation/", "retrieval/"))
            text = re.sub(r"(?m)^Return ", "", ast.get_docstring(node) or "", count=1)
            paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
            text = "\n\n".join([f"{paragraphs[0][:1].upper()}{paragraphs[0][1:]}", *paragraphs[1:]])
            parts += [f"### `{name}`", text.replace("|", "\\|").replace("<", "&lt;")]
    return "\n\n".join(parts)
