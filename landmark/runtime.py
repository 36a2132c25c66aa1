"""The connection to Ray: the cluster that is configured, the job's own, or one started here."""

import logging
import os
import pydoc
import re
import socket

import ray
import ray.data

from landmark.config import ClusterConfig, UserError

KNOCK_TIMEOUT_S = 10
HEAD = "node:__internal_head__"
"""Resource that the head node alone has."""


def connect(cluster: ClusterConfig) -> None:
    """Connect to Ray unless this process is connected already.

    A configured address wins, then RAY_ADDRESS (set inside a submitted job), else Ray is started on this
    machine alone. Raises UserError where no cluster answers.
    """
    if ray.is_initialized():
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    # Ray's own progress bars and per-operator logs would drown ours.
    quiet_data()
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    # Ray asks for the machine's figures and the time zone at its start, to send them home.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        ray.init(address="local", num_cpus=cluster.cpus, include_dashboard=False, **quiet)
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"no Ray cluster at {address} ({reason}); check cluster.address or RAY_ADDRESS, and RAY_AUTH_TOKEN"
        ) from None


def _knock(address: str) -> None:
    """Raise OSError unless something listens at host:port: Ray ends the whole process where nothing does."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_TIMEOUT_S).close()


def quiet_data() -> None:
    """Silence Ray Data's own progress bars and plans in this process: ours are shown instead."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def own_error(error: BaseException) -> UserError | None:
    """Return the UserError that was raised in a task or actor, out of Ray's wrapping of it; None for any other.

    Ray Data and Ray Train keep the error's class and text alone, inside their own.
    """
    for name, text in reversed(re.findall(r"^(landmark(?:\.\w+)+): (.*)$", str(error), re.MULTILINE)):
        kind = pydoc.locate(name)
        if isinstance(kind, type) and issubclass(kind, UserError):
            return kind(text)
    return None
