"""Details of a study's pictures: how values are shown, labels that share a place, pictures that repeat."""

import numpy as np
import pytest

from landmark.reporting.study.effects import effect_of
from landmark.reporting.study.plots import _together, effects_svg, learning_curves_svg
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
def test_metrics_are_shown_as_people_say_them(metric, value, text):
    assert shown_metric(metric, value) == text


def test_trials_of_nearly_one_place_share_a_label():
    x, y = np.array([1.0, 1.01, 5.0]), np.array([0.5, 0.5, 0.9])
    assert _together([2.0, 1.0, 3.0], x, y, 10.0, 1.0) == [([1.0, 2.0], (1.01, 0.5)), ([3.0], (5.0, 0.9))]


def test_pictures_of_one_study_are_the_same_each_time():
    effect = effect_of(
        board("optimizer.name", list("aabb") * 3, [0.1 * n for n in range(12)]), "optimizer.name", "val_top1"
    )
    assert effects_svg([effect], "val_top1", None) == effects_svg([effect], "val_top1", None)


def test_equal_values_and_single_points_are_drawn():
    one = [
        Curve(trial=f"t{n}", status=status, rank=n, epochs=np.array([1]), values=np.array([0.5]))
        for n, status in enumerate(["finished", "stopped early", "finished"], 1)
    ]
    assert learning_curves_svg(one, "val_top1").startswith("<svg ")
    effect = effect_of(board("optimizer.name", list("ab"), [0.0, 0.0]), "optimizer.name", "val_top1")
    assert effects_svg([effect], "val_top1", 1).startswith("<svg ")
