"""Tests the tests of a study's models: each runs once as a Ray task, and a failure is a one-line error."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import ray

from landmark.checkpoints.format import resolve_checkpoint
from landmark.config import ClusterConfig, LoaderConfig, UserError, WorkersConfig
from landmark.data.dataset import PackedDataset
from landmark.search.trials import model_tests
from landmark.search.trials.model_tests import ModelTest, run_tests
from landmark.storage import locate
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.training.test_run import config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tested")
    dataset = write_packed(folder / "dataset", {"train": [40], "val": [16], "test": [33]}, classes=4)
    run_training(config(dataset, folder, epochs=1))
    return dataset, resolve_checkpoint(str(folder / "train"))


def model_test(checkpoint, dataset: PackedDataset, folder: Path, name: str) -> ModelTest:
    return ModelTest.of(checkpoint, dataset, LoaderConfig(batch_size=16), locate(folder) / name, whole=name == "best")


def test_models_are_tested_once_in_tasks_and_failures_lose_nothing(ray_cluster, trained, tmp_path, monkeypatch):
    dataset, checkpoint = trained
    tests = [model_test(checkpoint, dataset, tmp_path, name) for name in ("best", "other")]
    missing = dataclasses.replace(tests[1], checkpoint=f"{tmp_path}/nothing", folder=f"{tmp_path}/third")
    with pytest.raises(UserError, match=r"nothing"):
        run_tests([tests[0], missing, tests[1]], WorkersConfig(), ClusterConfig())
    monkeypatch.setattr(model_tests, "run_test", None)  # this process runs no test
    found = run_tests(tests, WorkersConfig(), ClusterConfig())
    assert found[0] == found[1] and found[0]["topk"]["1"] >= 0 and found[0]["baselines"]["majority"]
    assert (tmp_path / "best" / "metrics.json").exists()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["tested.json"]
    assert json.loads((tmp_path / "other" / "tested.json").read_text())["checkpoint"] == checkpoint.uri


def test_a_single_test_on_a_local_machine_runs_in_this_process(ray_cluster, trained, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(model_tests, "run_test", lambda test, quiet: ran.append(test.folder) or {"topk": {}})
    dataset, checkpoint = trained
    run_tests([model_test(checkpoint, dataset, tmp_path, "best")], WorkersConfig(), ClusterConfig())
    assert ran == [f"{tmp_path}/best"]


def test_a_lost_process_is_a_one_line_error(ray_cluster):
    @ray.remote(max_retries=0)
    def die() -> None:
        os._exit(1)

    with pytest.raises(UserError, match=r"^test of x: its process was lost: WorkerCrashedError: .*; run the same") as e:
        model_tests.result_of(die.remote(), "test of x")
    assert "\n" not in str(e.value)
