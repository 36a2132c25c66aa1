"""Tests progress lines: throughput, remaining time, and few lines without a terminal."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from landmark.progress import Progress, clock, set_quiet

ROOT = Path(__file__).parent.parent


def test_a_line_has_count_throughput_time_left_and_a_note():
    progress = Progress("packing", 1000, sink=lambda line: None)
    progress.started -= 10
    progress.update(250)
    assert progress.line("2 rejected") == "packing: 250/1,000 images, 25/s, 30s left, 2 rejected"


def test_lines_are_rate_limited_and_omitted_at_the_end():
    lines: list[str] = []
    progress = Progress("epoch 1/2", 100, sink=lines.append)
    progress.update(10)
    assert not lines
    progress.shown -= 20
    progress.update(10)
    progress.update(10)
    assert len(lines) == 1 and lines[0].startswith("epoch 1/2: 20/100 images")
    progress.shown -= 20
    progress.update(70)
    assert len(lines) == 1
    quiet = Progress("x", 10, enabled=False, sink=lines.append)
    quiet.shown -= 20
    quiet.update(1)
    assert len(lines) == 1


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (185, "3m05s"), (7620, "2h07m")])
def test_durations_are_short(seconds, text):
    assert clock(seconds) == text


def test_a_terminal_has_a_bar_that_is_cleared():
    code = (
        "import time\nfrom landmark.progress import Progress\n"
        "progress = Progress('packing', 100)\nprogress.shown -= 10\nprogress.update(40)\nprogress.clear()\nprint('done')\n"
    )
    master, terminal = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=terminal, stderr=terminal, cwd=ROOT) as process:
        os.close(terminal)
        output = b""
        with contextlib.suppress(OSError):  # Linux raises EIO after the last writer closes
            while part := os.read(master, 4096):
                output += part
    os.close(master)
    assert process.returncode == 0
    text = output.decode()
    assert "packing" in text and "40/100 images" in text and "━" in text
    assert text.endswith("done\r\n")


def test_quiet_prints_nothing(capsys):
    set_quiet(True)
    try:
        progress = Progress("packing", 100)
        progress.shown -= 20
        progress.update(10)
    finally:
        set_quiet(False)
    assert capsys.readouterr().err == ""
