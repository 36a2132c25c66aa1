"""Faults of object storage for real: its server killed, frozen or refusing, shards damaged; as a user sees them.

What is disturbed on its way is a process of its own. The server belongs to this module.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from landmark.cli import main
from landmark.config import SyntheticConfig
from landmark.data.dataset import PackedDataset
from landmark.data.synthetic import plan_images
from landmark.storage import locate
from tests.support.seaweed import Seaweed, free_ports

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 90
IMAGES = SyntheticConfig(images=1200, classes=5, image_size=48)
FAST = ["--model.backbone", "deck_mlp", "--loader.image-size", "32", "--loader.decode-threads", "1", "--no-tensorboard"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A server of this module alone."""
    found = Seaweed(tmp_path_factory.mktemp("seaweed-faults"), free_ports(4))
    found.start()
    yield found
    found.thaw()
    found.stop()


def environment(server: Seaweed, **changes: str) -> dict[str, str]:
    own = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.ports[3]}", "PYTHONPATH": str(ROOT)}
    return os.environ | own | changes


@pytest.fixture(scope="module", autouse=True)
def this_process_sees_the_server(server: Seaweed) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.ports[3]}")
        yield


@contextmanager
def started(server: Seaweed, *arguments: str, **changes: str) -> Iterator[subprocess.Popen[str]]:
    """Run `landmark …` beside the test; it and the Ray it started end with the block."""
    command = [sys.executable, "-m", "landmark", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environ = environment(server, **changes)
    with subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True, **pipes) as job:
        try:
            yield job
        finally:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)


def error_line(err: str) -> str:
    """Return the one line of error; a traceback is none."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if ": error: " in line]
    assert len(lines) == 1, err
    print(lines[0])
    return lines[0]


def wait_for(condition, job: subprocess.Popen[str], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and job.poll() is None, "the job did not come that far"
        time.sleep(0.05)


def prepare(server: Seaweed, name: str) -> list[str]:
    drawn = {"images": IMAGES.images, "classes": IMAGES.classes, "image-size": IMAGES.image_size}
    options = [word for key, value in drawn.items() for word in (f"--synthetic.{key}", str(value))]
    return [
        "prepare",
        "--output",
        server.uri(name),
        "--source",
        "synthetic",
        "--cluster.cpus",
        "1",
        "--packing.row-group-rows",
        "16",
        *options,
    ]


def parts_done(server: Seaweed, name: str) -> int:
    work = locate(server.uri(name)) / "_work" / "parts"
    return sum(path.endswith(".json") for path in work.names()) if work.exists() else 0


def check_every_image_once(uri: str) -> None:
    """Every synthetic image lies in the shards exactly once."""
    dataset = PackedDataset.open(uri)
    ids: list[str] = []
    for entry in dataset.manifest.splits.values():
        for shard in entry.shards:
            with (dataset.location / shard.path).open_input() as stream:
                ids += pq.read_table(stream, columns=["image_id"])["image_id"].to_pylist()
    assert sorted(ids) == sorted(plan_images(IMAGES, 0)["image_id"].to_pylist())


@pytest.fixture(scope="module")
def dataset(server: Seaweed) -> str:
    """A packed dataset on the server, made while it is killed and started again in the middle."""
    uri = server.uri("packed")
    with started(server, *prepare(server, "packed"), LANDMARK_STORAGE_DEADLINE_S=str(DEADLINE_S)) as job:
        wait_for(lambda: parts_done(server, "packed") > 1, job)
        server.kill()
        time.sleep(2)
        assert job.poll() is None
        server.start()
        out, err = job.communicate(timeout=200)
    assert job.returncode == 0, err
    assert "packed 1,200 images" in out
    return uri


def test_packing_outlasts_a_killed_and_restarted_server(dataset, capfd):
    check_every_image_once(dataset)
    assert main(["prepare", "--output", dataset, "--verify"]) == 0
    assert "1,200 images" in capfd.readouterr().out


def test_training_outlasts_a_killed_and_restarted_server(dataset, server, tmp_path):
    """Reading shards and writing checkpoints and history, all to the server, all over its restart."""
    run = ["train", "--dataset", dataset, "--output", server.uri("runs"), "--name", "killed", "--epochs", "12", *FAST]
    history = locate(server.uri("runs/killed/history.csv"))
    with started(server, *run, LANDMARK_STORAGE_DEADLINE_S=str(DEADLINE_S)) as job:
        wait_for(history.exists, job)
        server.kill()
        time.sleep(3)
        assert job.poll() is None
        server.start()
        out, err = job.communicate(timeout=200)
    assert job.returncode == 0, err
    assert "lost" not in out
    rows = list(csv.DictReader(history.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 13)]
    assert main(["evaluate", "--run", server.uri("runs/killed")]) == 0


def test_a_frozen_server_is_an_error_in_time_and_the_same_command_finishes_after_thaw(server):
    with started(server, *prepare(server, "frozen"), LANDMARK_STORAGE_DEADLINE_S="4") as job:
        wait_for(lambda: parts_done(server, "frozen") > 0, job)
        server.freeze()
        try:
            _, err = job.communicate(timeout=90)
        finally:
            server.thaw()
    assert job.returncode == 1
    line = error_line(err)
    assert "packing stopped" in line and "object storage at http://127.0.0.1" in line and "run the same" in line
    assert not (locate(server.uri("frozen")) / "manifest.json").exists()
    # In a process of its own: workers of the session's Ray have another server in their environment.
    with started(server, *prepare(server, "frozen")) as job:
        _, err = job.communicate(timeout=90)
    assert job.returncode == 0, err
    check_every_image_once(server.uri("frozen"))


def test_a_server_frozen_while_training_is_an_error_in_time(dataset, server):
    run = ["train", "--dataset", dataset, "--output", server.uri("runs"), "--name", "frozen", *FAST]
    history = locate(server.uri("runs/frozen/history.csv"))
    with started(server, *run, "--epochs", "400", LANDMARK_STORAGE_DEADLINE_S="4") as job:
        wait_for(history.exists, job)
        server.freeze()
        try:
            _, err = job.communicate(timeout=90)
        finally:
            server.thaw()
    assert job.returncode == 1
    assert "object storage at http://127.0.0.1" in error_line(err)
    done = len(list(csv.DictReader(history.read_text().splitlines())))
    assert main([*run, "--epochs", str(done + 1), "--resume"]) == 0
    rows = list(csv.DictReader(history.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, done + 2)]


READER = {"AWS_ACCESS_KEY_ID": "read-only", "AWS_SECRET_ACCESS_KEY": "read-only-secret"}


@pytest.mark.parametrize(
    ("changes", "output", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "quite-wrong"}, None, "access denied; check AWS_ACCESS_KEY_ID"),
        ({}, "s3://no-such-bucket/d", "no such bucket; create it or check its name"),
        (READER, None, "access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's permissions"),
    ],
    ids=["wrong secret", "bucket missing", "read-only bucket"],
)
def test_refusals_are_one_line_before_the_work(
    dataset, server, ray_cluster, changes, output, message, monkeypatch, capfd
):
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    target = output or server.uri("refused")
    source = dataset if output is None else output
    for command in (["train", "--dataset", source, *FAST], ["prepare", "--source", "synthetic"]):
        capfd.readouterr()
        assert main([*command, "--output", target]) == 1
        shown = capfd.readouterr()
        assert message in error_line(shown.err)
        assert "quite-wrong" not in shown.out + shown.err


@contextmanager
def damaged(dataset: str, fault: str) -> Iterator[tuple[str, int]]:
    """Damage the dataset's first shard of train while the block runs; gives its URI and the images lost by it."""
    entry = PackedDataset.open(dataset).split("train").shards[0]
    place = locate(dataset) / entry.path
    whole = place.read_bytes()
    if fault == "deleted":
        place.delete()
    elif fault == "truncated":
        place.write_bytes(whole[: len(whole) // 2])
    else:
        place.write_bytes(bytes(byte ^ (0x10 * (i == 9999)) for i, byte in enumerate(whole)))
    try:
        yield place.uri, 16 if fault == "flipped byte" else entry.rows
    finally:
        place.write_bytes(whole)


@pytest.mark.parametrize("fault", ["deleted", "truncated", "flipped byte"])
def test_a_damaged_shard_is_found_named_and_by_option_skipped(dataset, fault, tmp_path, capfd):
    run = ["train", "--dataset", dataset, "--output", str(tmp_path), "--epochs", "2", *FAST]
    with damaged(dataset, fault) as (uri, lost):
        assert main(["prepare", "--output", dataset, "--verify"]) == 1
        shown = capfd.readouterr()
        assert shown.out and all(line.startswith(f"{uri}: ") for line in shown.out.splitlines())
        assert "listed above" in error_line(shown.err)
        assert main(run) == 1
        stopped = error_line(capfd.readouterr().err)
        assert uri in stopped and "damaged: skip" in stopped
        assert main([*run, "--loader.damaged", "skip", "--resume"]) == 0
        out = capfd.readouterr().out
    told = [line for line in out.splitlines() if "warning" in line]
    assert len(told) == 1 and uri in told[0]
    rows = list(csv.DictReader((tmp_path / "train" / "history.csv").open()))
    assert [row["lost_images"] for row in rows] == [str(lost)] * 2
    assert f"{lost:,} images lost" in out


def test_no_secret_is_in_logs_configs_or_records(dataset, tmp_path, capfd):
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert main(["train", "--dataset", dataset, "--output", str(tmp_path), "--epochs", "1", *FAST]) == 0
    shown = capfd.readouterr()
    assert secret not in shown.out + shown.err
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()
    for name in locate(dataset).walk():
        if name.endswith(".json"):
            assert secret not in (locate(dataset) / name).read_text()
    assert json.loads((locate(dataset) / "manifest.json").read_text())["classes"] == 5
