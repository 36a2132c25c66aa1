"""Status of a cluster: utilization of its nodes, its jobs, and the metrics that runs and studies export."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from landmark.data.loading.bottleneck import DATA_WAIT, bottleneck, stage_metric
from landmark.diagnostics.inspect import NodeFacts
from landmark.progress import clock
from landmark.table import aligned

GIB = 2**30
MAX_COMMAND_LENGTH = 60


@dataclass(kw_only=True)
class RunState:
    """Metrics of a run or trial, aggregated over its ranks."""

    run: str
    trial: str
    ranks: set[str] = field(default_factory=set)
    epoch: int = 0
    images_per_s: float = 0.0
    """Sum over all ranks."""
    waiting: list[float] = field(default_factory=list)
    """Fraction of the time that each rank waits for data."""
    stages: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Stage -> sum over the ranks of the fraction of the time spent waiting for it."""

    def metrics(self) -> dict[str, float]:
        """Return the means over the ranks, by the names of an epoch's metrics."""
        ranks = max(1, len(self.waiting))
        stages = {stage_metric(stage): value / ranks for stage, value in self.stages.items()}
        return {DATA_WAIT: sum(self.waiting) / ranks, **stages}


def runs_in(nodes: Iterable[NodeFacts]) -> list[RunState]:
    """Return the runs and trials that train now, by name; those that ended export 0 images per second."""
    found: dict[tuple[str, str], RunState] = {}
    for name, labels, value in _samples(nodes):
        if not name.startswith("ray_landmark_") or "rank" not in labels:
            continue
        state = found.setdefault((labels["run"], labels["trial"]), RunState(run=labels["run"], trial=labels["trial"]))
        if name == "ray_landmark_images_per_second":
            state.images_per_s += value
            state.ranks |= {labels["rank"]} if value else set()
        elif name == "ray_landmark_data_wait_fraction":
            state.waiting.append(value)
        elif name == "ray_landmark_stage_wait_fraction":
            state.stages[labels["stage"]] += value
        elif name == "ray_landmark_epoch":
            state.epoch = max(state.epoch, int(value))
    return [found[key] for key in sorted(found) if found[key].ranks]


def studies_in(nodes: Iterable[NodeFacts]) -> dict[str, dict[str, int]]:
    """Return study -> state -> number of trials."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for name, labels, value in _samples(nodes):
        if name == "ray_landmark_trials":
            found[labels["study"]][labels["state"]] = int(value)
    return dict(found)


def status_text(nodes: Sequence[NodeFacts], jobs: Sequence[Any]) -> str:
    """Return the tables of nodes, jobs, studies and runs as text."""
    parts = ["nodes", aligned([_NODE_HEAD, *(_node_row(node) for node in nodes)])]
    if jobs:
        parts += ["jobs", aligned([("job", "state", "time", "command"), *(_job_row(job) for job in jobs)])]
    if studies := studies_in(nodes):
        parts += ["studies", *(f"  {name}: {_counted(states)}" for name, states in sorted(studies.items()))]
    if runs := runs_in(nodes):
        header = ("run", "trial", "workers", "epoch", "images/s", "waits for data", "bottleneck")
        parts += ["training", aligned([header, *(_run_row(run) for run in runs)])]
    else:
        parts.append("training: nothing")
    return "\n".join(parts)


def _samples(nodes: Iterable[NodeFacts]) -> Iterable[tuple[str, dict[str, str], float]]:
    for node in nodes:
        for family in text_string_to_metric_families(node.metrics):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value


_NODE_HEAD = ("node", "host", "state", "CPUs", "GPUs", "memory GiB", "object store GiB", "disk free GiB")


def _node_row(node: NodeFacts) -> tuple[str, ...]:
    state = ("head" if node.head else "alive") if node.alive else "dead"
    if not node.alive or node.error:
        return (node.address, node.host, node.error or state, *["-"] * 5)
    return (
        node.address,
        node.host,
        state,
        f"{node.cpus_used:g}/{node.cpus:g}",
        f"{node.gpus_used:g}/{node.gpus:g}",
        f"{node.memory_used / GIB:.1f}/{node.memory_total / GIB:.1f}",
        f"{(node.object_store - node.store_free) / GIB:.1f}/{node.object_store / GIB:.1f}",
        f"{node.disk_free / GIB:.0f}",
    )


def _job_row(job: Any) -> tuple[str, ...]:
    began, ended = (job.start_time or 0) / 1000, (job.end_time or 0) / 1000
    took = clock((ended or time.time()) - began) if began else "-"
    command = (
        job.entrypoint if len(job.entrypoint) <= MAX_COMMAND_LENGTH else f"{job.entrypoint[: MAX_COMMAND_LENGTH - 1]}…"
    )
    return job.submission_id, str(job.status.value).lower(), took, command


def _run_row(run: RunState) -> tuple[str, ...]:
    metrics = run.metrics()
    return (
        run.run,
        run.trial or "-",
        str(len(run.ranks)),
        str(run.epoch),
        f"{run.images_per_s:,.0f}",
        f"{metrics[DATA_WAIT]:.0%}",
        bottleneck(metrics) or "-",
    )


def _counted(states: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items() if count) or "no trials"
