"""Fonts for class names in PNG plots. A name that no installed font can render is replaced by its label.

No font is shipped, because Chinese fonts are larger than this package. On the HTML page the browser renders names.
"""

from collections.abc import Sequence
from functools import cache

from matplotlib.font_manager import fontManager, get_font

DEFAULT = "DejaVu Sans"
LAST_RESORT = "Last Resort"
"""A font that draws a box with the name of the Unicode block for every character."""
MISSING_GLYPH = r"Glyph .* missing from|Matplotlib currently does not support"
"""Pattern of matplotlib's warnings about characters that no font contains."""


def drawable_names(names: Sequence[str], labels: Sequence[int]) -> tuple[list[str], list[str]]:
    """Return the text to draw for each name, and the font families that cover the characters, the default first.

    labels: the class labels, same length as names. A name that no font can render is drawn as `label 17`, the label in
    per_class.csv.
    """
    families, missing = [DEFAULT], {character for name in names for character in name} - _characters(DEFAULT)
    for family in _families() if missing else ():
        if found := missing & _characters(family):
            families.append(family)
            missing -= found
        if not missing:
            break
    shown = [f"label {label}" if missing & set(name) else name for name, label in zip(names, labels, strict=True)]
    return shown, families


@cache
def _families() -> list[str]:
    names = {font.name for font in fontManager.ttflist if not font.name.startswith(LAST_RESORT)}
    # Sans-serif fonts first, to match the default.
    return sorted(names - {DEFAULT}, key=lambda name: ("Sans" not in name, name))


@cache
def _characters(family: str) -> frozenset[str]:
    """Return the characters of a family's regular font, or an empty set if it cannot be read."""
    fonts = [font for font in fontManager.ttflist if font.name == family]
    fonts.sort(key=lambda font: (font.style != "normal", str(font.weight) not in ("400", "normal")))
    try:
        return frozenset(map(chr, get_font(fonts[0].fname).get_charmap())) | {"\n"}
    except (OSError, RuntimeError, IndexError):  # the font file is missing or corrupt
        return frozenset()
