"""URIs of storage: which scheme, bucket and key, or local path a text names. A key or file name is never parsed as a URL."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from landmark.config import UserError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file):/", re.IGNORECASE)


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI in lower case; a plain path and a file: URI, which name files of this machine, have ''."""
    found = _SCHEME.match(uri)
    scheme = (found[1] or found[2]).lower() if found else ""
    return "" if scheme == "file" else scheme


def absolute(uri: str | Path) -> str:
    """Return a path or URI as a Location has it: files of this machine by their absolute path."""
    text = str(uri)
    if scheme_of(text):
        return text
    if _SCHEME.match(text):
        return os.path.abspath(_file_path(text))
    return os.path.abspath(os.path.expanduser(text))


def joined(uri: str, name: str) -> str:
    """Return the URI of a file below a folder; the name is taken literally."""
    part = quote(name, safe="/") if scheme_of(uri) in ("http", "https") else name
    return f"{uri.rstrip('/')}/{part}"


def split_s3(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of an s3:// URI; the key is all that follows the bucket, as the AWS tools have it."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not bucket:
        raise UserError(f"{uri}: no bucket; expected s3://bucket/key")
    return bucket, key.rstrip("/")


def _file_path(uri: str) -> str:
    """Return the path that a file: URI names: percent-encoded (RFC 8089), but `#` and `?` stand for themselves."""
    rest = uri[len("file:") :]
    if rest.startswith("//"):
        host, _, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise UserError(f"{uri}: names the host {host!r}; expected file:///path or a plain path")
        rest = f"/{path}"
    return unquote(rest)
