"""Class names in any script: text on the page, legible in PNG plots, no warnings from matplotlib."""

import io
import warnings

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from landmark.reporting import fonts
from landmark.reporting.plots import classes_figure, classes_png, confusion_png, curves_svg, svg_text

NAMES = ["故宫博物院", "วัดอรุณราชวราราม", "قلعة الحصن", "Zamek Książ", "Saint-Étienne"]


@pytest.fixture
def strict():
    """Turns warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_page_shows_names_as_text_without_warnings(strict: None):
    chart = svg_text(classes_figure(np.arange(5, 10), NAMES))
    assert all(name in chart for name in NAMES) and "system-ui" in chart
    assert NAMES[0] in curves_svg({NAMES[0]: [(1, 0.5), (2, 0.6)]}, fractions=True)


def test_png_shows_label_if_no_font_has_the_characters(strict: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fonts, "_families", list)  # a machine without additional fonts
    shown, families = fonts.drawable_names(NAMES, [3, 1, 4, 0, 2])
    assert shown == ["label 3", "label 1", *NAMES[2:]] and families == ["DejaVu Sans"]
    confusion = pa.table({"true": [0, 1, 2], "predicted": [0, 2, 2], "count": [3, 4, 5]})
    for picture in (classes_png(np.arange(5, 10), NAMES), confusion_png(confusion, NAMES)):
        assert np.asarray(Image.open(io.BytesIO(picture)).convert("L")).min() < 100


def test_installed_font_with_the_characters_is_used(strict: None):
    # The default font lacks mathematical letters. A font that matplotlib includes has them.
    letter = next(
        c for c in sorted(fonts._characters("STIXGeneral") - fonts._characters("DejaVu Sans")) if c.isprintable()
    )
    shown, families = fonts.drawable_names([f"Tower {letter}", "plain"], [0, 1])
    assert shown == [f"Tower {letter}", "plain"] and families[0] == "DejaVu Sans" and len(families) == 2
    assert letter in fonts._characters(families[1])
    assert classes_png(np.array([3, 4]), [f"Tower {letter}", "plain"])[:4] == b"\x89PNG"
    assert fonts.drawable_names(["plain"], [0]) == (["plain"], ["DejaVu Sans"])
