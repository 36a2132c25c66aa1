"""`landmark cluster check` and `landmark cluster status`: the capacity, problems and status of a Ray cluster."""

import platform
from collections.abc import Sequence

from landmark.config import CheckConfig, StatusConfig, UserError
from landmark.diagnostics.checks import findings_of
from landmark.diagnostics.dashboard import authentication_findings, dashboard_url, jobs_of
from landmark.diagnostics.inspect import NodeFacts, survey
from landmark.diagnostics.status import status_text
from landmark.environment import package_versions
from landmark.runtime import connect
from landmark.table import aligned
from landmark.training.distributed.capacity import capacity_for, cluster_nodes, effective_workers, resource_request

MAX_TRIALS = 10_000
GIB = 2**30


def check(config: CheckConfig) -> None:
    """Print the nodes, their problems and the number of runs that fit; raises UserError if a problem is an error."""
    connect(config.cluster)
    nodes = survey(config.timeout_s, read=config.dataset, write=config.output)
    findings = findings_of(nodes, {"python": platform.python_version(), **package_versions()})
    findings += authentication_findings(dashboard_url())
    print(check_text(nodes))
    for finding in findings:
        print(finding)
    need = resource_request(effective_workers(config.workers, [config.loader]), config.loader)
    cpus, gpus = (sum(parts) for parts in zip(*cluster_nodes(), strict=True))
    print(f"schedulable: {cpus:g} CPUs and {gpus:g} GPUs; a run or trial requires {need.describe()}")
    capacity = capacity_for(need, "a run", MAX_TRIALS)
    print(f"capacity: {capacity:,} runs or trials at a time")
    if errors := sum(finding.severity == "error" for finding in findings):
        raise UserError(f"{errors} problems can make runs fail; fix the errors listed above")


def check_text(nodes: Sequence[NodeFacts]) -> str:
    """Return a table with one row per node."""
    header = ("node", "host", "CPUs", "GPUs", "object store GiB", "/dev/shm GiB", "disk free GiB", "clock", "storage")
    rows = []
    for node in nodes:
        name = f"{node.address}{' (head)' if node.head else ''}"
        if not node.alive or node.error:
            rows.append((name, node.host, *["-"] * 6, "no answer" if node.alive else "dead"))
            continue
        reached = [reason is None for reason in node.storage.values()]
        rows.append(
            (
                name,
                node.host,
                f"{node.cpus:g}",
                f"{node.gpus:g}",
                f"{node.object_store / GIB:.1f}",
                f"{node.shm / GIB:.1f}",
                f"{node.disk_free / GIB:.0f}",
                f"{node.clock_s:+.2f} s",
                ("reachable" if all(reached) else "unreachable") if reached else "not checked",
            )
        )
    return aligned([header, *rows])


def status(config: StatusConfig) -> None:
    """Print the cluster's nodes, jobs, studies and runs; without a reachable dashboard, only the jobs are missing."""
    connect(config.cluster)
    nodes = survey(config.timeout_s, metrics=True)
    try:
        jobs, untold = jobs_of(dashboard_url()), None
    except UserError as error:
        jobs, untold = [], error
    print(status_text(nodes, jobs))
    if untold is not None:
        print(f"warning: {untold}")
