"""Tests that Gloo uses the network interface with the node's address. See also tests/integration/test_hosts.py."""

import os
import socket

import psutil
import pytest
import ray

from landmark.training.distributed.gloo import INTERFACE, TorchOnNodes, choose_interface, interface_of, with_gloo

ADDRESSES = [
    (name, entry.address)
    for name, entries in psutil.net_if_addrs().items()
    for entry in entries
    if entry.family == socket.AF_INET
]


@pytest.mark.parametrize(("name", "address"), ADDRESSES)
def test_an_interface_is_found_by_its_address(name, address):
    assert interface_of(address) == name


def test_an_address_of_another_host_has_no_interface():
    assert interface_of("192.0.2.1") is None  # reserved for documentation (RFC 5737)


def test_an_interface_set_in_the_environment_is_kept(monkeypatch):
    name, address = ADDRESSES[0]
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    monkeypatch.setenv(INTERFACE, "eth7")
    choose_interface()
    assert os.environ[INTERFACE] == "eth7"
    monkeypatch.delenv(INTERFACE)
    choose_interface()
    assert os.environ[INTERFACE] == name


@pytest.mark.parametrize(
    ("backend", "gpus", "expected"),
    [(None, 0, None), (None, 1, "cpu:gloo,cuda:nccl"), ("nccl", 1, "nccl"), ("gloo", 0, "gloo")],
)
def test_gpu_process_groups_also_have_gloo_for_cpu_tensors(backend, gpus, expected):
    config = with_gloo(TorchOnNodes(backend=backend), gpus)
    assert isinstance(config, TorchOnNodes) and config.backend == expected
