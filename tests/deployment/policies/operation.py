"""Policies of operation: disruption, autoscaling, queues, priority, monitoring."""

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
    "landmark_data_wait_fraction": {"run", "trial", "rank"},
    "landmark_stage_wait_fraction": {"run", "trial", "rank", "stage"},
    "landmark_epoch": {"run", "trial", "rank"},
    "landmark_gpu_memory_bytes": {"run", "trial", "rank"},
    "landmark_trials": {"study", "state"},
}
"""The metrics of landmark and their labels. Ray exports them with the prefix `ray_`."""
QUEUE = "kueue.x-k8s.io/queue-name"


@policy
def disruption_is_limited(manifests: list[Manifest]) -> Iterator[str]:
    """A node drain keeps heads and evicts one worker at a time. Budgets of an operator's pods must be integers."""
    budgets = [one["spec"] for one in of_kind(manifests, "PodDisruptionBudget")]
    for budget in budgets:
        if "maxUnavailable" in budget or type(budget.get("minAvailable")) is not int:
            yield "a budget without an integer minAvailable has no effect on pods of an operator"
    for cluster in clusters(manifests):
        pods = cluster.pods()
        heads = _min_available(budgets, pods[0].labels)
        if heads != [1]:
            yield f"{cluster.name}: its head has {heads or 'no'} budget"
        replicas = sum(pod.count for pod in pods[1:])
        minimums = [_min_available(budgets, pod.labels) for pod in pods[1:]]
        for budget, pod in zip(minimums, pods[1:], strict=True):
            if len(budget) != 1 or budget[0] not in range(1, replicas + 1):
                yield f"{pod.where}: budget {budget} of {replicas} workers"


def _min_available(budgets: list[Manifest], labels: dict[str, str]) -> list[int]:
    return [budget.get("minAvailable", 0) for budget in budgets if selects(budget["selector"], labels)]


@policy
def autoscaler_is_confined(manifests: list[Manifest]) -> Iterator[str]:
    """A cluster with a replica range has autoscaler v2, removes idle nodes, and only the autoscaler has a token."""
    for cluster in clusters(manifests):
        ranges = [(group["minReplicas"], group["replicas"], group["maxReplicas"]) for group in cluster.groups]
        if any(not low <= now <= high for low, now, high in ranges):
            yield f"{cluster.name}: replicas outside of {ranges}"
        scales = any(low < high for low, _, high in ranges)
        if bool(cluster.spec.get("enableInTreeAutoscaling")) != scales:
            yield f"{cluster.name}: {'no autoscaler for the replica range' if scales else 'no replica range'}"
        if not scales:
            continue
        options = cluster.spec.get("autoscalerOptions", {})
        if options.get("version") != "v2" or not 60 <= options.get("idleTimeoutSeconds", 0) <= 1800:
            yield f"{cluster.name}: not autoscaler v2 with an idle timeout"
        volumes = {one["name"]: one for one in cluster.spec["headGroupSpec"]["template"]["spec"]["volumes"]}
        mounted = {one["mountPath"]: volumes.get(one["name"], {}) for one in options.get("volumeMounts", [])}
        if "projected" not in mounted.get("/var/run/secrets/kubernetes.io/serviceaccount", {}):
            yield f"{cluster.name}: its autoscaler has no Kubernetes token"
        if not {"/tmp", "/home/landmark"} <= set(mounted):
            yield f"{cluster.name}: its autoscaler has no writable folder"


@policy
def priority_does_not_preempt(manifests: list[Manifest]) -> Iterator[str]:
    """If there is a priority class, all pods of a cluster have it, and it does not preempt other pods."""
    for one in of_kind(manifests, "PriorityClass"):
        if one.get("preemptionPolicy") != "Never" or one.get("globalDefault"):
            yield f"PriorityClass {one['metadata']['name']}: preempts other pods"
        for pod in ray_pods(manifests):
            if pod.spec.get("priorityClassName") != one["metadata"]["name"]:
                yield f"{pod.where}: has another priority"


@policy
def queue_admits(manifests: list[Manifest]) -> Iterator[str]:
    """If there is a queue, Kueue admits its jobs: their queue exists, and its quota covers the job's requests."""
    queues = {one["metadata"]["name"]: one["spec"]["clusterQueue"] for one in of_kind(manifests, "LocalQueue")}
    quotas = {one["metadata"]["name"]: _quota(one) for one in of_kind(manifests, "ClusterQueue")}
    jobs = [job for job in of_kind(manifests, "RayJob") if QUEUE in job["metadata"].get("labels", {})]
    if queues and not jobs:
        yield "no job is in the queue"
    priorities = {one["metadata"]["name"] for one in of_kind(manifests, "WorkloadPriorityClass")}
    for job in jobs:
        name, labels = job["metadata"]["name"], job["metadata"]["labels"]
        quota = quotas.get(queues.get(labels[QUEUE], ""))
        if quota is None:
            yield f"RayJob {name}: queue {labels[QUEUE]} does not exist"
            continue
        if labels.get("kueue.x-k8s.io/priority-class") not in priorities:
            yield f"RayJob {name}: its priority class does not exist"
        if job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield f"RayJob {name}: Kueue does not accept a cluster with an autoscaler"
        for resource, requested in _demand(job).items():
            if requested > quota.get(resource, 0):
                yield f"RayJob {name}: {resource} {requested} of {quota.get(resource, 0)}"


def _quota(queue: Manifest) -> dict[str, float]:
    flavors = [flavor for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]]
    return {one["name"]: float(quantity(one["nominalQuota"])) for flavor in flavors for one in flavor["resources"]}


def _demand(job: Manifest) -> Counter[str]:
    """Return the total requests of all pods of a job."""
    total: Counter[str] = Counter()
    pods = [pod for pod in all_pods([job]) if pod.role in ("head", "worker")] + submitters([job])
    for pod in pods:
        for name, amount in pod.spec["containers"][0]["resources"]["requests"].items():
            total[name] += float(quantity(amount)) * pod.count
    return total


@policy
def everything_is_monitored(manifests: list[Manifest]) -> Iterator[str]:
    """A monitor finds a metrics port in every Ray pod, and the dashboard shows exactly the metrics of landmark."""
    for monitor in of_kind(manifests, "PodMonitor"):
        ports = {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]}
        for pod in ray_pods(manifests):
            named = {one.get("name"): one["containerPort"] for one in pod.spec["containers"][0].get("ports", [])}
            if not selects(monitor["spec"]["selector"], pod.labels) or any(named.get(port) != 8080 for port in ports):
                yield f"{pod.where}: is not monitored"
    for config in of_kind(manifests, "ConfigMap"):
        if labels_of(config).get("grafana_dashboard") == "1":
            yield from _dashboard(json.loads(config["data"]["landmark.json"]))
    dashboards = [one for one in of_kind(manifests, "ConfigMap") if labels_of(one).get("grafana_dashboard") == "1"]
    if of_kind(manifests, "PodMonitor") and not dashboards:
        yield "no dashboard that Grafana finds"


def _dashboard(dashboard: Manifest) -> Iterator[str]:
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queried = {name for query in queries for name in re.findall(r"ray_(landmark_\w+)", query)}
    if queried != set(METRICS):
        yield f"the dashboard shows {sorted(queried ^ set(METRICS))} unexpectedly or not at all"
    for query in queries:
        labels = set().union(*(METRICS[name] for name in re.findall(r"ray_(landmark_\w+)", query) if name in METRICS))
        grouped = {word for group in re.findall(r"by \(([^)]*)\)", query) for word in re.split(r",\s*", group)}
        used = set(re.findall(r"(\w+)=~", query)) | grouped
        if re.search(r"(max|min|avg)( by \((?![^)]*\brank\b)[^)]*\))? \(ray_landmark_images_per_second", query):
            yield f"the dashboard shows one rank's images/s as the run's in {query}"
        if not used <= labels:
            yield f"the dashboard uses unknown labels {sorted(used - labels)} in {query}"
