"""Text output of an evaluation: the table that `landmark evaluate` prints."""

from typing import Any

from landmark.evaluation.comparison import Comparison


def print_summary(summary: dict[str, Any]) -> None:
    """Print a split's metrics as a table: the model, its 95% interval, and the baselines."""
    lost = f"; {summary['lost_images']:,} images lost in corrupt shards" if "lost_images" in summary else ""
    strangers = summary["rows_without_landmark"]
    lost += f"; plus {strangers:,} images without a landmark" if strangers else ""
    print(f"{summary['split']}: {summary['rows']:,} images of {summary['classes_present']:,} classes{lost}")
    near = summary.get("neighbours", {})

    def beside(key: str, form: str = ".2%") -> str:
        return f"{near[key]:>12{form}}" if key in near else ""

    if "gallery_images" in summary:
        print(f"k-NN: {summary['voting']} nearest neighbours of {summary['gallery_images']:,} gallery images")
    print(
        f"{'':18}{'model':>9}{'95% interval':>19}{'majority':>10}{'random':>10}"
        + (f"{'neighbours':>12}" if near else "")
    )
    for key in [*(key for key in summary if key.startswith("top")), "gap"]:
        name = "GAP" if key == "gap" else f"top-{key[3:]}"
        trivial = f"{summary['majority_' + key]:>10.2%}{summary['random_' + key]:>10.2%}"
        print(f"{name:18}{summary[key]:>9.2%}{_interval(summary, key):>19}{trivial}{beside(key)}")
    if "distractors_refused" in summary:
        print(f"{summary['distractors_refused']:,} distractor files are not readable images (skipped)")
    for key, name in (
        ("macro_recall", "macro recall"),
        ("macro_precision", "macro precision"),
        ("ece", "calibration error"),
    ):
        print(f"{name:18}{summary[key]:>9.2%}{_interval(summary, key):>19}{'':20}{beside(key)}".rstrip())
    if strangers:
        auroc = beside("rejection_auroc", ".4f")
        print(f"{'rejection AUROC':18}{summary['rejection_auroc']:>9.4f}{'':19}{'':>10}{0.5:>10.4f}{auroc}")
        for by, each in (("", summary["rejection"]), (" of k-NN", near.get("rejection"))):
            if each:
                print(
                    f"rejection threshold{by} {each['threshold']:.3f}: keeps {each['kept']:.1%} of the landmark images and rejects "
                    f"{each['refused']:.1%} of the others"
                )
    for band in summary["bands"]:
        print(
            f"{band['band']:6} {band['classes']:,} classes of {band['least_train_images']:,} to {band['most_train_images']:,} "
            f"training images: top-1 {band['top1']:.2%} of {band['rows']:,}, macro recall {band['macro_recall']:.2%}"
        )
    if "loss" in summary:
        print(f"loss {summary['loss']:.3f}")


def _interval(summary: dict[str, Any], key: str) -> str:
    low, high = summary.get("intervals", {}).get(key, (None, None))
    return "" if low is None else f"{low:.2%} - {high:.2%}"


def print_comparison(found: Comparison) -> None:
    """Print the differences between two models."""
    print(
        f"correct: both {found.both_right:,}, only the first {found.only_a:,}, only the second {found.only_b:,}, neither "
        f"{found.both_wrong:,}; McNemar's p {found.mcnemar_p:.3g}"
    )
    for name, each in found.differences.items():
        print(
            f"{'GAP' if name == 'gap' else 'top-' + name[3:]:8}{each.a:>9.2%}{each.b:>9.2%}  difference {each.difference:+.2%} "
            f"({each.interval.low:+.2%} to {each.interval.high:+.2%})"
        )
