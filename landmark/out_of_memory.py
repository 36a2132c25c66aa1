"""Out-of-memory errors as one line with the peak memory. Imports neither torch nor Ray, which only matter if already
loaded."""

import errno
import re
import resource
import sys
from typing import Any

SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""Fragments of torch's out-of-memory messages."""
MIB, GIB = 1 << 20, 1 << 30


def out_of_memory(error: BaseException) -> str | None:
    """Return a description of an out-of-memory error with this process's peak memory. None for other errors."""
    if killed := killed_for_memory(error):
        return killed
    text = str(error)
    known = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not known and not (isinstance(error, RuntimeError) and any(sign in text for sign in SIGNS)):
        return None
    found = re.search(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", text, re.IGNORECASE)
    wanted = ""
    if found is not None:
        size = in_units(int(found[1])) if found[2] == "bytes" else f"{found[1]} {found[2]}"
        wanted = f", and could not allocate {size} more"
    torch: Any = sys.modules.get("torch")
    if torch is not None and ("CUDA" in text or "CUBLAS" in text or "CUDNN" in text):
        device = torch.cuda.current_device()
        peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"out of GPU memory: the process used up to {in_units(peak)} of {in_units(total)}{wanted}"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"out of memory: the process used up to {in_units(peak)}{wanted}"


def killed_for_memory(error: BaseException) -> str | None:
    """Return a description of an out-of-memory kill by Ray. None for other errors."""
    ray: Any = sys.modules.get("ray")
    cause = getattr(error, "health_check_failure", error)
    if ray is None or not isinstance(cause, ray.exceptions.OutOfMemoryError):
        return None
    found = re.search(r"Memory on the node \(IP: ([^,)]*).*?\) was ([\d.]+) ?GB.*? / ([\d.]+) ?GB", str(cause))
    where = f" when {found[2]} of {found[3]} GB were in use on its node ({found[1]})" if found else ""
    return f"out of memory: Ray killed a process{where}"


def in_units(size: int) -> str:
    """Format a number of bytes as MiB or GiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
