"""Requirements of torch.compile on a machine: a compiler and Python's headers."""

import os
import shutil
import socket
import sysconfig
from pathlib import Path

import torch

from landmark.config import UserError


def check_compiler(device: torch.device) -> None:
    """Raise UserError that lists missing packages unless this machine can run torch.compile.

    torch.compile generates C++ for CPUs. For GPUs, Triton generates launchers in C. Both include Python's headers.
    """
    missing = _missing(device)
    if missing is not None:
        raise UserError(
            f"compute.compile requires {missing}, which {socket.gethostname()} does not have; "
            "install it (Debian: apt-get install g++ python3-dev), or set compute.compile to false"
        )


def _missing(device: torch.device) -> str | None:
    if device.type == "cuda":
        # Triton's order: CC, else gcc or clang.
        wanted = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
        kind = "a C compiler"
    else:
        from torch._inductor import config  # slow: takes a second, needed only here

        found = config.cpp.cxx
        wanted = [name for name in (found if isinstance(found, list | tuple) else [found]) if name]
        kind = "a C++ compiler"
    if not any(shutil.which(name) for name in wanted):
        return f"{kind} ({' or '.join(wanted)})"
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return None if headers.exists() else f"Python's headers ({headers})"
