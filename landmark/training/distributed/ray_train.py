"""Distributed training: the training loop in Ray Train V2 workers with a backend (`landmark.training.distributed.backends`)."""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray._private.worker import global_worker
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import HEALTH_CHECK_INTERVAL_S_ENV_VAR
from torch import nn

from landmark.checkpoints.format import Snapshot
from landmark.checkpoints.store import CheckpointStore, Tell
from landmark.config import TrainConfig, UserError, from_mapping, to_mapping, to_stored_yaml
from landmark.data.loading.progress import EpochProgress
from landmark.data.loading.streams import Shard
from landmark.data.subset_view import open_dataset
from landmark.logs import begin_log, log
from landmark.runtime import own_error, quiet_data, storage_error_of
from landmark.storage import Location, TransientStorageError, locate, restated
from landmark.training.distributed.backends import backend_config, join_backend
from landmark.training.distributed.callbacks import MemoryWatch, SaveBeforeResize
from landmark.training.distributed.failures import less_memory, memory_errors
from landmark.training.distributed.monitor import ANSWER_S, HeartbeatSender, error_of, new_board, printed_lines
from landmark.training.distributed.restore import restored
from landmark.training.distributed.streams import RankStreams, rank_shard, split_datasets
from landmark.training.distributed.watchdog import watched
from landmark.training.loop.fit import fit
from landmark.training.loop.session import Phase
from landmark.training.loop.triggers import ASK_S
from landmark.training.observe.profiling import step_profiler
from landmark.training.observe.recorder import Recorder
from landmark.training.observe.run_names import names_of
from landmark.training.observe.telemetry import Telemetry
from landmark.training.observe.throughput import Throughput

RAY_FOLDER = "ray"
"""Folder for Ray Train's own state, below the run's folder."""
RECOVERED = "recovered"
"""Key that marks a report as possibly sent before: that of the epoch of the checkpoint from which a run resumes."""
POLL_S = "0.5"
"""Seconds between two polls of the workers by Ray Train's controller, unless RAY_TRAIN_HEALTH_CHECK_INTERVAL_S is set.
The controller receives one report per poll, so with Ray's default of 2 s every epoch takes at least 2 s."""
RESIZE_S = 60.0
"""Seconds between two checks whether an elastic run can use more workers."""


class TrialEnded(Exception):
    """The trial of this run ended or pauses. Its workers return as if they had finished their last epoch."""


class TrainWorkerSession:
    """Session of a Ray Train worker. Rank 0 also writes the run's checkpoints and metrics."""

    saves_within_epochs = True

    def __init__(
        self,
        run: Location,
        config: TrainConfig,
        *,
        tell: Tell,
        heartbeat_sender: HeartbeatSender | None,
        relay: Any | None,
    ) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.local_rank, self.node_rank = context.get_local_rank(), context.get_node_rank()
        self.device = ray.train.torch.get_device()
        self.config = config
        self.backend = join_backend(config.workers, self.device)
        self.store = CheckpointStore(run, config.monitor, config.monitor_mode(), config.checkpoint, tell)
        recorded = self.rank == 0 and relay is None
        self.recorder = Recorder(run, tensorboard=config.tensorboard, tell=tell) if recorded else None
        self.heartbeat_sender = heartbeat_sender
        self.relay = relay
        self.reports_probe = relay is None
        if relay is not None and self.rank == 0:
            relay.begin.remote(ray.util.get_current_placement_group())
        self.first_step_at: float | None = None
        self.weights = 0
        self._noticed: set[str] = set()
        self._asked_at = time.monotonic()
        self.telemetry = Telemetry(run, self.rank, self.device)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap the model with the backend. Rank 0 of a run also writes config.yaml."""
        if self.rank == 0 and self.relay is None:
            (self.store.run / "config.yaml").write_text(to_stored_yaml(self.config))
        self.first_step_at = time.time()
        self.weights = sum(parameter.numel() for parameter in model.parameters())
        return self.backend.prepare(model)

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        return self.backend.all_reduce(values) if self.world_size > 1 else values.clone()

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks."""
        return self.backend.all_gather(values) if self.world_size > 1 else values[None]

    def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of the sum over the ranks."""
        return self.backend.reduce_scatter(values) if self.world_size > 1 else values[0]

    def shard(self, split: str, position: EpochProgress) -> Shard:
        """Return this rank's stream from Ray Train. All ranks wait for rank 0."""
        with self._storing():
            return rank_shard(self.store.run, split, self.rank, position)

    def report(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        """Store rank 0's checkpoint, write the epoch's row, and report to Ray Train, which is a barrier.

        For a trial, the checkpoint is stored before the trial's process receives the report. All ranks wait for the
        scheduler's decision. If the scheduler ends the trial, TrialEnded is raised on each rank.
        """
        if snapshot is not None:
            with self._storing():
                self.store.save(snapshot, metrics)
        self._continue(metrics)
        if self.recorder is not None:
            self.recorder.add(metrics)
        ray.train.report(dict(metrics))

    def _continue(self, metrics: dict[str, Any]) -> None:
        """Report an epoch to the trial, if there is one, on all ranks. Raises TrialEnded after the last epoch."""
        if self.relay is None:
            return
        goes_on = self.rank == 0 and self._relay(self.relay, metrics)
        if not self.all_reduce(torch.tensor([float(goes_on)], device=self.device)).item():
            raise TrialEnded

    def _relay(self, relay: Any, metrics: dict[str, Any]) -> bool:
        timing = {"first_step_at": self.first_step_at, "reported_at": time.time(), "parameters": self.weights}
        with self._storing():
            self.store.close()
            return ray.get(relay.report.remote({**metrics, **timing}))  # returns after the scheduler's decision

    def save(self, snapshot: Snapshot | None, *, at_once: bool) -> None:
        """Store rank 0's checkpoint within an epoch."""
        with self._storing():
            if snapshot is not None:
                self.store.save(snapshot)
            if at_once:
                self.store.flush()
        if at_once and self.rank == 0 and self.heartbeat_sender is not None:
            self.heartbeat_sender.saved()

    def _storing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.heartbeat_sender is None else self.heartbeat_sender.storing()

    def checkpoint_requested(self) -> bool:
        """Return whether a node of the run is about to be preempted or the number of workers is about to change."""
        if self.world_size == 1:  # called at every step, and the call to Ray costs a round trip
            if time.monotonic() - self._asked_at < ASK_S:
                return False
            self._asked_at = time.monotonic()
        return self._preempted() | self._resized()

    def _resized(self) -> bool:
        """Return on all ranks whether Ray Train waits for a checkpoint to change the number of workers."""
        if self.heartbeat_sender is None or not _is_elastic(self.config):
            return False
        own = torch.tensor([float(self.rank == 0 and self.heartbeat_sender.save_requested > 0)], device=self.device)
        checkpoint_requested = bool(self.all_reduce(own).item())
        if checkpoint_requested and self.rank == 0:
            self.store.tell("note: the number of workers is about to change; saving a checkpoint first")
        return checkpoint_requested

    def _preempted(self) -> bool:
        """Return whether Ray announced the preemption of a node of the run since the last call."""
        notice = ray.train.get_preemption_info()
        fresh = set(notice.preempted_node_ids) - self._noticed if notice is not None else set()
        self._noticed |= fresh
        if fresh:
            log("preemption notice", nodes=sorted(fresh))
        if fresh and self.rank == 0:
            self.store.tell(
                f"note: {len(fresh)} of the run's nodes will be preempted; saving a checkpoint, then training continues"
            )
        return bool(fresh)

    def heartbeat(self, phase: Phase) -> None:
        """Report progress to the watchdog."""
        if self.heartbeat_sender is not None:
            self.heartbeat_sender.record_progress(phase)

    def report_throughput(self, throughput: Throughput) -> None:
        """Report throughput to Ray's metrics exporter."""
        self.telemetry.report_throughput(throughput)

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Yield the newest complete checkpoint, the same on every rank, and report its epochs if necessary."""
        with contextlib.ExitStack() as stack:
            with self._storing():
                folder, reports = stack.enter_context(restored(self.store, self))
            if self.recorder is not None and reports:
                self.recorder.recover(reports[-1])
            for metrics in reports:
                self._continue({**metrics, RECOVERED: True})
            yield folder

    def close(self) -> None:
        """Close the record and wait for the store."""
        self.telemetry.close()
        if self.recorder is not None:
            self.recorder.close()
        self.store.flush()


class Trainer(ray.train.torch.TorchTrainer):
    """Ray Train's trainer without two callbacks if they are not needed.

    The datasets callback starts a process even if threads of the workers read. The placement group cleaner queries the
    dashboard. A Ray cluster that a command starts has no dashboard, and each run would wait 12 s for it at the end.
    """

    def _create_default_callbacks(self) -> list[Any]:
        needless: list[type] = [] if self.datasets else [DatasetsCallback]
        if not global_worker.gcs_client.internal_kv_get(b"webui:url", b"dashboard"):
            needless.append(PlacementGroupCleanerCallback)
        return [
            callback for callback in super()._create_default_callbacks() if not isinstance(callback, tuple(needless))
        ]


def fit_workers(config: TrainConfig, run: Location, *, relay: Any | None = None, shown: bool = False) -> None:
    """Train with config.workers under `run`, resuming from the run's last checkpoint if it exists.

    relay: an actor, if the run is a trial. Rank 0 sends the workers' placement group to `begin` and each epoch to
    `report`, which returns whether to continue. shown: print the workers' messages here. Raises UserError with the
    worker's message: at once if the user must fix the cause, else after workers failed more than max_failures times.
    """
    os.environ.setdefault(HEALTH_CHECK_INTERVAL_S_ENV_VAR, POLL_S)
    run_monitor = new_board()
    values = {"config": to_mapping(config), "run": run.uri, "board": run_monitor, "relay": relay}
    trainer = Trainer(
        _work,
        train_loop_config=values,
        torch_config=backend_config(config.workers),
        datasets=split_datasets(config),
        dataset_config=RankStreams(config, run),
        scaling_config=_scaling(config),
        run_config=_run_config(config, run, _callbacks(config, run_monitor, relay)),
    )
    try:
        with (
            printed_lines(run_monitor) if shown else contextlib.nullcontext(),
            watched(run_monitor, config.workers.stall_s, print),
        ):
            trainer.fit()
    except OSError as error:  # from Ray Train's own files
        if (lost := storage_error_of(error)) is None:
            raise
        raise lost from error
    except ray.train.TrainingFailedError as error:
        error_line, worker = error_of(run_monitor), worker_error(error)
        raise restated(None if error_line else worker, f"training failed: {error_line or worker}") from error
    finally:
        error_line = error_of(run_monitor)
        ray.kill(run_monitor)
    if error_line is not None:
        raise UserError(f"training failed: {error_line}")


def _scaling(config: TrainConfig) -> ray.train.ScalingConfig:
    workers, gpus = config.workers, gpus_per_worker(config.workers.gpus)
    return ray.train.ScalingConfig(
        num_workers=workers.most if workers.least == workers.most else (workers.least, workers.most),
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": workers.reserved_cpus} | ({"GPU": gpus} if gpus else {}),
        elastic_resize_monitor_interval_s=RESIZE_S,
    )


def _run_config(config: TrainConfig, run: Location, callbacks: list[Any]) -> ray.train.RunConfig:
    local = run.local_path()
    return ray.train.RunConfig(
        name=RAY_FOLDER,
        storage_path=str(local) if local else run.path,
        storage_filesystem=None if local else run.fs,
        failure_config=ray.train.FailureConfig(max_failures=config.workers.max_failures),
        callbacks=callbacks,
    )


def _callbacks(config: TrainConfig, run_monitor: Any, relay: Any | None) -> list[Any]:
    """Return the callbacks for Ray Train's controller."""
    elastic = [SaveBeforeResize(run_monitor)] if _is_elastic(config) else []
    return elastic if relay is not None else [*elastic, MemoryWatch(run_monitor, less_memory(config))]


def _is_elastic(config: TrainConfig) -> bool:
    return config.workers.least < config.workers.most


def gpus_per_worker(gpus: float | None) -> float:
    """Return the GPUs per worker: as configured, else 1 if the cluster has a GPU."""
    if gpus is not None:
        return gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def worker_error(error: BaseException) -> UserError:
    """Return the first worker's own error from Ray's wrappers. For other errors, return the last line of their text."""
    failures = getattr(error, "worker_failures", None) or {}
    cause = next(iter(failures.values()), error)
    if (own := own_error(cause) or storage_error_of(cause)) is not None:
        return own
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return UserError(lines[-1] if lines else type(cause).__name__)


def _work(values: dict[str, Any]) -> None:
    """Train in one worker process. Errors that the user must fix are recorded, so restarted workers end at once."""
    run_monitor = values["board"]
    if error_of(run_monitor) is not None:
        return
    quiet_data()
    # torch renamed this option in 2.15. The old name is the only one that works before.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
    config = from_mapping(TrainConfig, values["config"], "the run's config")
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    tell, rank = run_monitor.put.remote, ray.train.get_context().get_world_rank()
    run = locate(values["run"])
    begin_log(*names_of(run), rank)
    session = None
    try:
        with HeartbeatSender(run_monitor, rank) as heartbeat_sender:
            session = TrainWorkerSession(
                run, config, tell=tell, heartbeat_sender=heartbeat_sender, relay=values["relay"]
            )
            dataset = open_dataset(config.dataset, config.subset, config.subset_seed)
            profiler = step_profiler(config.profile_steps, run, rank, tell)
            with memory_errors(config):
                fit(
                    config,
                    dataset,
                    session,
                    show=tell,
                    checkpoint=config.checkpoint,
                    profiler=profiler,
                    limit_s=config.limit_s,
                )
            with heartbeat_sender.storing():
                session.store.close()
    except TrialEnded:
        return
    except TransientStorageError:
        raise  # storage may be available again after a restart
    except UserError as error:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(run_monitor.give_up.remote(str(error)), timeout=ANSWER_S)
        raise
    finally:
        if session is not None:
            session.close()
