"""Policies of clusters and jobs: who may start work, where it runs, and how failures are handled."""

import shlex
from collections.abc import Iterator

import ray

from landmark.cli import parse
from landmark.cli.defaults import train as train_defaults
from landmark.cli.defaults import tune as tune_defaults
from landmark.config import TrainConfig, TuneConfig, UserError
from tests.deployment.manifests import Cluster, Manifest, clusters, of_kind, resource, submitters
from tests.deployment.policies.registry import policy

COMMANDS = {"landmark.tune": (TuneConfig, tune_defaults), "landmark.train": (TrainConfig, train_defaults)}


def command_of(job: Manifest) -> TuneConfig | TrainConfig:
    """Return the parsed command of a job; raises UserError if the command line refuses it."""
    words = shlex.split(job["spec"].get("entrypoint", ""))
    if words[:2] != ["python", "-m"] or len(words) < 3 or words[2] not in COMMANDS:
        raise UserError(f"{' '.join(words[:3])!r} is not one of {', '.join(COMMANDS)}")
    kind, defaults = COMMANDS[words[2]]
    return parse(kind, words[3:], words[2].replace(".", " "), defaults)


def parsed_jobs(manifests: list[Manifest]) -> Iterator[tuple[Manifest, TuneConfig | TrainConfig]]:
    """Yield the jobs that have a valid command, with the parsed command."""
    for job in of_kind(manifests, "RayJob"):
        try:
            yield job, command_of(job)
        except UserError:
            continue


@policy
def token_authentication(manifests: list[Manifest]) -> Iterator[str]:
    """Every cluster requires token authentication and runs the tested version of Ray."""
    for cluster in clusters(manifests):
        if cluster.spec.get("authOptions", {}).get("mode") != "token":
            yield f"{cluster.name}: accepts work without authentication"
        if cluster.spec.get("rayVersion") != ray.__version__:
            yield f"{cluster.name}: Ray {cluster.spec.get('rayVersion')}"


@policy
def head_runs_no_work(manifests: list[Manifest]) -> Iterator[str]:
    """No trial runs on the head, next to its own processes."""
    for cluster in clusters(manifests):
        if cluster.spec["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
            yield f"{cluster.name}: trials run on the head"


@policy
def suspended_when_applied(manifests: list[Manifest]) -> Iterator[str]:
    """Applying an overlay starts nothing that costs money."""
    for owner in of_kind(manifests, "RayCluster", "RayJob"):
        if owner["spec"].get("suspend") is not True:
            yield f"{owner['kind']} {owner['metadata']['name']}: starts when it is applied"


@policy
def survives_lost_submitters(manifests: list[Manifest]) -> Iterator[str]:
    """A lost submitter pod is replaced. KubeRay 1.7 fails the job and deletes its cluster after the last retry.

    Its command is idempotent: `ray job status` first, `ray job submit` only if the job is unknown
    (ray-operator/controllers/ray/common/job.go).
    """
    for job in of_kind(manifests, "RayJob"):
        if job["spec"].get("submitterConfig", {}).get("backoffLimit", 2) < 10:
            yield f"RayJob {job['metadata']['name']}: a few lost submitter pods fail it"
        if job["spec"].get("submissionMode", "K8sJobMode") != "K8sJobMode":
            yield f"RayJob {job['metadata']['name']}: its submitter does not check whether the job already runs"
    for pod in submitters(manifests):
        if pod.spec.get("restartPolicy") != "Never":
            yield f"{pod.where}: is restarted"


@policy
def retries_resume(manifests: list[Manifest]) -> Iterator[str]:
    """A retry on a new cluster resumes the job: its results are in a bucket, in a folder of its own."""
    for job in of_kind(manifests, "RayJob"):
        words = shlex.split(job["spec"].get("entrypoint", ""))
        if job["spec"].get("backoffLimit", 0) > 0 and "--name" not in words:
            yield f"RayJob {job['metadata']['name']}: is retried without a name"
        if job["spec"].get("backoffLimit", 0) < 5:
            yield f"RayJob {job['metadata']['name']}: has too few retries of its cluster"
    for job, config in parsed_jobs(manifests):
        for field in ("dataset", "output"):
            if "://" not in getattr(config, field):
                yield f"RayJob {job['metadata']['name']}: {field} {getattr(config, field)} is on the disk of the pod"
    outputs = [(config.output, config.name) for _, config in parsed_jobs(manifests)]
    if len(set(outputs)) < len(outputs):
        yield "two jobs write to one folder"


@policy
def cluster_ends_with_its_job(manifests: list[Manifest]) -> Iterator[str]:
    """The cluster of a finished job is deleted."""
    for job in of_kind(manifests, "RayJob"):
        spec = job["spec"]
        if spec.get("shutdownAfterJobFinishes") is not True or not 0 < spec.get("ttlSecondsAfterFinished", 0) <= 3600:
            yield f"RayJob {job['metadata']['name']}: its cluster is not deleted in time"


@policy
def command_is_valid(manifests: list[Manifest]) -> Iterator[str]:
    """The command of a job is valid."""
    for job in of_kind(manifests, "RayJob"):
        try:
            command_of(job)
        except UserError as error:
            yield f"RayJob {job['metadata']['name']}: {error}"


@policy
def command_fits_the_workers(manifests: list[Manifest]) -> Iterator[str]:
    """The workers have the CPUs and GPUs for the minimum number of processes, and a CPU for data loading."""
    for job, config in parsed_jobs(manifests):
        workers, name = config.workers, job["metadata"]["name"]
        cluster = Cluster(job, job["spec"]["rayClusterSpec"])
        slots, spare = 0, -workers.least * workers.reserved_cpus
        for group in cluster.groups:
            container = group["template"]["spec"]["containers"][0]
            cpus = float(resource(container, "requests", "cpu") or 0)
            gpus = float(resource(container, "limits", "nvidia.com/gpu") or 0)
            fitting = int(min(cpus // workers.reserved_cpus, gpus // workers.gpus if workers.gpus else cpus))
            slots += fitting * group["replicas"]
            spare += cpus * group["replicas"]
        if slots < workers.least:
            yield f"RayJob {name}: {workers.least} x ({workers.reserved_cpus:g} CPUs, {workers.gpus or 0:g} GPUs) do not fit"
        if spare < 1:
            yield f"RayJob {name}: no CPU is left for data loading"
        has_gpus = any(_gpus(group) for group in cluster.groups)
        if has_gpus != bool(workers.gpus):
            yield f"RayJob {name}: needs {workers.gpus or 0:g} GPUs; the cluster has {'some' if has_gpus else 'none'}"


def _gpus(group: Manifest) -> bool:
    return bool(resource(group["template"]["spec"]["containers"][0], "limits", "nvidia.com/gpu"))
