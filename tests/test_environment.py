"""What is kept of a run's surroundings: a command that can be typed again, no passwords, versions, the machine."""

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
def test_commands_can_be_typed_again_and_hold_no_password(argv, command):
    assert command_line(argv) == command


def test_this_process_is_described(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["landmark", "train"])
    found = json.loads(json.dumps(describe_environment()))
    assert found["command"] == "landmark train"
    assert set(found["packages"]) >= {"landmark", "ray", "torch", "pyarrow"}
    assert found["machine"]["cpus"] >= 1 and found["machine"]["memory_gib"] > 0 and found["machine"]["cpu"]
    assert found["started"].endswith("+00:00")


def test_a_connected_cluster_is_described(ray_cluster):
    cluster = describe_environment()["cluster"]
    assert cluster["nodes"] == 1 and cluster["cpus"] == 4
