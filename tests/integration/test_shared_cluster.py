"""Two studies on one cluster."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from landmark.data.dataset import PackedDataset
from tests.support.nodes import Nodes
from tests.support.packed import write_packed
from tests.support.studies import COMMON, events

ROOT = Path(__file__).parent.parent.parent
TRIALS = """
parameters:
  optimizer.lr: {grid: [0.001, 0.002, 0.003, 0.004]}
  epochs: {grid: [40]}
"""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head for the drivers and a node with one CPU."""
    found = Nodes(1)
    try:
        yield found
    finally:
        found.cluster.shutdown()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("packed")
    return write_packed(folder, {"train": [64, 40], "val": [32], "test": [24]}, classes=4)


def start(dataset: PackedDataset, folder: Path, name: str, address: str, *options: str) -> subprocess.Popen[str]:
    """Start a study as a separate process."""
    space = folder / f"{name}.yaml"
    space.write_text(COMMON + TRIALS)
    command = [sys.executable, "-m", "landmark.tune", dataset.uri, "--space", str(space), "--output", str(folder)]
    command += ["--name", name, "--address", address, "--test", "none", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_studies_share_a_cluster(nodes, dataset, tmp_path):
    nodes.add()
    both = [start(dataset, tmp_path, name, nodes.address, "--max-concurrent", "1") for name in ("first", "second")]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    times = [[event["at"] for event in events(tmp_path / name, "report")] for name in ("first", "second")]
    assert max(map(min, times)) < min(map(max, times)), "each reported while the other ran"
