"""Tests the cluster checks that find problems in the facts that nodes report."""

import dataclasses

import pytest

from landmark.diagnostics.checks import findings_of
from landmark.diagnostics.inspect import NodeFacts
from landmark.diagnostics.status import runs_in, status_text, studies_in

GIB = 2**30
VERSIONS = {"python": "3.11.9", "ray": "2.60.0", "torch": "2.14.1", "numpy": "2.4.0"}
HEAD = NodeFacts(
    address="10.0.0.1",
    host="head",
    head=True,
    object_store=2 * GIB,
    shm=4 * GIB,
    disk_free=100 * GIB,
    versions=dict(VERSIONS),
)
WORKER = dataclasses.replace(HEAD, address="10.0.0.2", host="worker", head=False, cpus=8.0)
GPU = dataclasses.replace(WORKER, address="10.0.0.3", gpus=1.0, devices=["A100"])


def findings(*nodes: NodeFacts) -> list[str]:
    return [str(finding) for finding in findings_of(nodes, VERSIONS)]


def test_a_healthy_cluster_has_no_findings():
    assert findings(HEAD, WORKER, GPU) == []


@pytest.mark.parametrize(
    ("change", "start", "part"),
    [
        ({"error": "no answer within 60 s"}, "error: 10.0.0.2: no answer", "logs"),
        ({"versions": VERSIONS | {"torch": "2.9.0"}}, "error: 10.0.0.2: torch is 2.9.0 there, 2.14.1 here", "image"),
        ({"versions": VERSIONS | {"numpy": "2.0.0"}}, "warning: 10.0.0.2: numpy is 2.0.0 there", "constraints.txt"),
        ({"versions": {k: v for k, v in VERSIONS.items() if k != "torch"}}, "error: 10.0.0.2: torch is none", "image"),
        ({"clock_s": -4.2}, "warning: 10.0.0.2: its clock is 4.2 s behind", "NTP"),
        ({"clock_s": 600.0}, "error: 10.0.0.2: its clock is 600.0 s ahead", "NTP"),
        ({"storage": {"s3://b": "s3://b: no such bucket"}}, "error: 10.0.0.2: s3://b: no such bucket", "credentials"),
        ({"shm": 64 << 20}, "warning: 10.0.0.2: its object store of 2.0 GiB exceeds /dev/shm", "emptyDir"),
        ({"object_store": 100 << 20}, "warning: 10.0.0.2: its object store has 100 MiB", "--object-store-memory"),
        ({"disk_free": GIB}, "warning: 10.0.0.2: 1.0 GiB of disk free", "--temp-dir"),
        ({"gpus": 1.0}, "error: 10.0.0.2: Ray counts 1 GPUs, but torch can use 0", "driver"),
        ({"gpus": 4.0, "devices": ["A100"] * 4}, "warning: 10.0.0.2: 8 CPUs for 4 GPUs", "--loader.decode data"),
    ],
)
def test_each_fault_is_one_line_that_names_the_node_and_the_fix(change, start, part):
    (line,) = findings(HEAD, dataclasses.replace(WORKER, **change))
    assert line.startswith(start) and part in line and "\n" not in line


def test_errors_come_first_and_equal_findings_share_a_line():
    others = [dataclasses.replace(WORKER, address=f"10.0.1.{i}", clock_s=3.0, disk_free=0) for i in range(6)]
    others[0] = dataclasses.replace(others[0], storage={"s3://b": "s3://b: no such bucket"})
    lines = findings(HEAD, *others)
    assert lines[0].startswith("error: 10.0.1.0: s3://b")
    assert sum("GiB of disk" in line and "and 2 more nodes" in line for line in lines) == 1


def test_mixed_gpu_types_and_a_head_with_cpus_are_reported():
    other = dataclasses.replace(GPU, address="10.0.0.4", devices=["T4"])
    assert findings(HEAD, GPU, other) == [
        "warning: GPU types differ (1 x A100, 1 x T4): each training step waits for the slowest GPU"
    ]
    (line,) = findings(dataclasses.replace(HEAD, cpus=4.0), WORKER)
    assert line.startswith("warning: 10.0.0.1: the head node offers 4 CPUs for work")


def test_a_dead_node_is_shown_only_in_the_status():
    dead = dataclasses.replace(WORKER, address="10.0.0.9", alive=False, versions={})
    assert findings(HEAD, WORKER, dead) == []
    assert "10.0.0.9" in status_text([HEAD, WORKER, dead], []) and "dead" in status_text([dead], [])


def test_runs_and_studies_are_read_from_the_metrics_of_all_nodes():
    def stages(tags: str) -> str:
        waits = {"storage": 0.05, "decoding": 0.15, "transfer": 0.05}
        return "".join(
            f'ray_landmark_stage_wait_fraction{tags[:-1]},stage="{name}"}} {wait}\n' for name, wait in waits.items()
        )

    def metrics(rank: int, images_per_s: float, trial: str = "") -> str:
        tags = f'{{run="r",trial="{trial}",rank="{rank}"}}'
        return (
            f"# TYPE ray_landmark_images_per_second gauge\nray_landmark_images_per_second{tags} {images_per_s}\n"
            f"# TYPE ray_landmark_data_wait_fraction gauge\nray_landmark_data_wait_fraction{tags} 0.25\n"
            f"# TYPE ray_landmark_stage_wait_fraction gauge\n{stages(tags)}"
            f"# TYPE ray_landmark_epoch gauge\nray_landmark_epoch{tags} 3.0\n"
        )

    study = '# TYPE ray_landmark_trials gauge\nray_landmark_trials{study="s",state="running"} 2.0\n'
    nodes = [
        dataclasses.replace(WORKER, metrics=metrics(0, 100.0) + study),
        dataclasses.replace(GPU, metrics=metrics(1, 50.0)),
        dataclasses.replace(HEAD, metrics=metrics(0, 0.0, "ended")),
    ]
    (run,) = runs_in(nodes)
    assert (run.run, run.epoch, run.images_per_s, run.ranks) == ("r", 3, 150.0, {"0", "1"})
    assert studies_in(nodes) == {"s": {"running": 2}}
    text = status_text(nodes, [])
    assert "s: 2 running" in text and "150" in text and "25%" in text and "decoding" in text
