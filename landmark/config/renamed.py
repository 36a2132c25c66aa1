"""Names that earlier versions used: keys of configs, and values. Files with them still load, with a warning."""

import sys
from collections.abc import Mapping
from typing import Any

KEYS = {
    "damaged": "corrupt",
    "deck": "reference",
    "margin_least": "min_margin",
    "max_fault_share": "max_fault_fraction",
    "max_reject_share": "max_reject_fraction",
    "mix_share": "mix_prob",
    "neighbours": "neighbors",
}
"""Key of a config in earlier versions -> key now, without the groups before it."""
VALUES = {
    "by": {"neighbours": "knn"},
    "base": {"deck": "reference"},
    "backbone": {
        "deck_mlp": "reference_mlp",
        "deck_cnn_max": "reference_cnn_max",
        "deck_cnn_avg": "reference_cnn_avg",
    },
    "--recipe": {"deck": "reference"},
    "--space": {"deck": "reference"},
}
"""Key of a config -> its values in earlier versions -> the same values now."""
REMOVED = {("TuneConfig", "resize_once"): "recipe.loader.cache_format"}
"""Config and key of a switch that this version does not have -> the key of what replaces it."""
FLAGS = {"--resize-once": "--cache-format"}
"""Flag of a removed switch -> the flag of what replaces it."""
_warned: set[str] = set()


def current_key(key: str, source: str) -> str:
    """Return the name that a key has now, such as `model.head.min_margin` for `model.head.margin_least`. Warns once."""
    group, dot, name = key.rpartition(".")
    if name not in KEYS:
        return key
    new = f"{group}{dot}{KEYS[name]}"
    _warn(source, f"'{key}' is now '{new}'")
    return new


def is_removed(kind: str, key: str, value: Any, source: str) -> bool:
    """Return whether a key is a switch that this version does not have. Warns once if the switch was on."""
    new = REMOVED.get((kind, key))
    if new is not None and value:
        _warn(source, f"'{key}' was removed and has no effect; set '{new}' and the other options of the cache instead")
    return new is not None


def current_value(key: str, value: Any, source: str) -> Any:
    """Return what a value is called now. Lists and domains of a search space are searched through."""
    if isinstance(value, list | tuple):
        return type(value)(current_value(key, item, source) for item in value)
    if isinstance(value, Mapping):
        cases = value.get("by") if isinstance(value.get("by"), str) else None  # the key that a domain depends on
        by = {} if cases is None else {"by": (cases := current_key(cases, source))}
        values = {
            name if cases is None else current_value(cases, name, source): current_value(key, item, source)
            for name, item in value.items()
        }
        return values | by
    new = VALUES.get(key.rpartition(".")[2], {}).get(value) if isinstance(value, str) else None
    if new is None:
        return value
    _warn(source, f"'{value}' of '{key}' is now '{new}'")
    return new


def current_point(point: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return dotted keys and their values, such as a trial's point, with the names of this version."""
    return {(new := current_key(key, source)): current_value(new, value, source) for key, value in point.items()}


def current_flag(flag: str) -> str | None:
    """Return the flag that an earlier version's flag is called now, None if it was not renamed."""
    if flag in FLAGS:
        return FLAGS[flag]
    group, separator, name = flag.removeprefix("--").rpartition(".")
    new = KEYS.get(name.replace("-", "_"))
    return None if new is None else f"--{group}{separator}{new.replace('_', '-')}"


def _warn(source: str, text: str) -> None:
    """Print a warning once per name, with the first file that uses it."""
    if text not in _warned:
        _warned.add(text)
        print(f"warning: {source}: {text}", file=sys.stderr, flush=True)
