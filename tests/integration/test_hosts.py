"""A cluster of several hosts: jobs from outside with a token, nothing else let in, a host that is cut off is replaced."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.hosts import CLIENT, DASHBOARD, GCS, RAY, Host, Hosts, missing
from tests.support.jobs import (
    BATCH,
    EVERY,
    TRAIN,
    TRIAL,
    cut_in_run,
    cut_in_study,
    put_dataset,
    repeated,
    skipped,
    trial_path,
)

pytestmark = pytest.mark.timeout(600)
# Says which of some addresses take a connection.
KNOCK = """
import asyncio, sys
async def knock(place):
    host, port = place.rsplit(":", 1)
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 3)
    except (OSError, asyncio.TimeoutError):
        return
    writer.close()
    print(place)
async def main():
    await asyncio.gather(*map(knock, sys.argv[1:]))
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
    if (reason := missing()) is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with Hosts(workers=3) as made:
        put_dataset(made, tmp_path_factory.mktemp("packed"))
        yield made


@pytest.fixture
def place(hosts: Hosts, tmp_path: Path) -> str:
    """A folder of the test's own in the bucket, all hosts of the cluster being there."""
    hosts.mend()
    return f"landmark/{tmp_path.name}"


def open_ports(host: Host) -> set[str]:
    """Return what listens on a host for others, address and port."""
    listening = host.run("ss", "--listening", "--tcp", "--numeric", "--no-header").stdout.splitlines()
    found = [line.split()[3].rsplit(":", 1) for line in listening]
    return {f"{host.address}:{port}" for address, port in found if not address.startswith(("127.", "[::1]"))}


def test_from_another_net_no_port_of_the_cluster_is_reached(hosts):
    hosts.mend()
    listening = {place for host in (hosts.head, *hosts.workers, hosts.store) for place in open_ports(host)}
    wanted = {f"{hosts.head.address}:{port}" for port in (GCS, DASHBOARD, CLIENT)}
    assert wanted <= listening
    inside = hosts.desk.run(sys.executable, "-c", KNOCK, *listening).stdout.split()
    assert wanted <= set(inside) and len(inside) > 0.8 * len(listening)  # some are of processes that have ended since
    dropped = hosts.dropped(hosts.head)
    assert hosts.stranger.run(sys.executable, "-c", KNOCK, *listening).stdout == ""
    # It was the firewall, not the way: as many attempts at least were counted and dropped.
    assert hosts.dropped(hosts.head) >= dropped + len(wanted)


def test_without_the_token_nobody_in_the_net_is_let_in(hosts):
    jobs, witness = f"{hosts.dashboard}/api/jobs/", hosts.head.folder / "ran"
    wrong, none = {"RAY_AUTH_TOKEN": "wrong" * 8}, {"RAY_AUTH_TOKEN": None}
    codes = [
        hosts.desk.run(sys.executable, "-c", STATUS, jobs, **change).stdout.strip() for change in ({}, none, wrong)
    ]
    assert codes == ["200", "401", "403"]
    touch = [RAY, "job", "submit", "--address", hosts.dashboard, "--", "touch", str(witness)]
    for change in (none, wrong):
        refused = hosts.desk.run(*touch, **change)
        assert refused.returncode != 0 and "submitted successfully" not in refused.stdout
    assert not witness.exists()


@pytest.mark.parametrize(("port", "code"), [(GCS, CONNECT), (CLIENT, CONNECT_CLIENT)], ids=["gcs", "client"])
def test_without_the_token_no_driver_connects(hosts, port, code):
    hosts.mend()
    place = [sys.executable, "-c", code, f"{hosts.head.address}:{port}"]
    node = hosts.workers[0]  # a driver needs a node beside it; only the token makes the difference
    quick = {"RAY_NUM_REDIS_GET_RETRIES": "2"}
    assert "let in" in node.run(*place).stdout
    for change in ({"RAY_AUTH_TOKEN": None}, {"RAY_AUTH_TOKEN": "wrong" * 8}, {"RAY_AUTH_MODE": "disabled"}):
        refused = node.run(*place, **quick, **change)
        assert refused.returncode != 0 and "let in" not in refused.stdout


def names(found: Iterable[Host]) -> set[str]:
    return {host.name for host in found}


def test_a_study_trains_across_hosts_and_goes_on_when_one_is_cut_off(hosts, place, tmp_path):
    cut = cut_in_study(hosts, place, tmp_path / "said.txt")
    study = json.loads(hosts.get(f"s3://{place}/study/study.json"))
    assert (study["finished"], study["failed"], study["best"]["test"]["5"]) == (1, 0, 1.0)
    trial = trial_path(place, TRIAL)
    assert len(names(cut.before)) == len(names(cut.after)) == 2
    assert names(cut.after) == names(hosts.workers) - {cut.host.name}
    assert skipped(hosts, trial) == 0
    assert repeated(hosts, trial) <= TRAIN  # a trial saves at the end of an epoch


def test_a_run_goes_on_inside_the_epoch_when_a_host_is_cut_off(hosts, place, tmp_path):
    cut = cut_in_run(hosts, place, tmp_path / "said.txt")
    assert names(cut.after) == names(hosts.workers) - {cut.host.name}
    assert skipped(hosts, f"{place}/run") == 0
    assert repeated(hosts, f"{place}/run") <= 2 * EVERY * BATCH
