"""The connection to Ray: the cluster that is configured, the job's own, or one started here."""

import logging
import os
import re

import ray
import ray.data

from landmark.config import ClusterConfig, UserError


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
    if not address:
        ray.init(address="local", num_cpus=cluster.cpus, include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"no Ray cluster at {address} ({reason}); check cluster.address or RAY_ADDRESS, and RAY_AUTH_TOKEN"
        ) from None


def quiet_data() -> None:
    """Silence Ray Data's own progress bars and plans in this process: ours are shown instead."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def own_message(error: BaseException) -> str | None:
    """Return the message of a UserError that was raised in a task or actor, out of Ray's wrapping of it; None for any other.

    Ray Data keeps the error's text alone, inside its own.
    """
    found = re.findall(r"^landmark\.(?:config\.errors\.UserError|storage\.NotFound): (.*)$", str(error), re.MULTILINE)
    return found[-1] if found else None
