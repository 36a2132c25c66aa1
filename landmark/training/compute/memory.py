"""Memory of a process that trains on CPUs: kept between steps, returned to the system between trials."""

import ctypes
import functools
import gc
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's mallopt(3)."""


@functools.cache
def _libc() -> ctypes.CDLL | None:
    """Return glibc if this process uses it."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def disable_malloc_trim() -> None:
    """Make the process reuse freed memory instead of returning it to the system, which would map it again page by page.

    Each step allocates and frees its activations. For ResNet-50 at 224 px and batch size 32 that causes 700,000 page
    faults, a fifth of the step time.
    """
    if (libc := _libc()) is not None:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def free_memory(device: torch.device) -> None:
    """Return what an attempt that ran out of memory had allocated, to the device or to the system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        trim_memory()


def trim_memory() -> None:
    """Return free memory to the system."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)
