"""Horovod for real: the weights that DDP gives, a killed rank, nested in a trial, and what a user sees where it is missing."""

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
from tests.support.witness import consumed, witnessed_work

ROOT = Path(__file__).parent.parent.parent
TRAIN, BATCH, EPOCHS = 112, 16, 2


@pytest.fixture(scope="session")
def horovod() -> Any:
    """Horovod, as scripts/install-horovod.sh installs it."""
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
    """A run of all that meets gradients or running statistics: parts, clipping, averages, momentum, batch norms."""
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
def ddp(horovod: Any, dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run by DDP."""
    folder = tmp_path_factory.mktemp("ddp")
    run_training(config(dataset, folder, "ddp"))
    return folder


class Witness(ray_train.TrainWorkerSession):
    """A session that writes down what a rank's backend did."""

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            next(model.parameters()).add_(float(self.rank))  # rank 0's weights must win
        self.seen: dict[str, Any] = {"before": next(model.parameters()).clone()}
        prepared = super().prepare(model)
        sums = {str(kind): self.all_reduce(torch.tensor([self.rank + 1], dtype=kind)) for kind in KINDS}
        self.seen |= {"after": next(model.parameters()).clone(), "sums": sums, "wrapper": type(prepared).__name__}
        self.seen["process group"] = torch.distributed.is_initialized()
        self.prepared = prepared
        return prepared

    def report(self, metrics: dict[str, float], snapshot: Any) -> None:
        self.seen["weights"] = self.prepared.module.state_dict()
        folder = self.store.run.local_path()
        torch.save(self.seen, folder / f"rank{self.rank}.pt")
        super().report(metrics, snapshot)


KINDS = (torch.uint8, torch.int64, torch.float32, torch.float64)


def _witnessed(values: dict[str, Any]) -> None:
    work, ray_train.TrainWorkerSession = ray_train._work, Witness  # type: ignore[misc]
    work(values)


@pytest.fixture(scope="module")
def by_horovod(horovod: Any, dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run by Horovod, whose ranks begin with weights of their own and write down what they did."""
    folder = tmp_path_factory.mktemp("horovod")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_train, "_work", _witnessed)
        run_training(config(dataset, folder, "horovod"))
    return folder


def test_the_weights_are_those_of_ddp(ddp, by_horovod):
    assert largest_difference(weights(by_horovod), weights(ddp)) < 1e-5
    for ours, theirs in zip(history(by_horovod), history(ddp), strict=True):
        for key in ("train_loss", "val_loss", "val_top1", "val_macro_recall"):
            assert float(ours[key]) == pytest.approx(float(theirs[key]), abs=1e-4), key


def test_ranks_begin_with_the_weights_of_the_first_and_end_with_equal_ones(by_horovod):
    first, second = (torch.load(by_horovod / "train" / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    assert not torch.equal(first["before"], second["before"])
    assert torch.equal(first["after"], second["after"])
    assert torch.equal(first["after"], first["before"])
    for seen in (first, second):
        assert seen["wrapper"] == HorovodModel.__name__
        assert not seen["process group"]
        for kind in KINDS:
            assert seen["sums"][str(kind)].tolist() == [3], kind
            assert seen["sums"][str(kind)].dtype == kind
    assert largest_difference(first["weights"], second["weights"]) == 0


def test_a_killed_rank_meets_the_others_again_and_the_run_finishes(ddp, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_train, "_work", witnessed_work)
    run = config(dataset, tmp_path, "horovod")
    thread = at_step(tmp_path / "train", 2 * 9, lambda pid: os.kill(pid, signal.SIGKILL))
    result = run_training(run)
    thread.join()
    assert result.epochs_run == EPOCHS
    assert len(list((tmp_path / "train" / "witness").glob("*.log"))) > 2  # processes: those before and after the kill
    counts = consumed(tmp_path / "train")
    assert all(set(counts[epoch]) == set(range(TRAIN)) for epoch in range(1, EPOCHS + 1))
    assert largest_difference(weights(tmp_path), weights(ddp)) < 1e-5


def _hidden(values: dict[str, Any]) -> None:
    sys.modules["horovod"] = None  # type: ignore[assignment]
    ray_train._work(values)


def test_a_node_without_horovod_is_named(horovod, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_train, "_work", _hidden)
    with pytest.raises(UserError, match=f"Horovod does not load on {socket.gethostname()} .*install-horovod") as error:
        run_training(config(dataset, tmp_path, "horovod"))
    assert "\n" not in str(error.value)


def test_trials_of_two_workers_stop_and_go_on(horovod, dataset, tmp_path):
    text = COMMON.replace("decode_threads: 1", "decode_threads: 1, stream: thread")
    text += "parameters:\n  optimizer.lr: {grid: [0.003, 1.0e-9]}\n  epochs: {grid: [2]}\n"
    text += "scheduler: {name: asha, reduction_factor: 2}\n"
    two = WorkersConfig(count=2, backend="horovod")
    uri = dataset.location.uri
    summary, folder = study(text, uri, tmp_path, test="none", workers=two, max_concurrent=1)
    assert (summary["finished"], summary["stopped_early"], summary["failed"]) == (1, 1, 0)
    assert sorted(map(len, epochs_of(folder).values())) == [1, 2]


def test_where_it_is_missing_nothing_starts_and_one_line_says_what_to_do(dataset, tmp_path):
    hidden = "import sys; sys.modules['horovod'] = None; from landmark.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", "--dataset", dataset.location.uri, "--output", str(tmp_path), "--num-workers", "2"]
    command = [sys.executable, "-c", hidden, *arguments, "--backend", "horovod", "--recipe", "modern"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "workers.backend is horovod, but Horovod is not installed" in line
    assert f"bash scripts/install-horovod.sh {sys.executable}" in line
    assert not list(tmp_path.iterdir())


def test_a_study_is_refused_as_early(dataset, tmp_path, monkeypatch):
    study = TuneConfig(
        dataset=dataset.location.uri,
        space="demo",
        output=str(tmp_path),
        workers=WorkersConfig(count=2, backend="horovod"),
    )
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(UserError, match="Horovod is not installed"):
        plan_study(study)
    same = Recipe(compute=ComputeConfig(deterministic=True))
    with pytest.raises(
        UserError, match="deterministic requires bitwise identical results .* set workers.backend to ddp"
    ):
        plan_study(dataclasses.replace(study, recipe=same))


def test_the_flag_has_a_short_name():
    for flag in ("--backend", "--workers.backend"):
        found = parse(TrainConfig, ["--dataset", "d", "--num-workers", "2", flag, "horovod"], "landmark train")
        assert found.workers.backend == "horovod"
    with pytest.raises(UserError, match="horovod"):
        parse(TrainConfig, ["--dataset", "d", "--backend", "horovd"], "landmark train")


def test_the_meeting_place_listens_on_one_address_until_it_is_stopped(horovod):
    place = Rendezvous("127.0.0.1", [])
    socket.create_connection(("127.0.0.1", place.port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", place.port), timeout=5)
    place.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", place.port), timeout=5)


def test_ranks_know_their_places_across_nodes():
    places = [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 0, 2), (4, 1, 2)]  # rank, rank on its node, node
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
    assert interface_of("192.0.2.1") is None  # of documentation, nobody's


@pytest.mark.parametrize("shape", [(4,), (6, 5), (8, 3, 3, 3), (8, 3, 1, 1)])
def test_memory_is_exchanged_as_it_lies(shape):
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    laid_out = [tensor.clone(), tensor.flip(0).clone().T.contiguous().T if len(shape) == 2 else tensor.clone()]
    if len(shape) == 4:
        laid_out.append(tensor.to(memory_format=torch.channels_last))
    for one in laid_out:
        before, view = one.clone(), dense_view(one)
        assert view.is_contiguous()
        assert view.data_ptr() == one.data_ptr()
        view.mul_(2)
        assert torch.equal(one, 2 * before)
    gaps = torch.zeros(4, 6)[:, ::2]
    assert dense_view(gaps).is_contiguous()
