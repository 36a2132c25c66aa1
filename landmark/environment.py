"""The environment of a run for its results: the command, package versions, the machine and the cluster."""

import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import psutil

from landmark import __version__
from landmark.config import mask_credentials

PACKAGES = ("ray", "torch", "torchvision", "timm", "pyarrow", "numpy", "pandas", "simplejpeg", "opencv-python-headless")
"""Packages that affect results, in addition to landmark."""


def describe_environment() -> dict[str, Any]:
    """Return this process's environment, ready for JSON.

    - command: the command line
    - started: start of this process, ISO 8601 in UTC
    - python, platform: text
    - packages: versions of the installed packages, by name
    - machine: cpu (name), cpus (logical CPUs), memory_gib, gpus (names)
    - cluster, if this process is connected to Ray: nodes, cpus, gpus, memory_gib, accelerators (names)

    Host names and passwords in URIs are left out.
    """
    started = datetime.datetime.fromtimestamp(psutil.Process().create_time(), datetime.UTC)
    described: dict[str, Any] = {
        "command": command_line(sys.argv),
        "started": started.isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "machine": {
            "cpu": _cpu_name(),
            "cpus": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": _gpu_names(),
        },
    }
    if cluster := _cluster():
        described["cluster"] = cluster
    return described


def command_line(argv: list[str]) -> str:
    """Return a process's arguments as a command. A command that runs as a module is shown as a subcommand of
    `landmark`."""
    program = Path(argv[0]) if argv else Path("landmark")
    if program.parent.name == "landmark" and program.suffix == ".py":
        command = [] if program.stem == "__main__" else [program.stem]
        words = ["landmark", *command, *argv[1:]]
    else:
        words = [program.name, *argv[1:]]
    return mask_credentials(shlex.join(words))


def package_versions() -> dict[str, str]:
    """Return the versions of landmark and of installed packages that affect results, by name."""
    found = {"landmark": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    """Return the processor's name. Only Linux has /proc/cpuinfo, elsewhere it is the kind of machine."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def _gpu_names() -> list[str]:
    # Only if torch is already loaded. Its import takes seconds, and a process without it used no GPU.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _cluster() -> dict[str, Any]:
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    resources = ray.cluster_resources()
    kinds = sorted(key.partition(":")[2] for key in resources if key.startswith("accelerator_type:"))
    return {
        "nodes": sum(bool(node["Alive"]) for node in ray.nodes()),
        "cpus": resources.get("CPU", 0.0),
        "gpus": resources.get("GPU", 0.0),
        "memory_gib": round(resources.get("memory", 0.0) / 2**30, 1),
        "accelerators": kinds,
    }
