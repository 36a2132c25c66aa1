"""Masking of credentials in URIs, for all text that is written or shown."""

import re

_USER = re.compile(r"""(?<=://)[^/\s"'?#]+@""")
_VALUE = re.compile(
    r"""([?&][\w.-]*(?:token|secret|password|passwd|credential|signature|sig|api_?key|access_?key(?:_?id)?|auth)=)[^&\s"'#]+""",
    re.IGNORECASE,
)


def mask_credentials(text: str) -> str:
    """Return a text with all users, passwords, tokens and signatures in URIs removed or masked.

    >>> mask_credentials("http://me:secret@host/x?page=1&token=abc")
    'http://host/x?page=1&token=***'
    """
    return _VALUE.sub(r"\1***", _USER.sub("", text))
