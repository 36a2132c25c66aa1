"""Policies of clusters and jobs: who may start work, where it runs, and what a failure leads to."""

import shlex
from collections.abc import Iterator

import ray

from landmark.cli import parse
from landmark.cli.defaults import train as train_defaults
from landmark.cli.defaults import tune as tune_defaults
from landmark.config import TrainConfig, TuneConfig, UserError
from tests.deployment.manifests import Cluster, Manifest, clusters, of_kind, resource, submitters
from tests.deployment.policies.registry import policy

VERBS = {"landmark.tune": (TuneConfig, tune_defaults), "landmark.train": (TrainConfig, train_defaults)}


def command_of(job: Manifest) -> TuneConfig | TrainConfig:
    """Return a job's command as the command line understands it; raises UserError where it does not."""
    words = shlex.split(job["spec"].get("entrypoint", ""))
    if words[:2] != ["python", "-m"] or len(words) < 3 or words[2] not in VERBS:
        raise UserError(f"{' '.join(words[:3])!r} is none of {', '.join(VERBS)}")
    kind, defaults = VERBS[words[2]]
    return parse(kind, words[3:], words[2].replace(".", " "), defaults)


def parsed_jobs(manifests: list[Manifest]) -> Iterator[tuple[Manifest, TuneConfig | TrainConfig]]:
    """Yield the jobs whose command is one, with it."""
    for job in of_kind(manifests, "RayJob"):
        try:
            yield job, command_of(job)
        except UserError:
            continue


@policy
def token_authentication(manifests: list[Manifest]) -> Iterator[str]:
    """Every cluster wants a token, and runs the Ray that was tested."""
    for cluster in clusters(manifests):
        if cluster.spec.get("authOptions", {}).get("mode") != "token":
            yield f"{cluster.name}: takes work from anyone"
        if cluster.spec.get("rayVersion") != ray.__version__:
            yield f"{cluster.name}: Ray {cluster.spec.get('rayVersion')}"


@policy
def head_does_no_work(manifests: list[Manifest]) -> Iterator[str]:
    """No trial runs beside the head's own processes."""
    for cluster in clusters(manifests):
        if cluster.spec["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
            yield f"{cluster.name}: trials run on the head"


@policy
def starts_nothing(manifests: list[Manifest]) -> Iterator[str]:
    """Applying an overlay starts nothing that costs."""
    for owner in of_kind(manifests, "RayCluster", "RayJob"):
        if owner["spec"].get("suspend") is not True:
            yield f"{owner['kind']} {owner['metadata']['name']}: starts when it is applied"


@policy
def survives_a_lost_submitter(manifests: list[Manifest]) -> Iterator[str]:
    """A lost submitter pod is replaced: KubeRay 1.7 fails the job and deletes its cluster once no try is left.

    Its command is idempotent: `ray job status` first, `ray job submit` only if the job is unknown
    (ray-operator/controllers/ray/common/job.go).
    """
    for job in of_kind(manifests, "RayJob"):
        if job["spec"].get("submitterConfig", {}).get("backoffLimit", 2) < 10:
            yield f"RayJob {job['metadata']['name']}: a few lost submitter pods end it"
        if job["spec"].get("submissionMode", "K8sJobMode") != "K8sJobMode":
            yield f"RayJob {job['metadata']['name']}: its submitter does not look whether the job runs already"
    for pod in submitters(manifests):
        if pod.spec.get("restartPolicy") != "Never":
            yield f"{pod.where}: is started again"


@policy
def a_retry_goes_on(manifests: list[Manifest]) -> Iterator[str]:
    """A job that runs again on a new cluster finds what the one before left: a name of its own, in a bucket."""
    for job in of_kind(manifests, "RayJob"):
        words = shlex.split(job["spec"].get("entrypoint", ""))
        if job["spec"].get("backoffLimit", 0) > 0 and "--name" not in words:
            yield f"RayJob {job['metadata']['name']}: runs again without a name"
        if job["spec"].get("backoffLimit", 0) < 5:
            yield f"RayJob {job['metadata']['name']}: ends with one of its first clusters"
    for job, config in parsed_jobs(manifests):
        for what in ("dataset", "output"):
            if "://" not in getattr(config, what):
                yield f"RayJob {job['metadata']['name']}: {what} {getattr(config, what)} goes with the pod"
    places = [(config.output, config.name) for _, config in parsed_jobs(manifests)]
    if len(set(places)) < len(places):
        yield "two jobs write to one folder"


@policy
def cluster_ends_with_its_job(manifests: list[Manifest]) -> Iterator[str]:
    """A finished job's machines are given back."""
    for job in of_kind(manifests, "RayJob"):
        spec = job["spec"]
        if spec.get("shutdownAfterJobFinishes") is not True or not 0 < spec.get("ttlSecondsAfterFinished", 0) <= 3600:
            yield f"RayJob {job['metadata']['name']}: its cluster stays"


@policy
def command_is_one(manifests: list[Manifest]) -> Iterator[str]:
    """A job's command is taken by the command line."""
    for job in of_kind(manifests, "RayJob"):
        try:
            command_of(job)
        except UserError as error:
            yield f"RayJob {job['metadata']['name']}: {error}"


@policy
def command_fits_the_workers(manifests: list[Manifest]) -> Iterator[str]:
    """The fewest processes of the command find their CPUs and GPUs among the workers, and a CPU is left for readers."""
    for job, config in parsed_jobs(manifests):
        workers, name = config.workers, job["metadata"]["name"]
        cluster = Cluster(job, job["spec"]["rayClusterSpec"])
        places, spare = 0, -workers.least * workers.reserved_cpus
        for group in cluster.groups:
            container = group["template"]["spec"]["containers"][0]
            cpus = float(resource(container, "requests", "cpu") or 0)
            gpus = float(resource(container, "limits", "nvidia.com/gpu") or 0)
            fitting = int(min(cpus // workers.reserved_cpus, gpus // workers.gpus if workers.gpus else cpus))
            places += fitting * group["replicas"]
            spare += cpus * group["replicas"]
        if places < workers.least:
            yield f"RayJob {name}: {workers.least} x ({workers.reserved_cpus:g} CPUs, {workers.gpus or 0:g} GPUs) do not fit"
        if spare < 1:
            yield f"RayJob {name}: no CPU is left for readers of data"
        has_gpus = any(_gpus(group) for group in cluster.groups)
        if has_gpus != bool(workers.gpus):
            yield f"RayJob {name}: asks for {workers.gpus or 0:g} GPUs where the cluster has {'some' if has_gpus else 'none'}"


def _gpus(group: Manifest) -> bool:
    return bool(resource(group["template"]["spec"]["containers"][0], "limits", "nvidia.com/gpu"))
