"""Shared fixtures: photographs, object storage, a Ray cluster, a small dataset."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.seaweed import Seaweed, free_ports
from tests.support.web import WebServer

ROOT = Path(__file__).parent.parent

hypothesis.settings.register_profile("landmark", deadline=None, max_examples=50)
hypothesis.settings.load_profile("landmark")

# Set before Ray starts, so that its workers inherit them even if the server starts later.
S3_PORTS = free_ports(4)
os.environ.update(
    AWS_ACCESS_KEY_ID="landmark-test",
    AWS_SECRET_ACCESS_KEY="landmark-test-secret",
    AWS_ENDPOINT_URL=f"http://127.0.0.1:{S3_PORTS[3]}",
    AWS_REGION="us-east-1",
    AWS_EC2_METADATA_DISABLED="true",
)


def pytest_configure() -> None:
    """Limit every process to one thread: with two, OpenMP threads that wait use nearly half of the CPU time."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Tests start hundreds of processes. With cached bytecode, each starts faster.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # Otherwise, an actor of Ray Data collects them in each cluster.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray starts its workers with niceness 15; they would starve next to the processes of the tests.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Test runs take seconds, and Ray Train's controller sees reports and the end of a run only when it polls.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Retry integration tests once: they have timeouts, and a busy machine may stall for longer."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real photographs."""
    folder = Path(os.environ.get("LANDMARK_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not (folder / "monuments").is_dir():
        reason = f"no photographs at {folder}; set LANDMARK_TEST_DATA"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server with a bucket, for the session."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed"), S3_PORTS)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray instance for the session, with more logical CPUs than the machine has."""
    import ray

    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=400 << 20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_dataset(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a dataset of 300 synthetic images in 6 classes, packed by the real job."""
    from landmark.config import PrepareConfig, SyntheticConfig
    from landmark.data.packing.job import pack_dataset
    from landmark.data.packing.sources import SyntheticSource
    from landmark.storage import locate

    output = tmp_path_factory.mktemp("small") / "dataset"
    config = PrepareConfig(
        output=str(output),
        source="synthetic",
        synthetic=SyntheticConfig(classes=6, images=300, image_size=48, tail=0.2),
    )
    pack_dataset(locate(output), SyntheticSource(config.synthetic, config.seed), config)
    return str(output)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    """A web server that serves the test's own folder `web`."""
    (tmp_path / "web").mkdir()
    server = WebServer(tmp_path / "web")
    server.start()
    yield server
    server.stop()
