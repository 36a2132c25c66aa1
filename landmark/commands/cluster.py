"""`landmark cluster check` and `landmark cluster status`: what a Ray cluster can run, and what it is at."""

import platform
from collections.abc import Sequence

from landmark.config import CheckConfig, StatusConfig, UserError
from landmark.environment import package_versions
from landmark.nodes.access import dashboard_url, door_findings, jobs_of
from landmark.nodes.findings import findings_of
from landmark.nodes.status import status_text
from landmark.nodes.survey import NodeFacts, survey
from landmark.runtime import connect
from landmark.table import aligned
from landmark.training.resources import cluster_nodes, effective_workers, need_of, room_for

MOST_TRIALS = 10_000
GIB = 2**30


def check(config: CheckConfig) -> None:
    """Print what each node is, what is wrong, and what fits; raises UserError where something would stop a run."""
    connect(config.cluster)
    nodes = survey(config.timeout_s, read=config.dataset, write=config.output)
    findings = findings_of(nodes, {"python": platform.python_version(), **package_versions()})
    findings += door_findings(dashboard_url())
    print(check_text(nodes))
    for finding in findings:
        print(finding)
    need = need_of(effective_workers(config.workers, [config.loader]), config.loader)
    cpus, gpus = (sum(parts) for parts in zip(*cluster_nodes(), strict=True))
    print(f"the cluster gives away {cpus:g} CPUs and {gpus:g} GPUs; a run or trial needs {need.told()}")
    room = room_for(need, "a run", MOST_TRIALS)
    print(f"fits: {room:,} of them at a time")
    if errors := sum(finding.severity == "error" for finding in findings):
        raise UserError(f"{errors} problems would stop or endanger a run; mend what is told above")


def check_text(nodes: Sequence[NodeFacts]) -> str:
    """Return one row a node."""
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
                ("reached" if all(reached) else "not reached") if reached else "not asked",
            )
        )
    return aligned([header, *rows])


def status(config: StatusConfig) -> None:
    """Print the cluster's nodes, jobs, studies and runs; a dashboard that is not reached costs the jobs alone."""
    connect(config.cluster)
    nodes = survey(config.timeout_s, metrics=True)
    try:
        jobs, untold = jobs_of(dashboard_url()), None
    except UserError as error:
        jobs, untold = [], error
    print(status_text(nodes, jobs))
    if untold is not None:
        print(f"warning: {untold}")
