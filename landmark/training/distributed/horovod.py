"""Horovod backend: ranks connect through a server in the controller, and average each gradient when it is ready.

Horovod is imported where it is used: controller and workers import this module before the error for a missing Horovod.
"""

import collections
import contextlib
import functools
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from torch import nn

from landmark.config import UserError
from landmark.training.distributed.gloo import interface_of

LEAVE_S = 5.0
"""Maximum seconds for the workers to leave Horovod. Workers that wait for a dead one never leave."""
POLL_S = 0.0002
"""Seconds between two polls for a finished exchange. Horovod's own wait would occupy the core that decodes images."""
NARROW = (torch.bool, torch.uint8, torch.int8, torch.int16)
"""Data types that Horovod cannot sum."""


class Rendezvous:
    """Server through which ranks learn each other's addresses.

    Horovod's own server listens on all interfaces, and every client can read and change the exchanged data. This server
    listens only on the address by which Ray knows the node.
    """

    def __init__(self, address: str, slots: list[Any]) -> None:
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

        self._server = RendezvousHTTPServer((address, 0), RendezvousHandler, 0)
        self._server.init(slots)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="landmark-rendezvous", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class HorovodBackend(Backend):
    """Hooks that Ray Train's controller calls for a worker group. One object serves all groups in turn."""

    share_cuda_visible_devices = True

    def __init__(self) -> None:
        self._rendezvous: Rendezvous | None = None

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
        """Start a server and send each worker its rank and the server's address. The workers connect by themselves."""
        from horovod.runner.common.util.hosts import SlotInfo

        self._stop()
        workers = worker_group.get_workers()
        slots = [SlotInfo(**slot) for slot in slots_of(workers)]
        address = ray.util.get_node_ip_address()
        self._rendezvous = Rendezvous(address, slots)
        shared = {
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(self._rendezvous.port),
            # Same timeout as DDP's process group: the watchdog finds and names hung workers.
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(backend_config.timeout_s),
        }
        environments = [
            shared | {f"HOROVOD_{key.upper()}": str(value) for key, value in vars(slot).items()} for slot in slots
        ]
        ray.get([worker_group.execute_single_async(rank, _learn, env) for rank, env in enumerate(environments)])

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
        """Let the workers that respond leave together."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_S)
        self._stop()

    def _stop(self) -> None:
        if self._rendezvous is not None:
            self._rendezvous.stop()
            self._rendezvous = None


@dataclass
class HorovodConfig(TorchConfig):
    """Ray Train's settings for torch, with Horovod instead of torch's process group."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Class of the controller's hooks."""
        return HorovodBackend


def slots_of(workers: list[Any]) -> list[dict[str, Any]]:
    """Return each worker's slot by rank: its node, its rank on the node, and its rank among equal local ranks."""
    across: dict[int, list[int]] = collections.defaultdict(list)
    places = [worker.distributed_context for worker in workers]
    for place in sorted(places, key=lambda place: place.node_rank):
        across[place.local_rank].append(place.node_rank)
    return [
        {
            "hostname": worker.metadata.node_id,
            "rank": place.world_rank,
            "size": place.world_size,
            "local_rank": place.local_rank,
            "local_size": place.local_world_size,
            "cross_rank": across[place.local_rank].index(place.node_rank),
            "cross_size": len(across[place.local_rank]),
        }
        for worker, place in zip(workers, places, strict=True)
    ]


def _learn(env: dict[str, str]) -> None:
    """Set Horovod's environment variables in a worker. A network interface that the user set is kept."""
    os.environ.update(env)
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("HOROVOD_GLOO_IFACE", interface)


def _leave() -> None:
    if "horovod.torch" in sys.modules:
        sys.modules["horovod.torch"].shutdown()


class Horovod:
    """The backend in a worker. Raises UserError if Horovod does not run there."""

    def __init__(self, device: torch.device) -> None:
        here = socket.gethostname()
        try:
            import horovod.torch as hvd

            hvd.init()
        except (ImportError, AttributeError, OSError) as error:  # not installed, or built for another torch
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"Horovod does not load on {here} ({reason}); run scripts/install-horovod.sh on every node (docs/how-to/horovod.md)"
            ) from error
        if device.type == "cuda" and not hvd.nccl_built():
            raise UserError(
                f"Horovod on {here} was built for CPUs, but the worker has a GPU; "
                "run HOROVOD_GPU_OPERATIONS=NCCL bash scripts/install-horovod.sh, or set workers.gpus to 0"
            )
        self.hvd = hvd

    def prepare(self, model: nn.Module) -> nn.Module:
        """Broadcast rank 0's weights and buffers, and wrap the model."""
        state = model.state_dict()
        views = {name: dense_view(tensor) for name, tensor in state.items()}
        self.hvd.broadcast_parameters(views, root_rank=0)
        for name, tensor in state.items():
            put_back(views[name], tensor)
        return HorovodModel(model, self.hvd)

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        total = values.to(torch.int32 if values.dtype in NARROW else values.dtype, copy=True).contiguous()
        # Exchanges run one at a time, so those of one shape can share a name, which Horovod negotiates only once.
        name = f"sum of {tuple(total.shape)} {total.dtype}"
        wait(self.hvd, self.hvd.allreduce_async_(total, name=name, op=self.hvd.Sum))
        return total.to(values.dtype)

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks, (ranks, …), computed as a sum, which Horovod negotiates only once."""
        all_values = values.new_zeros(self.hvd.size(), *values.shape)
        all_values[self.hvd.rank()] = values
        return self.all_reduce(all_values)

    def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of values[rank], given values (ranks, …)."""
        return self.all_reduce(values)[self.hvd.rank()]


class HorovodModel(nn.Module):
    """Model whose `backward` averages gradients over the ranks, as in DDP: each gradient once it is ready.

    Horovod's own DistributedOptimizer averages in `step`, after gradients are unscaled, clipped and checked. It would
    also put a second optimizer between the schedule and the optimizer that checkpoints save.
    """

    def __init__(self, module: nn.Module, hvd: Any) -> None:
        super().__init__()
        self.module = module
        self._hvd = hvd
        self._quiet = False
        self._handles: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(functools.partial(self._start, name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward pass."""
        return self.module(*args, **kwargs)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Keep gradients on the rank within the block. The next backward pass averages the accumulated gradients."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _start(self, name: str, parameter: torch.Tensor) -> None:
        if self._quiet:
            return
        if not self._handles:
            # The callback runs at the end of this backward pass, as DDP does for its buckets.
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        gradient = parameter.grad
        assert gradient is not None
        view = dense_view(gradient)
        handle = self._hvd.allreduce_async_(view, name=name, op=self._hvd.Average)
        self._handles.append((handle, view, gradient))

    def _finish(self) -> None:
        for handle, view, gradient in self._handles:
            wait(self._hvd, handle)
            put_back(view, gradient)
        self._handles.clear()


def dense_view(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a tensor in its memory order, which Horovod requires, or a copy if the memory has gaps.

    Weights in the channels-last format and their gradients have the same strides on every rank.
    """
    if tensor.is_contiguous():
        return tensor
    view = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    return view if view.is_contiguous() else tensor.contiguous()


def put_back(view: torch.Tensor, tensor: torch.Tensor) -> None:
    """Copy the result of `dense_view` back into the tensor if it was a copy."""
    if view.data_ptr() != tensor.data_ptr():
        tensor.copy_(view)


def wait(hvd: Any, handle: int) -> None:
    """Wait for an exchange without blocking the core."""
    while not hvd.poll(handle):
        time.sleep(POLL_S)
    hvd.synchronize(handle)
