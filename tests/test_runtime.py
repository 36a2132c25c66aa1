"""Tests the connection to Ray: one-line errors, and a local Ray that only this machine can reach."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from landmark import runtime
from landmark.config import ClusterConfig, UserError
from landmark.runtime import own_error
from landmark.storage import NotFound, TransientStorageError

ROOT = Path(__file__).parent.parent
OPEN_PORTS = """
import os, sys, psutil, ray
from landmark.config import ClusterConfig
from landmark.runtime import connect
connect(ClusterConfig(cpus=1))
here = psutil.Process()
for process in [here, *here.children(recursive=True)]:
    for connection in process.net_connections("inet"):
        host = connection.laddr.ip if connection.laddr else ""
        if connection.status == "LISTEN" and host.removeprefix("::ffff:") not in ("127.0.0.1", "::1"):
            print("open", process.name(), connection.laddr)
print("node", ray.get_runtime_context().gcs_address, ray._private.worker._global_node.get_session_dir_path())
"""


def test_a_missing_cluster_is_a_one_line_error(tmp_path):
    code = (
        "from landmark.cli import main; import sys;"
        f"sys.exit(main(['prepare', '--source', 'synthetic', '--output', {str(tmp_path / 'd')!r}, '--cluster.address', '127.0.0.1:9']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("landmark prepare: error: no Ray cluster at 127.0.0.1:9 (")
    assert "RAY_AUTH_TOKEN" in done.stderr and done.stderr.count("\n") == 1


def test_worker_errors_keep_their_class_through_ray():
    wrapped = "ray::map() (pid=1)\n  File ...\n{}: s3://b/x: busy\nThe above exception was ..."
    for kind in (UserError, NotFound, TransientStorageError):
        own = own_error(RuntimeError(wrapped.format(f"{kind.__module__}.{kind.__qualname__}")))
        assert type(own) is kind and str(own) == "s3://b/x: busy"
    assert own_error(RuntimeError(wrapped.format("landmark.storage.errors.NoResponse"))) is None
    assert own_error(RuntimeError("ValueError: landmark.x")) is None


@pytest.fixture
def silent_port(monkeypatch):
    """The port of a server that accepts connections and never answers."""
    monkeypatch.setattr(runtime, "PROBE_TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def web_port():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("service", ["silent_port", "web_port"])
def test_another_service_at_the_address_is_a_one_line_error(service, request, monkeypatch):
    port = request.getfixturevalue(service)
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    with pytest.raises(
        UserError, match=f"no Ray cluster at 127.0.0.1:{port} .the service at this address is not a Ray head"
    ):
        runtime.connect(ClusterConfig(address=f"127.0.0.1:{port}"))


def test_local_ray_listens_on_localhost_with_a_long_temporary_folder(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    environment = os.environ | {"TMPDIR": str(long), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_TMPDIR", None)
    done = subprocess.run([sys.executable, "-c", OPEN_PORTS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"note: {long} is too long for the path of a Ray socket" in done.stderr and "Traceback" not in done.stderr
    (node,) = done.stdout.splitlines()
    assert node.startswith("node 127.0.0.1:") and "/tmp/ray/session_" in node


def test_a_failed_start_of_ray_is_a_one_line_error(monkeypatch):
    starts = []

    def failing_init(**options):
        starts.append(options)
        raise Exception("The current node timed out during startup. This could happen because …")

    constants = runtime.ray_constants
    monkeypatch.setenv(constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "1")
    monkeypatch.setattr(constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(runtime.ray, "init", failing_init)
    monkeypatch.setattr(runtime.ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="Ray did not start on this machine .The current node timed out") as raised:
        runtime.connect(ClusterConfig())
    assert len(starts) == 2 and "\n" not in str(raised.value)
