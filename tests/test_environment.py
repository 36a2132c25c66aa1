"""Tests the recorded environment of a run: a repeatable command without passwords, versions, the machine."""

import json
import sys

import pytest

from landmark.environment import command_line, describe_environment


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/venv/bin/landmark", "train", "--dataset", "my data"], "landmark train --dataset 'my data'"),
        (["/src/landmark/tune.py", "--space", "demo"], "landmark tune --space demo"),
        (["/src/landmark/__main__.py", "tune"], "landmark tune"),
        (["bench.py", "--mlflow", "http://me:secret@host:5000/x"], "bench.py --mlflow http://host:5000/x"),
        (["landmark", "--mlflow", "http://me:p@ss@host/"], "landmark --mlflow http://host/"),
        (
            ["landmark", "--dataset", "abfs://c/d?sv=1&sig=abc%2F&x=1"],
            "landmark --dataset 'abfs://c/d?sv=1&sig=***&x=1'",
        ),
        ([], "landmark"),
    ],
)
def test_command_lines_are_repeatable_and_contain_no_password(argv, command):
    assert command_line(argv) == command


def test_the_environment_of_this_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["landmark", "train"])
    environment = json.loads(json.dumps(describe_environment()))
    assert environment["command"] == "landmark train"
    assert set(environment["packages"]) >= {"landmark", "ray", "torch", "pyarrow"}
    assert (
        environment["machine"]["cpus"] >= 1
        and environment["machine"]["memory_gib"] > 0
        and environment["machine"]["cpu"]
    )
    assert environment["started"].endswith("+00:00")


def test_the_environment_has_the_connected_cluster(ray_cluster):
    cluster = describe_environment()["cluster"]
    assert cluster["nodes"] == 1 and cluster["cpus"] == 4
