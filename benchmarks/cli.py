"""Startup cost of the command line: CPU seconds and output lines of help, usage errors and foreign flags.

Run: python benchmarks/cli.py. Each command is started five times. Its CPU time (user and system, of the process and its
children) is the minimum, because other programs can only increase it. The lower bound is the CPU time of `python -c
pass` with the same interpreter. The peer is a process that imports torch and torchvision, as timm's and torchvision's
training scripts do before they print help. foreign_flags_answered: flags of timm, torchvision, Lightning and Hugging
Face for which `landmark train` prints one line with its own option. The last line is JSON, saved to
benchmarks/results/cli.json.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))

from landmark.cli import COMMANDS
from landmark.cli.foreign import FOREIGN
from landmark.cli.help import command_help, long_help

ROUNDS = 5


def cpu_seconds(command: list[str]) -> float:
    """Return the minimum CPU time of a command over several runs, seconds."""
    found = []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def is_answered(flag: str) -> bool:
    """Return whether `landmark train` answers a flag with one line that names its own option."""
    command = [sys.executable, "-m", "landmark", "train", "d", flag, "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode == 2 and done.stderr.count("\n") == 1 and "in landmark: " in done.stderr


def main() -> None:
    """Print the table and the figures, and save them."""
    landmark = [sys.executable, "-m", "landmark"]
    print(f"{'command':32}{'CPU s':>8}{'lines':>8}")
    helps = {}
    for name, verb in COMMANDS.items():
        helps[name] = cpu_seconds([*landmark, *name.split(), "--help"])
        print(f"{name + ' --help':32}{helps[name]:>8.2f}{len(command_help(verb).splitlines()):>8}", flush=True)
    others = {
        "help_all_max_s": max(cpu_seconds([*landmark, name, "--help-all"]) for name in ("train", "tune")),
        "version_s": cpu_seconds([*landmark, "--version"]),
        "usage_error_s": cpu_seconds([*landmark, "train", "d", "--pretrained"]),
        "completion_s": cpu_seconds([*landmark, "completion", "bash"]),
        "python_s": cpu_seconds([sys.executable, "-c", "pass"]),
        "import_torchvision_s": cpu_seconds([sys.executable, "-c", "import torch, torchvision"]),
    }
    for name, seconds in others.items():
        print(f"{name:32}{seconds:>8.2f}")
    flags = [flag for flag in FOREIGN if flag not in ("--resume", "--momentum")]
    figures = {
        "help_max_s": max(helps.values()),
        "help_max_lines": max(len(command_help(verb).splitlines()) for verb in COMMANDS.values()),
        "help_all_lines_train": len(long_help(COMMANDS["train"]).splitlines()),
        "foreign_flags": len(flags),
        "foreign_flags_answered": sum(map(is_answered, flags)),
        **others,
    }
    line = json.dumps({key: round(value, 3) for key, value in figures.items()})
    Path(__file__).with_name("results").joinpath("cli.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
