"""Names in any script: text on the page, legible in pictures, and no warning from drawing."""

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
    """Warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_the_page_has_the_names_as_text_and_nothing_warns(strict: None):
    chart = svg_text(classes_figure(np.arange(5, 10), NAMES))
    assert all(name in chart for name in NAMES) and "system-ui" in chart
    assert NAMES[0] in curves_svg({NAMES[0]: [(1, 0.5), (2, 0.6)]}, shares=True)


def test_pictures_show_the_number_where_no_font_has_the_characters(strict: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fonts, "_families", list)  # a machine without further fonts
    shown, families = fonts.drawable(NAMES, [3, 1, 4, 0, 2])
    assert shown == ["label 3", "label 1", *NAMES[2:]] and families == ["DejaVu Sans"]
    confusion = pa.table({"true": [0, 1, 2], "predicted": [0, 2, 2], "count": [3, 4, 5]})
    for picture in (classes_png(np.arange(5, 10), NAMES), confusion_png(confusion, NAMES)):
        assert np.asarray(Image.open(io.BytesIO(picture)).convert("L")).min() < 100


def test_a_font_of_the_machine_that_has_the_characters_is_used(strict: None):
    # Mathematical letters: the default font lacks them, one that matplotlib brings has them.
    letter = next(
        c for c in sorted(fonts._characters("STIXGeneral") - fonts._characters("DejaVu Sans")) if c.isprintable()
    )
    shown, families = fonts.drawable([f"Tower {letter}", "plain"], [0, 1])
    assert shown == [f"Tower {letter}", "plain"] and families[0] == "DejaVu Sans" and len(families) == 2
    assert letter in fonts._characters(families[1])
    assert classes_png(np.array([3, 4]), [f"Tower {letter}", "plain"])[:4] == b"\x89PNG"
    assert fonts.drawable(["plain"], [0]) == (["plain"], ["DejaVu Sans"])
