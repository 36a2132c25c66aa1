"""Tests Horovod: the same weights as DDP, a killed rank, trials of a study, and errors if it is not installed."""

import csv
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train.v2._internal.execution.context import DistributedContext
from ray.train.v2._internal.execution.worker_group.worker import ActorMetadata, Worker

from landmark.checkpoints.format import read_weights
from landmark.cli import parse
from landmark.config import (
    CheckpointConfig,
    ComputeConfig,
    EmaConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
    TuneConfig,
    UserError,
    WorkersConfig,
)
from landmark.data.dataset import PackedDataset
from landmark.search.study import plan_study
from landmark.training.distributed import ray_train
from landmark.training.distributed.gloo import interface_of
from landmark.training.distributed.horovod import HorovodModel, Rendezvous, dense_view, slots_of
from landmark.training.run import run_training
from tests.integration.test_worker_faults import at_step
from tests.support.packed import write_packed
from tests.support.studies import COMMON, epochs_of, study
from tests.support.witness import consumed, recording_work

ROOT = Path(__file__).parent.parent.parent
TRAIN, BATCH, EPOCHS = 112, 16, 2


@pytest.fixture(scope="session")
def horovod() -> Any:
    """Return the Horovod module that scripts/install-horovod.sh installs."""
    try:
        import horovod.torch as hvd

        hvd.init  # noqa: B018
    except (ImportError, AttributeError, OSError):
        reason = "Horovod is not installed; run scripts/install-horovod.sh"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return hvd


@pytest.fixture(scope="module")
def dataset(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [64, 48], "val": [21], "test": [9]}, classes=4)


def config(packed: PackedDataset, folder: Path, backend: str, **changes: Any) -> TrainConfig:
    """Return a run that uses all options that affect gradients or running statistics, such as accumulation and EMA."""
    base = TrainConfig(
        dataset=packed.location.uri,
        output=str(folder),
        epochs=EPOCHS,
        model=ModelConfig(backbone="timm/resnet10t"),
        optimizer=OptimizerConfig(name="sgd", lr=0.02, momentum=0.9, clip_norm=0.5),
        schedule=ScheduleConfig(name="cosine"),
        loader=LoaderConfig(image_size=32, batch_size=BATCH, decode_threads=1, stream="thread"),
        compute=ComputeConfig(amp="off", accumulate=2),
        ema=EmaConfig(decay=0.9),
        checkpoint=CheckpointConfig(steps=3),
        workers=WorkersConfig(count=2, cpus=1, max_failures=2, backend=backend),
        tensorboard=False,
        resume=True,
    )
    return dataclasses.replace(base, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_weights(folder / "train" / "checkpoints" / f"epoch-{EPOCHS:04d}")


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "train" / "history.csv").open() as lines:
        return list(csv.DictReader(lines))


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items() if tensor.is_floating_point())


@pytest.fixture(scope="module")
def ddp_run(horovod: Any, dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same run with DDP."""
    folder = tmp_path_factory.mktemp("ddp")
    run_training(config(dataset, folder, "ddp"))
    return folder


class RecordingSession(ray_train.TrainWorkerSession):
    """A session that records what the backend of a rank did."""

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            next(model.parameters()).add_(float(self.rank))  # the weights of rank 0 must be broadcast
        self.record: dict[str, Any] = {"before": next(model.parameters()).clone()}
        prepared = super().prepare(model)
        sums = {str(dtype): self.all_reduce(torch.tensor([self.rank + 1], dtype=dtype)) for dtype in DTYPES}
        self.record |= {"after": next(model.parameters()).clone(), "sums": sums, "wrapper": type(prepared).__name__}
        self.record["process group"] = torch.distributed.is_initialized()
        self.prepared = prepared
        return prepared

    def report(self, metrics: dict[str, float], snapshot: Any) -> None:
        self.record["weights"] = self.prepared.module.state_dict()
        folder = self.store.run.local_path()
        torch.save(self.record, folder / f"rank{self.rank}.pt")
        super().report(metrics, snapshot)


DTYPES = (torch.uint8, torch.int64, torch.float32, torch.float64)


def _recording_work(values: dict[str, Any]) -> None:
    work, ray_train.TrainWorkerSession = ray_train._work, RecordingSession  # type: ignore[misc]
    work(values)


@pytest.fixture(scope="module")
def horovod_run(horovod: Any, dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same run with Horovod. Its ranks start with different weights and record the backend."""
    folder = tmp_path_factory.mktemp("horovod")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_train, "_work", _recording_work)
        run_training(config(dataset, folder, "horovod"))
    return folder


def test_the_weights_equal_those_of_ddp(ddp_run, horovod_run):
    assert largest_difference(weights(horovod_run), weights(ddp_run)) < 1e-5
    for row, expected in zip(history(horovod_run), history(ddp_run), strict=True):
        for key in ("train_loss", "val_loss", "val_top1", "val_macro_recall"):
            assert float(row[key]) == pytest.approx(float(expected[key]), abs=1e-4), key


def test_all_ranks_start_with_weights_of_rank_0_and_end_equal(horovod_run):
    first, second = (torch.load(horovod_run / "train" / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    assert not torch.equal(first["before"], second["before"])
    assert torch.equal(first["after"], second["after"])
    assert torch.equal(first["after"], first["before"])
    for seen in (first, second):
        assert seen["wrapper"] == HorovodModel.__name__
        assert not seen["process group"]
        for dtype in DTYPES:
            assert seen["sums"][str(dtype)].tolist() == [3], dtype
            assert seen["sums"][str(dtype)].dtype == dtype
    assert largest_difference(first["weights"], second["weights"]) == 0


def test_the_run_finishes_after_a_rank_is_killed(ddp_run, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_train, "_work", recording_work)
    run = config(dataset, tmp_path, "horovod")
    thread = at_step(tmp_path / "train", 2 * 9, lambda pid: os.kill(pid, signal.SIGKILL))
    result = run_training(run)
    thread.join()
    assert result.epochs_run == EPOCHS
    # There is one file per process, before and after the kill.
    assert len(list((tmp_path / "train" / "witness").glob("*.log"))) > 2
    counts = consumed(tmp_path / "train")
    assert all(set(counts[epoch]) == set(range(TRAIN)) for epoch in range(1, EPOCHS + 1))
    assert largest_difference(weights(tmp_path), weights(ddp_run)) < 1e-5


def _work_without_horovod(values: dict[str, Any]) -> None:
    sys.modules["horovod"] = None  # type: ignore[assignment]
    ray_train._work(values)


def test_a_node_without_horovod_is_named(horovod, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_train, "_work", _work_without_horovod)
    with pytest.raises(UserError, match=f"Horovod does not load on {socket.gethostname()} .*install-horovod") as error:
        run_training(config(dataset, tmp_path, "horovod"))
    assert "\n" not in str(error.value)


def test_asha_stops_trials_of_two_workers(horovod, dataset, tmp_path):
    text = COMMON.replace("decode_threads: 1", "decode_threads: 1, stream: thread")
    text += "parameters:\n  optimizer.lr: {grid: [0.003, 1.0e-9]}\n  epochs: {grid: [2]}\n"
    text += "scheduler: {name: asha, reduction_factor: 2}\n"
    workers = WorkersConfig(count=2, backend="horovod")
    uri = dataset.location.uri
    summary, folder = study(text, uri, tmp_path, test="none", workers=workers, max_concurrent=1)
    assert (summary["finished"], summary["stopped_early"], summary["failed"]) == (1, 1, 0)
    assert sorted(map(len, epochs_of(folder).values())) == [1, 2]


def test_without_horovod_nothing_starts_and_the_error_names_the_fix(dataset, tmp_path):
    hidden = "import sys; sys.modules['horovod'] = None; from landmark.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", "--dataset", dataset.location.uri, "--output", str(tmp_path), "--num-workers", "2"]
    command = [sys.executable, "-c", hidden, *arguments, "--backend", "horovod", "--recipe", "modern"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "workers.backend is horovod, but Horovod is not installed" in line
    assert f"bash scripts/install-horovod.sh {sys.executable}" in line
    assert not list(tmp_path.iterdir())


def test_a_study_without_horovod_is_refused_before_it_starts(dataset, tmp_path, monkeypatch):
    study = TuneConfig(
        dataset=dataset.location.uri,
        space="demo",
        output=str(tmp_path),
        workers=WorkersConfig(count=2, backend="horovod"),
    )
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(UserError, match="Horovod is not installed"):
        plan_study(study)
    deterministic = Recipe(compute=ComputeConfig(deterministic=True))
    with pytest.raises(
        UserError, match="deterministic requires bitwise identical results .* set workers.backend to ddp"
    ):
        plan_study(dataclasses.replace(study, recipe=deterministic))


def test_the_flag_has_a_short_name():
    for flag in ("--backend", "--workers.backend"):
        found = parse(TrainConfig, ["--dataset", "d", "--num-workers", "2", flag, "horovod"], "landmark train")
        assert found.workers.backend == "horovod"
    with pytest.raises(UserError, match="horovod"):
        parse(TrainConfig, ["--dataset", "d", "--backend", "horovd"], "landmark train")


def test_the_rendezvous_server_listens_on_one_address_until_stopped(horovod):
    rendezvous = Rendezvous("127.0.0.1", [])
    socket.create_connection(("127.0.0.1", rendezvous.port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", rendezvous.port), timeout=5)
    rendezvous.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", rendezvous.port), timeout=5)


def test_slots_hold_the_cross_rank_and_cross_size_of_each_rank():
    places = [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 0, 2), (4, 1, 2)]  # rank, local rank, node rank
    sizes = {0: 2, 1: 1, 2: 2}
    workers = [
        Worker(
            None,
            ActorMetadata(hostname="h", node_id=f"node{node}", node_ip="127.0.0.1", pid=1, accelerator_ids={}),
            {"CPU": 1},
            distributed_context=DistributedContext(
                world_rank=rank, world_size=5, local_rank=local, local_world_size=sizes[node], node_rank=node
            ),
        )
        for rank, local, node in places
    ]
    found = [(slot["hostname"], slot["cross_rank"], slot["cross_size"]) for slot in slots_of(workers)]
    assert found == [("node0", 0, 3), ("node0", 0, 2), ("node1", 1, 3), ("node2", 2, 3), ("node2", 1, 2)]


def test_an_interface_is_found_by_its_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None  # reserved for documentation (RFC 5737)


@pytest.mark.parametrize("shape", [(4,), (6, 5), (8, 3, 3, 3), (8, 3, 1, 1)])
def test_dense_view_shares_memory_for_any_layout(shape):
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    layouts = [tensor.clone(), tensor.flip(0).clone().T.contiguous().T if len(shape) == 2 else tensor.clone()]
    if len(shape) == 4:
        layouts.append(tensor.to(memory_format=torch.channels_last))
    for layout in layouts:
        before, view = layout.clone(), dense_view(layout)
        assert view.is_contiguous()
        assert view.data_ptr() == layout.data_ptr()
        view.mul_(2)
        assert torch.equal(layout, 2 * before)
    gaps = torch.zeros(4, 6)[:, ::2]
    assert dense_view(gaps).is_contiguous()
