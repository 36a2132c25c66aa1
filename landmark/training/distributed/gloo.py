"""Gloo between hosts: each process listens on the address by which the cluster reaches its node."""

import dataclasses
import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

INTERFACE = "GLOO_SOCKET_IFNAME"


BOTH = "cpu:gloo,cuda:nccl"
"""Backends of a group whose ranks have GPUs: NCCL for GPU tensors, and Gloo for labels, which stay on the CPU."""


class TorchOnNodes(TorchConfig):
    """Ray Train's setup of torch.distributed, with Gloo on the network interface of the node's address.

    By default Gloo uses the address of the host's own name. In Debian's and Ubuntu's /etc/hosts that is 127.0.1.1,
    which other hosts cannot reach.
    """

    @property
    def backend_cls(self) -> type:
        """Class that Ray Train calls when a worker group starts."""
        return _OnNodes


class _OnNodes(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        super().on_start(worker_group, with_gloo(backend_config, gpus))


def with_gloo(config: TorchConfig, gpus: float) -> TorchConfig:
    """Return the settings of a group with `gpus` GPUs per rank: both backends if there are GPUs and none is set."""
    return dataclasses.replace(config, backend=BOTH) if gpus and config.backend is None else config


def choose_interface() -> None:
    """Make Gloo use this node's interface in the cluster, unless the environment sets another."""
    if (name := interface_of(ray.util.get_node_ip_address())) is not None:
        os.environ.setdefault(INTERFACE, name)


def interface_of(address: str) -> str | None:
    """Return the network interface that has an IP address, or None."""
    found = psutil.net_if_addrs().items()
    return next((name for name, has in found if any(entry.address == address for entry in has)), None)
