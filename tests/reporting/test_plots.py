"""The class size plot for few classes and for all classes of GLDv2."""

import io

import numpy as np
import pytest
from PIL import Image

from landmark.reporting.plots import classes_png


@pytest.mark.parametrize("classes", [2, 24, 40, 41, 203_094])
def test_class_size_plot_fits_a_screen(classes):
    counts = np.maximum(1, 10_247 * np.arange(1, classes + 1) ** -0.75).astype(int)
    image = Image.open(io.BytesIO(classes_png(counts, [f"Église $n° {number}" for number in range(classes)])))
    assert image.format == "PNG" and 150 <= image.height <= 1000 and 600 <= image.width <= 1200
    pixels = np.asarray(image.convert("L"))
    assert (pixels < 128).mean() > 0.005


def test_class_size_plot_of_equal_and_empty_classes():
    for counts in (np.full(100, 50), np.zeros(50, dtype=int), np.array([0, 3])):
        assert classes_png(counts, [str(number) for number in range(len(counts))]).startswith(b"\x89PNG")
