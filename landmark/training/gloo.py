"""Gloo between hosts: each process listens where its node is reached in the cluster."""

import dataclasses
import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

INTERFACE = "GLOO_SOCKET_IFNAME"


BOTH = "cpu:gloo,cuda:nccl"
"""Backends of a group whose ranks have GPUs: NCCL for what lies there, and Gloo for labels, which stay in main memory."""


class TorchOnNodes(TorchConfig):
    """Ray Train's set-up of torch.distributed, with Gloo on the network interface of the node's address.

    Left to itself Gloo takes the address that the host's own name leads to: by Debian's and Ubuntu's /etc/hosts 127.0.1.1,
    where no other host reaches it.
    """

    @property
    def backend_cls(self) -> type:
        """What Ray Train calls when a group of workers starts."""
        return _OnNodes


class _OnNodes(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        super().on_start(worker_group, with_gloo(backend_config, gpus))


def with_gloo(config: TorchConfig, gpus: float) -> TorchConfig:
    """Return the settings of a group whose ranks have so many GPUs each: with GPUs both backends, unless one is named."""
    return dataclasses.replace(config, backend=BOTH) if gpus and config.backend is None else config


def choose_interface() -> None:
    """Let Gloo use this node's interface in the cluster, unless the environment names another."""
    if (name := interface_of(ray.util.get_node_ip_address())) is not None:
        os.environ.setdefault(INTERFACE, name)


def interface_of(address: str) -> str | None:
    """Return the network interface that has an IP address, or None."""
    found = psutil.net_if_addrs().items()
    return next((name for name, has in found if any(entry.address == address for entry in has)), None)
