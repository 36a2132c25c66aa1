"""Manifests with deliberate faults, and the check that must find each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.deployment.manifests import Manifest

Mutation = Callable[[list[Manifest]], Any]


@dataclass
class Broken:
    """An overlay with a fault."""

    fault: str
    check: str
    """Name of the check that must find it."""
    mutate: Mutation
    overlay: str = "gpu"


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(item for item in manifests if item["kind"] == kind and item["metadata"]["name"] == name)


def tune(manifests: list[Manifest]) -> Manifest:
    return find(manifests, "RayJob", "tune")["spec"]


def cluster(manifests: list[Manifest]) -> Manifest:
    return tune(manifests)["rayClusterSpec"]


def head(manifests: list[Manifest]) -> Manifest:
    return cluster(manifests)["headGroupSpec"]["template"]["spec"]


def worker(manifests: list[Manifest]) -> Manifest:
    return cluster(manifests)["workerGroupSpecs"][0]["template"]["spec"]


def container(manifests: list[Manifest]) -> Manifest:
    return worker(manifests)["containers"][0]


def submitter(manifests: list[Manifest]) -> Manifest:
    return tune(manifests)["submitterPodTemplate"]["spec"]


def network(manifests: list[Manifest], name: str) -> Manifest:
    return find(manifests, "NetworkPolicy", name)["spec"]


def volume(spec: Manifest, name: str) -> Manifest:
    return next(item for item in spec["volumes"] if item["name"] == name)["emptyDir"]


def rename(mapping: Manifest, old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


def command(manifests: list[Manifest], old: str, new: str) -> None:
    spec = tune(manifests)
    assert old in spec["entrypoint"]
    spec["entrypoint"] = spec["entrypoint"].replace(old, new)


def drop(manifests: list[Manifest], kind: str, name: str) -> None:
    manifests.remove(find(manifests, kind, name))


def replace_in_dashboard(manifests: list[Manifest], old: str, new: str) -> None:
    data = find(manifests, "ConfigMap", "landmark-dashboard")["data"]
    data["landmark.json"] = data["landmark.json"].replace(old, new)


BROKEN = [
    # Found by the schemas.
    Broken("a misspelt key of a job", "crd-schema", lambda m: rename(tune(m), "ttlSecondsAfterFinished", "ttlSeconds")),
    Broken("a misspelt key of a cluster", "crd-schema", lambda m: rename(cluster(m), "authOptions", "authOption")),
    Broken(
        "a misspelt key deep in a pod", "crd-schema", lambda m: rename(worker(m), "securityContext", "securityContxt")
    ),
    Broken("text instead of a boolean", "crd-schema", lambda m: cluster(m).update(enableInTreeAutoscaling="false")),
    Broken(
        "a number instead of text",
        "crd-schema",
        lambda m: cluster(m)["headGroupSpec"].update(rayStartParams={"num-cpus": 0}),
    ),
    Broken("an unknown authentication mode", "crd-schema", lambda m: cluster(m)["authOptions"].update(mode="basic")),
    Broken("an invalid quantity", "crd-schema", lambda m: container(m)["resources"]["limits"].update(memory="32GB!")),
    Broken("a port named twice", "crd-schema", lambda m: container(m)["ports"].append(dict(container(m)["ports"][0]))),
    Broken("a head without a template", "crd-schema", lambda m: cluster(m)["headGroupSpec"].pop("template"), "queue"),
    Broken(
        "a misspelt key of a disruption budget",
        "native-schema",
        lambda m: rename(find(m, "PodDisruptionBudget", "tune-head")["spec"], "minAvailable", "minAvailble"),
    ),
    Broken(
        "a misspelt key of metadata",
        "native-schema",
        lambda m: rename(find(m, "RayCluster", "landmark")["metadata"], "namespace", "namespce"),
    ),
    Broken(
        "a policy without a selector",
        "native-schema",
        lambda m: network(m, "tune-head").update(podSelectr={}),
    ),
    Broken(
        "a monitor without a port",
        "foreign-schema",
        lambda m: find(m, "PodMonitor", "landmark")["spec"]["podMetricsEndpoints"][0].pop("port"),
    ),
    Broken(
        "a quota under a wrong key",
        "foreign-schema",
        lambda m: find(m, "ClusterQueue", "landmark")["spec"].update(quota=[]),
        "queue",
    ),
    # Permissions of pods.
    Broken("a pod that may run as root", "non-root", lambda m: worker(m)["securityContext"].pop("runAsNonRoot")),
    Broken("a container that runs as root", "non-root", lambda m: container(m)["securityContext"].update(runAsUser=0)),
    Broken(
        "a container that may gain privileges",
        "no-privilege-escalation",
        lambda m: container(m)["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    Broken(
        "a privileged submitter",
        "no-privilege-escalation",
        lambda m: submitter(m)["containers"][0]["securityContext"].update(privileged=True),
    ),
    Broken("a capability kept", "capabilities-dropped", lambda m: container(m)["securityContext"].pop("capabilities")),
    Broken(
        "a capability added",
        "capabilities-dropped",
        lambda m: container(m)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    ),
    Broken("no seccomp profile", "seccomp", lambda m: head(m)["securityContext"].pop("seccompProfile")),
    Broken(
        "a writable root file system",
        "read-only-root",
        lambda m: container(m)["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    Broken("nothing mounted at /tmp", "read-only-root", lambda m: container(m)["volumeMounts"].pop(1)),
    Broken("the host network", "no-host-access", lambda m: worker(m).update(hostNetwork=True)),
    Broken(
        "a host path",
        "no-host-access",
        lambda m: worker(m)["volumes"].append({"name": "docker", "hostPath": {"path": "/var/run"}}),
    ),
    # Resources of pods.
    Broken(
        "less memory requested",
        "requests-are-limits",
        lambda m: container(m)["resources"]["requests"].update(memory="8Gi"),
    ),
    Broken(
        "no storage requested",
        "requests-are-limits",
        lambda m: [container(m)["resources"][kind].pop("ephemeral-storage") for kind in ("requests", "limits")],
    ),
    Broken("a volume without a size limit", "storage-fits", lambda m: volume(worker(m), "ray-logs").pop("sizeLimit")),
    Broken(
        "volumes larger than the storage limit",
        "storage-fits",
        lambda m: volume(worker(m), "ray-logs").update(sizeLimit="80Gi"),
    ),
    Broken("/dev/shm on a disk", "shm-sized", lambda m: volume(worker(m), "shared-mem").pop("medium")),
    Broken("/dev/shm too small", "shm-sized", lambda m: volume(worker(m), "shared-mem").update(sizeLimit="64Mi")),
    Broken("one CPU per GPU", "gpus-have-cpus", lambda m: container(m)["resources"]["requests"].update(cpu="1")),
    Broken("no toleration for GPU nodes", "gpus-have-cpus", lambda m: worker(m).pop("tolerations")),
    Broken(
        "a grace period shorter than the drain",
        "grace-fits-drain",
        lambda m: worker(m).update(terminationGracePeriodSeconds=30),
    ),
    Broken("no drain", "grace-fits-drain", lambda m: container(m)["env"].pop(0)),
    Broken(
        "an image without a version",
        "image-pinned",
        lambda m: container(m).update(image="registry.example.com/landmark"),
    ),
    # Jobs and clusters.
    Broken(
        "token authentication disabled",
        "token-authentication",
        lambda m: cluster(m)["authOptions"].update(mode="disabled"),
    ),
    Broken("no authentication options", "token-authentication", lambda m: cluster(m).pop("authOptions")),
    Broken("another version of Ray", "token-authentication", lambda m: cluster(m).update(rayVersion="2.46.0")),
    Broken("work on the head", "head-runs-no-work", lambda m: cluster(m)["headGroupSpec"].update(rayStartParams={})),
    Broken("a job that starts by itself", "suspended-when-applied", lambda m: tune(m).pop("suspend")),
    Broken(
        "a submitter without retries",
        "survives-lost-submitters",
        lambda m: tune(m).update(submitterConfig={"backoffLimit": 0}),
    ),
    Broken(
        "a submitter with KubeRay's default retries",
        "survives-lost-submitters",
        lambda m: tune(m).pop("submitterConfig"),
    ),
    Broken(
        "a submitter that is restarted",
        "survives-lost-submitters",
        lambda m: submitter(m).update(restartPolicy="OnFailure"),
    ),
    Broken("a retry without a name", "retries-resume", lambda m: command(m, "--name study", "")),
    Broken("results on the disk of the pod", "retries-resume", lambda m: command(m, "s3://my-bucket/runs", "runs")),
    Broken("two jobs with one output folder", "retries-resume", lambda m: command(m, "--name study", "--name run")),
    Broken(
        "a cluster that outlives its job",
        "cluster-ends-with-its-job",
        lambda m: tune(m).pop("shutdownAfterJobFinishes"),
    ),
    Broken("an unknown flag", "command-is-valid", lambda m: command(m, "--workers.cpus", "--workers.cpu")),
    Broken("an unknown module", "command-is-valid", lambda m: command(m, "landmark.tune", "landmark.tuning")),
    Broken("more CPUs than a worker has", "command-fits-the-workers", lambda m: command(m, "cpus 7", "cpus 9")),
    Broken("a command without GPUs", "command-fits-the-workers", lambda m: command(m, "--workers.gpus 1", "")),
    # Network access and credentials.
    Broken(
        "no default policy of the namespace",
        "network-denies-by-default",
        lambda m: drop(m, "NetworkPolicy", "default-deny"),
    ),
    Broken("a head without its policy", "network-open-where-needed", lambda m: drop(m, "NetworkPolicy", "tune-head")),
    Broken(
        "the dashboard open to all",
        "network-closed-to-unrelated-peers",
        lambda m: network(m, "tune-head")["ingress"].append({"ports": [{"protocol": "TCP", "port": 8265}]}),
    ),
    Broken(
        "the GCS open to the namespace",
        "network-closed-to-unrelated-peers",
        lambda m: network(m, "tune-head")["ingress"].append({"from": [{"podSelector": {}}], "ports": [{"port": 6379}]}),
    ),
    Broken(
        "open to the other job",
        "network-closed-to-unrelated-peers",
        lambda m: [
            peer["podSelector"]["matchLabels"].pop("app.kubernetes.io/instance")
            for peer in network(m, "tune-workers")["ingress"][0]["from"]
        ],
    ),
    Broken(
        "open to every pod in the namespace of Prometheus",
        "network-closed-to-unrelated-peers",
        lambda m: network(m, "tune-workers")["ingress"][1]["from"][0].pop("podSelector"),
    ),
    Broken(
        "a worker that cannot reach its head",
        "network-open-where-needed",
        lambda m: network(m, "tune-workers")["egress"].pop(0),
    ),
    Broken(
        "an unreachable DNS cache of a node",
        "network-open-where-needed",
        lambda m: network(m, "tune-submitter")["egress"][1]["to"].pop(),
    ),
    Broken(
        "all ports of a node's DNS cache open",
        "network-protects-node-credentials",
        lambda m: network(m, "tune-workers")["egress"][1].pop("ports"),
    ),
    Broken(
        "the node's metadata service reachable",
        "network-protects-node-credentials",
        lambda m: network(m, "tune-workers")["egress"][2]["to"][0]["ipBlock"].pop("except"),
    ),
    Broken(
        "a key in the manifest",
        "no-credentials",
        lambda m: container(m)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "wJalrXUtnFEMI"}),
    ),
    Broken("a password in a URL", "no-credentials", lambda m: command(m, "s3://my-bucket", "s3://me:word@my-bucket")),
    Broken(
        "a secret in the manifest",
        "no-credentials",
        lambda m: m.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "stringData": {"a": "b"}}),
    ),
    Broken(
        "a service account that does not exist", "own-account", lambda m: worker(m).update(serviceAccountName="default")
    ),
    Broken(
        "a Kubernetes token for a worker",
        "no-kubernetes-token",
        lambda m: worker(m).pop("automountServiceAccountToken"),
    ),
    Broken(
        "the autoscaler's token in the head's container",
        "no-kubernetes-token",
        lambda m: head(m)["containers"][0]["volumeMounts"].append({"name": "kubernetes", "mountPath": "/token"}),
        "autoscale",
    ),
    Broken(
        "a namespace that accepts any pod",
        "namespace-is-restricted",
        lambda m: find(m, "Namespace", "landmark")["metadata"].pop("labels"),
    ),
    # Operation.
    Broken(
        "a head without a disruption budget",
        "disruption-is-limited",
        lambda m: drop(m, "PodDisruptionBudget", "tune-head"),
    ),
    Broken(
        "a percentage in a disruption budget",
        "disruption-is-limited",
        lambda m: find(m, "PodDisruptionBudget", "tune-workers")["spec"].update(minAvailable="50%"),
    ),
    Broken(
        "autoscaler version 1",
        "autoscaler-is-confined",
        lambda m: cluster(m)["autoscalerOptions"].update(version="v1"),
        "autoscale",
    ),
    Broken(
        "an autoscaler with privileges",
        "no-privilege-escalation",
        lambda m: cluster(m)["autoscalerOptions"].pop("securityContext"),
        "autoscale",
    ),
    Broken(
        "a replica range without an autoscaler",
        "autoscaler-is-confined",
        lambda m: cluster(m)["workerGroupSpecs"][0].update(maxReplicas=9),
    ),
    Broken(
        "a priority class that preempts other pods",
        "priority-does-not-preempt",
        lambda m: find(m, "PriorityClass", "landmark-training").update(preemptionPolicy="PreemptLowerPriority"),
    ),
    Broken(
        "a pod without the priority class", "priority-does-not-preempt", lambda m: worker(m).pop("priorityClassName")
    ),
    Broken(
        "a quota that is too small",
        "queue-admits",
        lambda m: find(m, "ClusterQueue", "landmark")["spec"]["resourceGroups"][0]["flavors"][0]["resources"][3].update(
            nominalQuota=2
        ),
        "queue",
    ),
    Broken("a queue that does not exist", "queue-admits", lambda m: drop(m, "LocalQueue", "landmark"), "queue"),
    Broken("no metrics port", "everything-is-monitored", lambda m: container(m).pop("ports")),
    Broken(
        "a dashboard with the throughput of one rank",
        "everything-is-monitored",
        lambda m: replace_in_dashboard(
            m, "max by (run, trial, rank) (ray_landmark_images", "max by (run, trial) (ray_landmark_images"
        ),
    ),
    Broken(
        "a dashboard of unknown metrics",
        "everything-is-monitored",
        lambda m: replace_in_dashboard(m, "ray_landmark_epoch", "ray_landmark_epochs"),
    ),
]
