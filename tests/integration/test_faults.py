"""Tests faults of object storage as users see them: a killed or frozen server, denied access, corrupt shards.

Commands that are disturbed run in separate processes. The server is used only by this module.
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
IMAGES = SyntheticConfig(images=600, classes=5, image_size=48)
FAST = [
    "--model.backbone",
    "reference_mlp",
    "--loader.image-size",
    "32",
    "--loader.decode-threads",
    "1",
    "--no-tensorboard",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """Return a server that only this module uses."""
    found = Seaweed(tmp_path_factory.mktemp("seaweed-faults"), free_ports(4))
    found.start()
    yield found
    found.thaw()
    found.stop()


def environment(server: Seaweed, **changes: str) -> dict[str, str]:
    server_environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.ports[3]}", "PYTHONPATH": str(ROOT)}
    return os.environ | server_environment | changes


@pytest.fixture(scope="module", autouse=True)
def use_server_in_this_process(server: Seaweed) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.ports[3]}")
        yield


@contextmanager
def started(server: Seaweed, *arguments: str, **changes: str) -> Iterator[subprocess.Popen[str]]:
    """Run `landmark …` in parallel to the test. It and the Ray it started are killed at the end of the block."""
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
    """Return the only error line. A traceback fails the test."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if ": error: " in line]
    assert len(lines) == 1, err
    print(lines[0])
    return lines[0]


def wait_for(condition, job: subprocess.Popen[str], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and job.poll() is None, "the job did not reach the condition"
        time.sleep(0.05)


def prepare(server: Seaweed, name: str) -> list[str]:
    settings = {"images": IMAGES.images, "classes": IMAGES.classes, "image-size": IMAGES.image_size}
    options = [word for key, value in settings.items() for word in (f"--synthetic.{key}", str(value))]
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
    """Check that every synthetic image is in the shards exactly once."""
    dataset = PackedDataset.open(uri)
    ids: list[str] = []
    for entry in dataset.manifest.splits.values():
        for shard in entry.shards:
            with (dataset.location / shard.path).open_input() as stream:
                ids += pq.read_table(stream, columns=["image_id"])["image_id"].to_pylist()
    assert sorted(ids) == sorted(plan_images(IMAGES, 0)["image_id"].to_pylist())


@pytest.fixture(scope="module")
def dataset(server: Seaweed) -> str:
    """Pack a dataset to the server, which is killed and restarted meanwhile. Returns its URI."""
    uri = server.uri("packed")
    with started(server, *prepare(server, "packed"), LANDMARK_STORAGE_DEADLINE_S=str(DEADLINE_S)) as job:
        wait_for(lambda: parts_done(server, "packed") > 1, job)
        server.kill()
        time.sleep(2)
        assert job.poll() is None
        server.start()
        out, err = job.communicate(timeout=200)
    assert job.returncode == 0, err
    assert "packed 600 images" in out
    return uri


def test_packing_survives_a_killed_and_restarted_server(dataset, capfd):
    check_every_image_once(dataset)
    assert main(["prepare", "--output", dataset, "--verify"]) == 0
    assert "600 images" in capfd.readouterr().out


def test_training_survives_a_killed_and_restarted_server(dataset, server, tmp_path):
    """Shards, checkpoints and history are all stored on the server that restarts."""
    run = ["train", "--dataset", dataset, "--output", server.uri("runs"), "--name", "killed", "--epochs", "8", *FAST]
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
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 9)]
    assert main(["evaluate", "--run", server.uri("runs/killed")]) == 0


def test_packing_fails_when_the_server_freezes_and_resumes_later(server):
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
    # In a separate process: workers of the session's Ray have another server in their environment.
    with started(server, *prepare(server, "frozen")) as job:
        _, err = job.communicate(timeout=90)
    assert job.returncode == 0, err
    check_every_image_once(server.uri("frozen"))


def test_training_fails_in_time_when_the_server_freezes_and_resumes(dataset, server):
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
def test_denied_access_prints_one_line_before_any_work(
    dataset, server, ray_cluster, changes, output, message, monkeypatch, capfd
):
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    target = output or server.uri("refused")
    source = dataset if output is None else output
    for command in (["train", "--dataset", source, *FAST], ["prepare", "--source", "synthetic"]):
        capfd.readouterr()
        assert main([*command, "--output", target]) == 1
        captured = capfd.readouterr()
        assert message in error_line(captured.err)
        assert "quite-wrong" not in captured.out + captured.err


@contextmanager
def corrupted(dataset: str, fault: str) -> Iterator[tuple[str, int]]:
    """Corrupt the first training shard during the block. Yields its URI and the number of lost images."""
    entry = PackedDataset.open(dataset).split("train").shards[0]
    shard = locate(dataset) / entry.path
    intact = shard.read_bytes()
    if fault == "deleted":
        shard.delete()
    elif fault == "truncated":
        shard.write_bytes(intact[: len(intact) // 2])
    else:
        shard.write_bytes(bytes(byte ^ (0x10 * (i == 9999)) for i, byte in enumerate(intact)))
    try:
        yield shard.uri, 16 if fault == "flipped byte" else entry.rows
    finally:
        shard.write_bytes(intact)


@pytest.mark.parametrize("fault", ["deleted", "truncated", "flipped byte"])
def test_a_corrupt_shard_is_named_and_skipped_on_request(dataset, fault, tmp_path, capfd):
    run = ["train", "--dataset", dataset, "--output", str(tmp_path), "--epochs", "2", *FAST]
    with corrupted(dataset, fault) as (uri, lost):
        assert main(["prepare", "--output", dataset, "--verify"]) == 1
        output = capfd.readouterr()
        assert output.out and all(line.startswith(f"{uri}: ") for line in output.out.splitlines())
        assert "listed above" in error_line(output.err)
        assert main(run) == 1
        error = error_line(capfd.readouterr().err)
        assert uri in error and "corrupt: skip" in error
        assert main([*run, "--loader.corrupt", "skip", "--resume"]) == 0
        out = capfd.readouterr().out
    messages = [line for line in out.splitlines() if "warning" in line]
    assert len(messages) == 1 and uri in messages[0]
    rows = list(csv.DictReader((tmp_path / "train" / "history.csv").open()))
    assert [row["lost_images"] for row in rows] == [str(lost)] * 2
    assert f"{lost:,} images lost" in out


def test_no_secret_is_in_logs_configs_or_records(dataset, tmp_path, capfd):
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert main(["train", "--dataset", dataset, "--output", str(tmp_path), "--epochs", "1", *FAST]) == 0
    output = capfd.readouterr()
    assert secret not in output.out + output.err
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()
    for name in locate(dataset).walk():
        if name.endswith(".json"):
            assert secret not in (locate(dataset) / name).read_text()
    assert json.loads((locate(dataset) / "manifest.json").read_text())["classes"] == 5
