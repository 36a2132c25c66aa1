"""The number of CPUs that this process may use, from its affinity, its cgroup's quota and Ray's limit."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """Return the number of CPUs that this process may use, 1 or more.

    OMP_NUM_THREADS is used if it is set, because Ray sets it to a worker's CPUs. Otherwise, it is the minimum of the
    process's affinity and the rounded-up quotas of its cgroups and their parents. root: the folder that contains /proc
    and /sys.
    """
    text = os.environ.get("OMP_NUM_THREADS", "")
    if text.isdigit() and int(text) > 0:
        return int(text)
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas of this process's cgroups, versions 1 and 2, and of their parents."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found = [(top, _quota_v2) for top in (mounted, mounted / "unified")]
        elif "cpu" in controllers.split(","):
            found = [(top, _quota_v1) for top in (mounted / "cpu", mounted / controllers)]
        else:
            continue
        for top, quota in found:
            # In a container, the path may be the host's, of which only the top is visible.
            folder = top / path.strip("/")
            for each in (folder, *folder.parents):
                try:
                    if (value := quota(each)) is not None:
                        yield value
                except (OSError, ValueError):
                    pass
                if each == top:
                    break


def _quota_v2(folder: Path) -> float | None:
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    return None if quota <= 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
