"""Policies of operation: disruption, growth, queues, priority, monitoring."""

import json
import re
from collections import Counter
from collections.abc import Iterator

from tests.deployment.manifests import Manifest, all_pods, clusters, labels_of, of_kind, quantity, ray_pods, submitters
from tests.deployment.network import selects
from tests.deployment.policies.registry import policy

METRICS = {
    "landmark_images_per_second": {"run", "trial", "rank"},
    "landmark_images_total": {"run", "trial", "rank"},
    "landmark_data_wait_share": {"run", "trial", "rank"},
    "landmark_epoch": {"run", "trial", "rank"},
    "landmark_gpu_memory_bytes": {"run", "trial", "rank"},
    "landmark_trials": {"study", "state"},
}
"""Ours, with their labels; Ray exports them with `ray_` before the name."""
QUEUE = "kueue.x-k8s.io/queue-name"


@policy
def disruption_is_limited(manifests: list[Manifest]) -> Iterator[str]:
    """A drain leaves each head, and takes one worker at a time: whole numbers, as pods of an operator have no other."""
    budgets = [one["spec"] for one in of_kind(manifests, "PodDisruptionBudget")]
    for budget in budgets:
        if "maxUnavailable" in budget or type(budget.get("minAvailable")) is not int:
            yield "a budget that is no whole number of minAvailable counts for nothing here"
    for cluster in clusters(manifests):
        pods = cluster.pods()
        heads = _kept(budgets, pods[0].labels)
        if heads != [1]:
            yield f"{cluster.name}: its head has {heads or 'no'} budget"
        replicas = sum(pod.count for pod in pods[1:])
        kept = [_kept(budgets, pod.labels) for pod in pods[1:]]
        for budget, pod in zip(kept, pods[1:], strict=True):
            if len(budget) != 1 or budget[0] not in range(1, replicas + 1):
                yield f"{pod.where}: budget {budget} of {replicas} workers"


def _kept(budgets: list[Manifest], labels: dict[str, str]) -> list[int]:
    return [budget.get("minAvailable", 0) for budget in budgets if selects(budget["selector"], labels)]


@policy
def autoscaler_is_confined(manifests: list[Manifest]) -> Iterator[str]:
    """Where a cluster grows: autoscaler v2, idle machines go, there is room to grow, its token reaches it alone."""
    for cluster in clusters(manifests):
        ranges = [(group["minReplicas"], group["replicas"], group["maxReplicas"]) for group in cluster.groups]
        if any(not low <= now <= high for low, now, high in ranges):
            yield f"{cluster.name}: replicas outside of {ranges}"
        grows = any(low < high for low, _, high in ranges)
        if bool(cluster.spec.get("enableInTreeAutoscaling")) != grows:
            yield f"{cluster.name}: {'nothing makes it grow' if grows else 'an autoscaler without room'}"
        if not grows:
            continue
        options = cluster.spec.get("autoscalerOptions", {})
        if options.get("version") != "v2" or not 60 <= options.get("idleTimeoutSeconds", 0) <= 1800:
            yield f"{cluster.name}: not autoscaler v2 with an end to idling"
        volumes = {one["name"]: one for one in cluster.spec["headGroupSpec"]["template"]["spec"]["volumes"]}
        mounted = {one["mountPath"]: volumes.get(one["name"], {}) for one in options.get("volumeMounts", [])}
        if "projected" not in mounted.get("/var/run/secrets/kubernetes.io/serviceaccount", {}):
            yield f"{cluster.name}: its autoscaler has no token of Kubernetes"
        if not {"/tmp", "/home/landmark"} <= set(mounted):
            yield f"{cluster.name}: its autoscaler has nothing to write to"


@policy
def priority_is_modest(manifests: list[Manifest]) -> Iterator[str]:
    """Where there is a priority class, all pods of a cluster have it and push nobody out."""
    for one in of_kind(manifests, "PriorityClass"):
        if one.get("preemptionPolicy") != "Never" or one.get("globalDefault"):
            yield f"PriorityClass {one['metadata']['name']}: pushes others out"
        for pod in ray_pods(manifests):
            if pod.spec.get("priorityClassName") != one["metadata"]["name"]:
                yield f"{pod.where}: has another priority"


@policy
def queue_admits(manifests: list[Manifest]) -> Iterator[str]:
    """Where there is a queue, a job stands in it that Kueue takes, and its quota holds what the job's pods request."""
    queues = {one["metadata"]["name"]: one["spec"]["clusterQueue"] for one in of_kind(manifests, "LocalQueue")}
    quotas = {one["metadata"]["name"]: _quota(one) for one in of_kind(manifests, "ClusterQueue")}
    jobs = [job for job in of_kind(manifests, "RayJob") if QUEUE in job["metadata"].get("labels", {})]
    if queues and not jobs:
        yield "no job stands in the queue"
    priorities = {one["metadata"]["name"] for one in of_kind(manifests, "WorkloadPriorityClass")}
    for job in jobs:
        name, labels = job["metadata"]["name"], job["metadata"]["labels"]
        quota = quotas.get(queues.get(labels[QUEUE], ""))
        if quota is None:
            yield f"RayJob {name}: queue {labels[QUEUE]} is not here"
            continue
        if labels.get("kueue.x-k8s.io/priority-class") not in priorities:
            yield f"RayJob {name}: its priority is not here"
        if job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield f"RayJob {name}: Kueue takes no cluster that grows"
        for resource, wanted in _demand(job).items():
            if wanted > quota.get(resource, 0):
                yield f"RayJob {name}: {resource} {wanted} of {quota.get(resource, 0)}"


def _quota(queue: Manifest) -> dict[str, float]:
    flavors = [flavor for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]]
    return {one["name"]: float(quantity(one["nominalQuota"])) for flavor in flavors for one in flavor["resources"]}


def _demand(job: Manifest) -> Counter[str]:
    """Return what all pods of a job request together."""
    total: Counter[str] = Counter()
    pods = [pod for pod in all_pods([job]) if pod.role in ("head", "worker")] + submitters([job])
    for pod in pods:
        for name, amount in pod.spec["containers"][0]["resources"]["requests"].items():
            total[name] += float(quantity(amount)) * pod.count
    return total


@policy
def everything_is_watched(manifests: list[Manifest]) -> Iterator[str]:
    """Where there is a monitor, it finds a port of metrics in every Ray pod; the dashboard shows our metrics, all and no others."""
    for monitor in of_kind(manifests, "PodMonitor"):
        ports = {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]}
        for pod in ray_pods(manifests):
            named = {one.get("name"): one["containerPort"] for one in pod.spec["containers"][0].get("ports", [])}
            if not selects(monitor["spec"]["selector"], pod.labels) or any(named.get(port) != 8080 for port in ports):
                yield f"{pod.where}: is not watched"
    for config in of_kind(manifests, "ConfigMap"):
        if labels_of(config).get("grafana_dashboard") == "1":
            yield from _dashboard(json.loads(config["data"]["landmark.json"]))
    boards = [one for one in of_kind(manifests, "ConfigMap") if labels_of(one).get("grafana_dashboard") == "1"]
    if of_kind(manifests, "PodMonitor") and not boards:
        yield "no dashboard that Grafana finds"


def _dashboard(board: Manifest) -> Iterator[str]:
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    shown = {name for query in queries for name in re.findall(r"ray_(landmark_\w+)", query)}
    if shown != set(METRICS):
        yield f"the dashboard shows {sorted(shown ^ set(METRICS))} too much or not"
    for query in queries:
        labels = set().union(*(METRICS[name] for name in re.findall(r"ray_(landmark_\w+)", query) if name in METRICS))
        grouped = {word for group in re.findall(r"by \(([^)]*)\)", query) for word in re.split(r",\s*", group)}
        asked = set(re.findall(r"(\w+)=~", query)) | grouped
        if re.search(r"(max|min|avg)( by \((?![^)]*\brank\b)[^)]*\))? \(ray_landmark_images_per_second", query):
            yield f"the dashboard shows one rank's images/s as the run's in {query}"
        if not asked <= labels:
            yield f"the dashboard asks for labels {sorted(asked - labels)} in {query}"
