"""Tests the detection of available CPUs: affinity, cgroup v1 and v2 quotas, and Ray's limit."""

import os
from pathlib import Path

import pytest

from landmark.cpus import available_cpus

V2 = "sys/fs/cgroup"
CASES = {
    "none": ({}, "", 192),
    "v2 container": ({f"{V2}/cpu.max": "600000 100000"}, "0::/\n", 6),
    "v2 without a limit": ({f"{V2}/cpu.max": "max 100000"}, "0::/\n", 192),
    "v2 parent group": (
        {f"{V2}/slurm/job/cpu.max": "250000 100000", f"{V2}/slurm/job/step/cpu.max": "max 100000"},
        "0::/slurm/job/step\n",
        3,
    ),
    "v2, minimum of the hierarchy": (
        {f"{V2}/a/cpu.max": "800000 100000", f"{V2}/a/b/cpu.max": "900000 100000"},
        "0::/a/b\n",
        8,
    ),
    "v2, less than one": ({f"{V2}/cpu.max": "20000 100000"}, "0::/\n", 1),
    "v2, more than the machine has": ({f"{V2}/cpu.max": "40000000 100000"}, "0::/\n", 192),
    "v1": (
        {f"{V2}/cpu,cpuacct/docker/cpu.cfs_quota_us": "150000", f"{V2}/cpu,cpuacct/docker/cpu.cfs_period_us": "50000"},
        "4:memory:/docker\n3:cpu,cpuacct:/docker\n",
        3,
    ),
    "v1 container with the host's cgroup path": (
        {f"{V2}/cpu/cpu.cfs_quota_us": "400000", f"{V2}/cpu/cpu.cfs_period_us": "100000"},
        "2:cpu,cpuacct:/kubepods/pod1\n",
        4,
    ),
    "v1 without a limit": (
        {f"{V2}/cpu/cpu.cfs_quota_us": "-1", f"{V2}/cpu/cpu.cfs_period_us": "100000"},
        "2:cpu:/\n0::/\n",
        192,
    ),
    "invalid value": ({f"{V2}/cpu.max": "much"}, "0::/\n", 192),
}


@pytest.mark.parametrize("case", CASES)
def test_cgroup_quotas(case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files, groups, expected = CASES[case]
    for name, text in {**files, "proc/self/cgroup": groups}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text if name.startswith("proc") else text + "\n")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(192)))
    assert available_cpus(tmp_path) == expected


def test_ray_limit_has_precedence_over_affinity(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert available_cpus() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))
