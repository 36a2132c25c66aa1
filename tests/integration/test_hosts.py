"""Tests a cluster of several hosts: access control with firewall and token, and recovery from an unreachable host."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.hosts import CLIENT, DASHBOARD, GCS, RAY, Host, Hosts, unavailable_reason
from tests.support.jobs import (
    BATCH,
    CHECKPOINT_STEPS,
    TRAIN,
    TRIAL,
    disconnect_in_run,
    disconnect_in_study,
    put_dataset,
    repeated,
    skipped,
    step_files,
    train_command,
    trial_path,
)

pytestmark = pytest.mark.timeout(600)
# Prints which of the given addresses accept a connection.
PROBE = """
import asyncio, sys
async def probe(address):
    host, port = address.rsplit(":", 1)
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 3)
    except (OSError, asyncio.TimeoutError):
        return
    writer.close()
    print(address)
async def main():
    await asyncio.gather(*map(probe, sys.argv[1:]))
asyncio.run(main())
"""
CONNECT = "import sys, ray; ray.init(sys.argv[1], logging_level='CRITICAL'); print('let in')"
CONNECT_CLIENT = """
import sys, ray.util.client_connect
ray.util.client_connect.connect(sys.argv[1], connection_retries=1)
print('let in')
"""
STATUS = """
import os, sys, urllib.error, urllib.request
token = os.environ.get("RAY_AUTH_TOKEN")
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + token} if token else {})
try:
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if (reason := unavailable_reason()) is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with Hosts(workers=3) as created:
        put_dataset(created, tmp_path_factory.mktemp("packed"))
        yield created


@pytest.fixture
def place(hosts: Hosts, tmp_path: Path) -> str:
    """Reconnect all hosts, and return the test's own folder in the bucket."""
    hosts.reconnect()
    return f"landmark/{tmp_path.name}"


def open_ports(host: Host) -> set[str]:
    """Return the addresses with ports on which a host accepts remote connections."""
    listening = host.run("ss", "--listening", "--tcp", "--numeric", "--no-header").stdout.splitlines()
    found = [line.split()[3].rsplit(":", 1) for line in listening]
    return {f"{host.address}:{port}" for address, port in found if not address.startswith(("127.", "[::1]"))}


def test_no_port_of_the_cluster_is_reachable_from_another_network(hosts):
    hosts.reconnect()
    listening = {address for host in (hosts.head, *hosts.workers, hosts.store) for address in open_ports(host)}
    required = {f"{hosts.head.address}:{port}" for port in (GCS, DASHBOARD, CLIENT)}
    assert required <= listening
    reachable = hosts.client.run(sys.executable, "-c", PROBE, *listening).stdout.split()
    # Some ports belonged to processes that have ended.
    assert required <= set(reachable) and len(reachable) > 0.8 * len(listening)
    dropped_before = hosts.dropped_packets(hosts.head)
    assert hosts.outsider.run(sys.executable, "-c", PROBE, *listening).stdout == ""
    # The firewall blocked the connections, not the routing: it dropped at least as many packets.
    assert hosts.dropped_packets(hosts.head) >= dropped_before + len(required)


def test_the_jobs_api_rejects_requests_without_the_token(hosts):
    jobs, marker = f"{hosts.dashboard}/api/jobs/", hosts.head.folder / "ran"
    wrong, none = {"RAY_AUTH_TOKEN": "wrong" * 8}, {"RAY_AUTH_TOKEN": None}
    codes = [
        hosts.client.run(sys.executable, "-c", STATUS, jobs, **change).stdout.strip() for change in ({}, none, wrong)
    ]
    assert codes == ["200", "401", "403"]
    touch = [RAY, "job", "submit", "--address", hosts.dashboard, "--", "touch", str(marker)]
    for change in (none, wrong):
        refused = hosts.client.run(*touch, **change)
        assert refused.returncode != 0 and "submitted successfully" not in refused.stdout
    assert not marker.exists()


@pytest.mark.parametrize(("port", "code"), [(GCS, CONNECT), (CLIENT, CONNECT_CLIENT)], ids=["gcs", "client"])
def test_without_the_token_no_driver_connects(hosts, port, code):
    hosts.reconnect()
    command = [sys.executable, "-c", code, f"{hosts.head.address}:{port}"]
    node = hosts.workers[0]  # a driver needs a local node, so only the token differs
    quick = {"RAY_NUM_REDIS_GET_RETRIES": "2"}
    assert "let in" in node.run(*command).stdout
    for change in ({"RAY_AUTH_TOKEN": None}, {"RAY_AUTH_TOKEN": "wrong" * 8}, {"RAY_AUTH_MODE": "disabled"}):
        refused = node.run(*command, **quick, **change)
        assert refused.returncode != 0 and "let in" not in refused.stdout


def names(found: Iterable[Host]) -> set[str]:
    return {host.name for host in found}


def test_a_study_on_several_hosts_resumes_when_one_is_unreachable(hosts, place, tmp_path):
    disconnection = disconnect_in_study(hosts, place, tmp_path / "output.txt")
    study = json.loads(hosts.get(f"s3://{place}/study/study.json"))
    assert (study["finished"], study["failed"], study["best"]["test"]["5"]) == (1, 0, 1.0)
    trial = trial_path(place, TRIAL)
    assert len(names(disconnection.before)) == len(names(disconnection.after)) == 2
    assert names(disconnection.after) == names(hosts.workers) - {disconnection.host.name}
    assert skipped(hosts, trial) == 0
    assert repeated(hosts, trial) <= TRAIN  # trials save only at the end of an epoch


def test_a_run_resumes_within_the_epoch_when_a_host_is_unreachable(hosts, place, tmp_path):
    disconnection = disconnect_in_run(hosts, place, tmp_path / "output.txt")
    assert names(disconnection.after) == names(hosts.workers) - {disconnection.host.name}
    assert skipped(hosts, f"{place}/run") == 0
    assert repeated(hosts, f"{place}/run") <= 2 * CHECKPOINT_STEPS * BATCH


DECODE_ON_CPU_HOSTS = [
    *(
        "--loader.decode",
        "data",
        "--loader.decoders",
        "1:2",
        "--loader.data-cpus",
        "0.25",
        "--loader.reader-cpus",
        "0.1",
    ),
    *("--workers.cpus", "1", "--checkpoint.minutes", "None"),
]
"""Options with which the trainers fill two hosts. Readers and decoders fit only on the third one."""


def data_actors(host: Host) -> set[str]:
    """Return the names of the Ray Data actors on a host."""
    pids = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True).stdout.split()
    commands = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    lines = [path.read_bytes().decode(errors="replace") for path in commands if path.exists()]
    return {name for name in ("PartReader", "PartDecoder") for line in lines if f"({name})" in line}


def test_a_host_without_trainers_reads_and_decodes(hosts, place, tmp_path):
    output, seen = tmp_path / "output.txt", {host.name: set() for host in hosts.workers}
    job = hosts.client.start(*hosts.submission(*train_command(place, *DECODE_ON_CPU_HOSTS)), output=output)
    try:
        deadline = time.monotonic() + 280
        while job.poll() is None:
            assert time.monotonic() < deadline, output.read_text()
            for host in hosts.workers:
                seen[host.name] |= data_actors(host)
            time.sleep(0.2)
        assert job.wait() == 0, output.read_text()
    finally:
        job.kill()
        job.wait()
    trainers = names(step_files(hosts, f"{place}/run").values())
    (decoding,) = names(hosts.workers) - trainers
    assert len(trainers) == 2
    assert seen == {decoding: {"PartReader", "PartDecoder"}} | {name: set() for name in trainers}
    assert skipped(hosts, f"{place}/run") == 0 and repeated(hosts, f"{place}/run") == 0
