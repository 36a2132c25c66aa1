"""The connection to Ray: the cluster that is configured, the job's own, or one started here."""

import logging
import os

import ray

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
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
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


def cluster_cpus() -> int:
    """Return the CPUs of the connected cluster, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
