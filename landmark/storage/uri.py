"""URIs of storage: scheme, bucket and key, or local path. A key or file name is never parsed as a URL."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from landmark.config import UserError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file):/", re.IGNORECASE)


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI in lower case. It is '' for a plain path or a file: URI, which are local files."""
    found = _SCHEME.match(uri)
    scheme = (found[1] or found[2]).lower() if found else ""
    return "" if scheme == "file" else scheme


def absolute(uri: str | Path) -> str:
    """Return a path or URI as a Location stores it, with absolute paths for local files."""
    text = str(uri)
    if scheme_of(text):
        return text
    if _SCHEME.match(text):
        return os.path.abspath(_file_path(text))
    return os.path.abspath(os.path.expanduser(text))


def joined(uri: str, name: str) -> str:
    """Return the URI of a file below a folder. The name is used literally."""
    part = quote(name, safe="/") if scheme_of(uri) in ("http", "https") else name
    return f"{uri.rstrip('/')}/{part}"


def split_s3(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of an s3:// URI. The key is everything after the bucket, as in the AWS tools."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not bucket:
        raise UserError(f"{uri}: no bucket; expected s3://bucket/key")
    return bucket, key.rstrip("/")


def _file_path(uri: str) -> str:
    """Return the path of a file: URI. It is percent-encoded (RFC 8089), but `#` and `?` are literal."""
    rest = uri[len("file:") :]
    if rest.startswith("//"):
        host, _, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise UserError(f"{uri}: contains the host {host!r}; expected file:///path or a plain path")
        rest = f"/{path}"
    return unquote(rest)
