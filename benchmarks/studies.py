"""Runs studies as commands for the benchmarks of `landmark tune`: writes the space file and starts the command."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent


def tune_command(space: Mapping[str, Any], dataset: str, output: Path, name: str, *flags: str) -> list[str]:
    """Return the command of a study, and write its space to a file next to the study's folder."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{name}.yaml"
    file.write_text(yaml.safe_dump(dict(space), sort_keys=False))
    command = [sys.executable, "-m", "landmark", "tune", dataset, "--resume", "--space", str(file)]
    return [*command, "--output", str(output), "--name", name, *flags]


def run_together(commands: Sequence[Sequence[str]]) -> tuple[float, list[str]]:
    """Run commands in parallel. Returns the wall time until the last one ends, seconds, and the output of each."""
    start = time.perf_counter()
    jobs = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    outputs = [job.communicate() for job in jobs]
    seconds = time.perf_counter() - start
    for job, command, (_, errors) in zip(jobs, commands, outputs, strict=True):
        if job.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {job.returncode}: {errors[-2000:]}")
    return seconds, [output for output, _ in outputs]
