"""Text output of an evaluation: the table that `landmark evaluate` prints."""

from typing import Any

from landmark.evaluation.comparison import Comparison


def print_summary(summary: dict[str, Any]) -> None:
    """Print a split's metrics as a table: the model, its 95% interval, and the baselines."""
    details = f"; {summary['lost_images']:,} images lost in corrupt shards" if "lost_images" in summary else ""
    distractors = summary["rows_without_landmark"]
    details += f"; plus {distractors:,} images without a landmark" if distractors else ""
    print(f"{summary['split']}: {summary['rows']:,} images of {summary['classes_present']:,} classes{details}")
    knn = summary.get("knn", {})

    def knn_cell(key: str, form: str = ".2%") -> str:
        return f"{knn[key]:>12{form}}" if key in knn else ""

    if "tta" in summary:
        print(f"test-time augmentation: {summary['tta']}")
    if "gallery_images" in summary:
        print(f"k-NN: {summary['voting']} nearest neighbors of {summary['gallery_images']:,} gallery images")
    print(f"{'':18}{'model':>9}{'95% interval':>19}{'majority':>10}{'random':>10}" + (f"{'k-NN':>12}" if knn else ""))
    for key in [*(key for key in summary if key.startswith("top")), "gap"]:
        name = "GAP" if key == "gap" else f"top-{key[3:]}"
        baselines = f"{summary['majority_' + key]:>10.2%}{summary['random_' + key]:>10.2%}"
        print(f"{name:18}{summary[key]:>9.2%}{_interval(summary, key):>19}{baselines}{knn_cell(key)}")
    if "distractors_refused" in summary:
        print(f"{summary['distractors_refused']:,} distractor files are not readable images (skipped)")
    for key, name in (
        ("macro_recall", "macro recall"),
        ("macro_precision", "macro precision"),
        ("ece", "calibration error"),
    ):
        print(f"{name:18}{summary[key]:>9.2%}{_interval(summary, key):>19}{'':20}{knn_cell(key)}".rstrip())
    if distractors:
        auroc = knn_cell("rejection_auroc", ".4f")
        print(f"{'rejection AUROC':18}{summary['rejection_auroc']:>9.4f}{'':19}{'':>10}{0.5:>10.4f}{auroc}")
        for method, rejection in (("", summary["rejection"]), (" of k-NN", knn.get("rejection"))):
            if rejection:
                print(
                    f"rejection threshold{method} {rejection['threshold']:.3f}: keeps {rejection['kept']:.1%} of the "
                    f"landmark images and rejects {rejection['refused']:.1%} of the others"
                )
    for band in summary["bands"]:
        print(
            f"{band['band']:6} {band['classes']:,} classes of {band['least_train_images']:,} to "
            f"{band['most_train_images']:,} training images: top-1 {band['top1']:.2%} of {band['rows']:,}, "
            f"macro recall {band['macro_recall']:.2%}"
        )
    if "loss" in summary:
        print(f"loss {summary['loss']:.3f}")


def _interval(summary: dict[str, Any], key: str) -> str:
    low, high = summary.get("intervals", {}).get(key, (None, None))
    return "" if low is None else f"{low:.2%} - {high:.2%}"


def print_comparison(comparison: Comparison) -> None:
    """Print the differences between two models."""
    print(
        f"correct: both {comparison.both_correct:,}, only the first {comparison.only_a:,}, only the second "
        f"{comparison.only_b:,}, neither {comparison.both_incorrect:,}; McNemar's p {comparison.mcnemar_p:.3g}"
    )
    for name, metric in comparison.differences.items():
        print(
            f"{'GAP' if name == 'gap' else 'top-' + name[3:]:8}{metric.a:>9.2%}{metric.b:>9.2%}  difference "
            f"{metric.difference:+.2%} ({metric.interval.low:+.2%} to {metric.interval.high:+.2%})"
        )
