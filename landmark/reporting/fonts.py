"""Names in pictures: drawn in a font of this machine that has their characters, else by number. No font is shipped: those of
Chinese are larger than this package. On a page names are text, which the browser's own fonts show."""

from collections.abc import Sequence
from functools import cache

from matplotlib.font_manager import fontManager, get_font

DEFAULT = "DejaVu Sans"
LAST_RESORT = "Last Resort"
"""A font that draws a box with the block's name for every character."""
MISSING_GLYPH = r"Glyph .* missing from|Matplotlib currently does not support"
"""What matplotlib warns of where no font has a character."""


def drawable(names: Sequence[str], labels: Sequence[int]) -> tuple[list[str], list[str]]:
    """Return what to draw for each name, and the font families that have its characters, the default first.

    labels: the classes' numbers, same length. A name with characters that no font has is drawn as `label 17`, the number of
    per_class.csv.
    """
    families, left = [DEFAULT], {character for name in names for character in name} - _characters(DEFAULT)
    for family in _families() if left else ():
        if found := left & _characters(family):
            families.append(family)
            left -= found
        if not left:
            break
    shown = [f"label {label}" if left & set(name) else name for name, label in zip(names, labels, strict=True)]
    return shown, families


@cache
def _families() -> list[str]:
    names = {font.name for font in fontManager.ttflist if not font.name.startswith(LAST_RESORT)}
    # Fonts without serifs first, as the default is.
    return sorted(names - {DEFAULT}, key=lambda name: ("Sans" not in name, name))


@cache
def _characters(family: str) -> frozenset[str]:
    """Return the characters of a family's regular font, none where it cannot be read."""
    fonts = [font for font in fontManager.ttflist if font.name == family]
    fonts.sort(key=lambda font: (font.style != "normal", str(font.weight) not in ("400", "normal")))
    try:
        return frozenset(map(chr, get_font(fonts[0].fname).get_charmap())) | {"\n"}
    except (OSError, RuntimeError, IndexError):  # a font file that is gone or damaged
        return frozenset()
