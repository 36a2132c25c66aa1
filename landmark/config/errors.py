"""Exceptions for user errors, and suggestions for misspelled names."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix. Its message is one line, shown without a traceback."""


class Stopped(UserError):
    """The work stopped before its end. The same command resumes it, for train and tune with --resume. The exit code is
    75 (EX_TEMPFAIL of sysexits.h)."""


STOPPED = "stopped by SIGTERM; run the same command again to resume (train and tune: with --resume)"
"""Message after SIGTERM, which `ray job stop`, Kubernetes and SLURM send."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return a hint that names the valid word nearest to `word`, or all of a short list.

    >>> nearest("resnt50", ["resnet50", "vgg16"])
    "did you mean 'resnet50'?"
    """
    words = sorted(set(valid))
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(words) <= 12:
        return f"expected one of: {', '.join(words)}"
    return f"there are {len(words)} valid names, such as {', '.join(words[:3])}"


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless `condition` is true. The dataclasses use it for their checks."""
    if not condition:
        raise ValueError(message)
