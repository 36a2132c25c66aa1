"""The connection to Ray: a configured cluster, the cluster of the submitted job, or a new local one."""

import logging
import os
import pydoc
import re
import signal
import socket
import sys
import threading
from typing import Any

import grpc
import ray
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants

from landmark.config import STOPPED, ClusterConfig, UserError
from landmark.storage import StorageError, storage_error

PROBE_TIMEOUT_S = 10
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""Method of the GCS (gcs_service.proto), which `ray health-check` also calls."""
SOCKET_CHARACTERS = 107
"""Maximum length of a socket's path on Linux (sockaddr_un)."""
SESSION = "/ray/session_2026-11-29_15-20-57_273111_1234567/sockets/plasma_store"
"""Path of the longest socket name below Ray's temporary folder."""
HEAD = "node:__internal_head__"
"""Resource that only the head node has."""


def connect(cluster: ClusterConfig) -> None:
    """Connect to Ray unless this process is already connected.

    A configured address is preferred, then RAY_ADDRESS (set in a submitted job). Otherwise, Ray starts on this machine
    only. Raises UserError if no cluster responds or Ray does not start.
    """
    if ray.is_initialized():
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    # Disable Ray's usage statistics. At its start, Ray would collect system information and the time zone to send them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        _start_here(num_cpus=cluster.cpus, **quiet)
        _stop_on_sigterm()
        quiet_data()
        return
    try:
        _probe(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"no Ray cluster at {address} ({reason}); check cluster.address or RAY_ADDRESS, and RAY_AUTH_TOKEN"
        ) from None
    _stop_on_sigterm()
    quiet_data()


def _stop_on_sigterm() -> None:
    """Exit this process with one line on SIGTERM. Ray installs a handler that prints a stack trace and aborts."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: object) -> None:
    print(f"landmark: {STOPPED}", file=sys.stderr, flush=True)
    raise SystemExit(75)


def is_local(cluster: ClusterConfig) -> bool:
    """Return whether `connect` starts Ray on this machine, because no cluster is configured and RAY_ADDRESS is not
    set."""
    return not (cluster.address or os.environ.get("RAY_ADDRESS"))


def _start_here(**options: Any) -> None:
    """Start Ray on this machine, reachable from this machine only. Raises UserError with one line if it does not start."""
    # Ray then uses 127.0.0.1 as the address of the node and all servers (the default on macOS).
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    folder = _short_temp_dir()
    for retry in (True, False):
        try:
            ray.init(address="local", include_dashboard=False, _temp_dir=folder, **options)
            return
        # Ray raises a bare Exception if the machine is too busy for its node to start within 30 s.
        except Exception as error:
            ray.shutdown()
            if retry and "timed out" in str(error):
                continue
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"Ray did not start on this machine ({reason}); check the free memory and disk space, then run the same command again"
            ) from error


def _short_temp_dir() -> str | None:
    """Return a temporary folder for Ray whose socket paths fit, or None if the default does."""
    default = get_default_system_temp_dir()
    if len(default + SESSION) <= SOCKET_CHARACTERS:
        return None
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(folder, os.W_OK | os.X_OK):
            print(
                f"note: {default} is too long for the path of a Ray socket; Ray writes its logs and spilled objects to {folder}/ray",
                file=sys.stderr,
            )
            return f"{folder}/ray"
    raise UserError(
        f"{default} is too long for the path of a Ray socket (maximum {SOCKET_CHARACTERS} characters); set RAY_TMPDIR to a shorter path"
    )


def _probe(address: str) -> None:
    """Raise OSError unless Ray responds at host:port. Without this check, Ray aborts the process if nothing listens,
    and waits minutes for another service."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_TIMEOUT_S).close()
    if address.startswith("ray://") or os.environ.get("RAY_USE_TLS", "0") not in ("0", "false"):
        return
    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(ALIVE)(b"", timeout=PROBE_TIMEOUT_S)
        except grpc.RpcError as error:
            # Without a token, Ray rejects the call. It is running, and ray.init reports the missing token.
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return
            raise OSError(f"the service at this address is not a Ray head: {error.code().name}") from None


def quiet_data() -> None:
    """Disable Ray Data's progress bars and operator logs in this process, because landmark shows its own."""
    import ray.data  # takes 0.5 s, which the start of Ray should not wait for

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def own_error(error: BaseException) -> UserError | None:
    """Return the UserError that a task or actor raised, extracted from Ray's wrapper. None for other errors.

    Ray Data and Ray Train keep only the class and text of the error.
    """
    for name, text in reversed(re.findall(r"^(landmark(?:\.\w+)+): (.*)$", str(error), re.MULTILINE)):
        kind = pydoc.locate(name)
        if isinstance(kind, type) and issubclass(kind, UserError):
            return kind(text)
    return None


def storage_error_of(error: BaseException) -> StorageError | None:
    """Return the error of pyarrow's object storage client that Ray raised or quotes in its text. None for other
    errors."""
    if isinstance(error, OSError) and "AWS Error" in str(error):
        return storage_error("object storage", error)
    lines = [line for line in str(error).splitlines() if "AWS Error" in line and line.startswith("OSError: ")]
    return storage_error("object storage", OSError(lines[-1])) if lines else None
