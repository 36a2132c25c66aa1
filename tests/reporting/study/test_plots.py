"""Details of a study's charts: formatted values, shared labels, reproducible output."""

import numpy as np
import pytest

from landmark.reporting.study.effects import effect_of
from landmark.reporting.study.plots import _merged_labels, effects_svg, learning_curves_svg
from landmark.reporting.study.series import Curve
from landmark.reporting.tables import shown_metric
from tests.reporting.study.test_effects import board


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("val_top1", 0.7512, "75.1%"),
        ("val_loss", 1.2345, "1.23"),
        ("val_loss", 4000.0, "4,000"),
        ("images_per_s", 59.41, "59.4"),
        ("parameters", 25_557_032, "25.6 M"),
    ],
)
def test_metrics_are_formatted_for_readers(metric, value, text):
    assert shown_metric(metric, value) == text


def test_trials_at_nearly_the_same_point_share_a_label():
    x, y = np.array([1.0, 1.01, 5.0]), np.array([0.5, 0.5, 0.9])
    assert _merged_labels([2.0, 1.0, 3.0], x, y, 10.0, 1.0) == [([1.0, 2.0], (1.01, 0.5)), ([3.0], (5.0, 0.9))]


def test_charts_are_reproducible():
    effect = effect_of(
        board("optimizer.name", list("aabb") * 3, [0.1 * n for n in range(12)]), "optimizer.name", "val_top1"
    )
    assert effects_svg([effect], "val_top1", None) == effects_svg([effect], "val_top1", None)


def test_charts_of_equal_values_and_single_points():
    curves = [
        Curve(trial=f"t{n}", status=status, rank=n, epochs=np.array([1]), values=np.array([0.5]))
        for n, status in enumerate(["finished", "stopped early", "finished"], 1)
    ]
    assert learning_curves_svg(curves, "val_top1").startswith("<svg ")
    effect = effect_of(board("optimizer.name", list("ab"), [0.0, 0.0]), "optimizer.name", "val_top1")
    assert effects_svg([effect], "val_top1", 1).startswith("<svg ")
