"""Text files on a command line: on this machine or in object storage."""

from importlib.resources.abc import Traversable
from pathlib import Path

from landmark.config import UserError
from landmark.config.text import decode_text, read_text


def named_text(name: str, what: str = "file") -> str:
    """Return the text of a file by its path or URI. Raises UserError if it cannot be read."""
    if "://" not in name:
        return read_text(Path(name).expanduser(), name, what)
    from landmark.storage import NotFound, locate  # takes 0.2 s, which a local file does not need

    try:
        return decode_text(locate(name).read_bytes(), name)
    except NotFound:
        raise UserError(f"{name}: the {what} does not exist; check the URI") from None


def built_in_or_named(name: str, folder: Traversable, label: str, what: str) -> tuple[str, str] | None:
    """Return the source and text of a built-in file `name`.yaml in a folder, or of the file that `name` is; None if neither.

    label: the folder in messages.
    """
    if name in yaml_names(folder):
        return f"{label}/{name}.yaml", (folder / f"{name}.yaml").read_text(encoding="utf-8")
    return (name, named_text(name, what)) if is_named_file(name) else None


def yaml_names(folder: Traversable) -> list[str]:
    """Return the names of the YAML files in a folder, sorted, without their ending."""
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def is_named_file(name: str) -> bool:
    """Return whether a name is a file: a URI, or an existing path on this machine."""
    return "://" in name or Path(name).expanduser().is_file()
