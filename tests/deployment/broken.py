"""Manifests that are broken on purpose, and the check that has to find each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.deployment.manifests import Manifest

Mutation = Callable[[list[Manifest]], Any]


@dataclass
class Broken:
    """A mutation of an overlay."""

    what: str
    check: str
    """Name of the check that must find it."""
    mutate: Mutation
    overlay: str = "gpu"


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(item for item in manifests if item["kind"] == kind and item["metadata"]["name"] == name)


def tune(manifests: list[Manifest]) -> Manifest:
    return one(manifests, "RayJob", "tune")["spec"]


def cluster(manifests: list[Manifest]) -> Manifest:
    return tune(manifests)["rayClusterSpec"]


def head(manifests: list[Manifest]) -> Manifest:
    return cluster(manifests)["headGroupSpec"]["template"]["spec"]


def worker(manifests: list[Manifest]) -> Manifest:
    return cluster(manifests)["workerGroupSpecs"][0]["template"]["spec"]


def box(manifests: list[Manifest]) -> Manifest:
    return worker(manifests)["containers"][0]


def submitter(manifests: list[Manifest]) -> Manifest:
    return tune(manifests)["submitterPodTemplate"]["spec"]


def network(manifests: list[Manifest], name: str) -> Manifest:
    return one(manifests, "NetworkPolicy", name)["spec"]


def volume(spec: Manifest, name: str) -> Manifest:
    return next(item for item in spec["volumes"] if item["name"] == name)["emptyDir"]


def rename(mapping: Manifest, old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


def command(manifests: list[Manifest], old: str, new: str) -> None:
    spec = tune(manifests)
    assert old in spec["entrypoint"]
    spec["entrypoint"] = spec["entrypoint"].replace(old, new)


def drop(manifests: list[Manifest], kind: str, name: str) -> None:
    manifests.remove(one(manifests, kind, name))


def board(manifests: list[Manifest], old: str, new: str) -> None:
    data = one(manifests, "ConfigMap", "landmark-dashboard")["data"]
    data["landmark.json"] = data["landmark.json"].replace(old, new)


BROKEN = [
    # What the schemas find.
    Broken("a misspelt key of a job", "crd-schema", lambda m: rename(tune(m), "ttlSecondsAfterFinished", "ttlSeconds")),
    Broken("a misspelt key of a cluster", "crd-schema", lambda m: rename(cluster(m), "authOptions", "authOption")),
    Broken(
        "a misspelt key deep in a pod", "crd-schema", lambda m: rename(worker(m), "securityContext", "securityContxt")
    ),
    Broken("text for a truth value", "crd-schema", lambda m: cluster(m).update(enableInTreeAutoscaling="false")),
    Broken(
        "a number for text", "crd-schema", lambda m: cluster(m)["headGroupSpec"].update(rayStartParams={"num-cpus": 0})
    ),
    Broken("an unknown mode of authentication", "crd-schema", lambda m: cluster(m)["authOptions"].update(mode="basic")),
    Broken("a quantity that is none", "crd-schema", lambda m: box(m)["resources"]["limits"].update(memory="32GB!")),
    Broken("a port named twice", "crd-schema", lambda m: box(m)["ports"].append(dict(box(m)["ports"][0]))),
    Broken("a head without a template", "crd-schema", lambda m: cluster(m)["headGroupSpec"].pop("template"), "queue"),
    Broken(
        "a misspelt key of a budget",
        "native-schema",
        lambda m: rename(one(m, "PodDisruptionBudget", "tune-head")["spec"], "minAvailable", "minAvailble"),
    ),
    Broken(
        "a misspelt key of metadata",
        "native-schema",
        lambda m: rename(one(m, "RayCluster", "landmark")["metadata"], "namespace", "namespce"),
    ),
    Broken(
        "a policy without a selector",
        "native-schema",
        lambda m: network(m, "tune-head").update(podSelectr={}),
    ),
    Broken(
        "a monitor of no port",
        "foreign-schema",
        lambda m: one(m, "PodMonitor", "landmark")["spec"]["podMetricsEndpoints"][0].pop("port"),
    ),
    Broken(
        "a quota under a wrong key",
        "foreign-schema",
        lambda m: one(m, "ClusterQueue", "landmark")["spec"].update(quota=[]),
        "queue",
    ),
    # What a pod may do.
    Broken("a pod that may be root", "non-root", lambda m: worker(m)["securityContext"].pop("runAsNonRoot")),
    Broken("a container that is root", "non-root", lambda m: box(m)["securityContext"].update(runAsUser=0)),
    Broken(
        "a container that may gain privileges",
        "no-privilege-escalation",
        lambda m: box(m)["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    Broken(
        "a privileged submitter",
        "no-privilege-escalation",
        lambda m: submitter(m)["containers"][0]["securityContext"].update(privileged=True),
    ),
    Broken("a capability kept", "capabilities-dropped", lambda m: box(m)["securityContext"].pop("capabilities")),
    Broken(
        "a capability added",
        "capabilities-dropped",
        lambda m: box(m)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    ),
    Broken("no seccomp profile", "seccomp", lambda m: head(m)["securityContext"].pop("seccompProfile")),
    Broken(
        "a root file system that is written",
        "read-only-root",
        lambda m: box(m)["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    Broken("nothing mounted at /tmp", "read-only-root", lambda m: box(m)["volumeMounts"].pop(1)),
    Broken("the machine's network", "no-host-access", lambda m: worker(m).update(hostNetwork=True)),
    Broken(
        "the machine's disk",
        "no-host-access",
        lambda m: worker(m)["volumes"].append({"name": "docker", "hostPath": {"path": "/var/run"}}),
    ),
    # What a pod may take.
    Broken(
        "less memory requested", "requests-are-limits", lambda m: box(m)["resources"]["requests"].update(memory="8Gi")
    ),
    Broken(
        "no storage requested",
        "requests-are-limits",
        lambda m: [box(m)["resources"][kind].pop("ephemeral-storage") for kind in ("requests", "limits")],
    ),
    Broken("a folder without a size", "storage-fits", lambda m: volume(worker(m), "ray-logs").pop("sizeLimit")),
    Broken(
        "folders beyond the limit", "storage-fits", lambda m: volume(worker(m), "ray-logs").update(sizeLimit="80Gi")
    ),
    Broken("/dev/shm on a disk", "shm-sized", lambda m: volume(worker(m), "shared-mem").pop("medium")),
    Broken("/dev/shm too small", "shm-sized", lambda m: volume(worker(m), "shared-mem").update(sizeLimit="64Mi")),
    Broken("one CPU for a GPU", "gpu-fed", lambda m: box(m)["resources"]["requests"].update(cpu="1")),
    Broken("kept off machines with GPUs", "gpu-fed", lambda m: worker(m).pop("tolerations")),
    Broken("killed while it drains", "grace-fits-drain", lambda m: worker(m).update(terminationGracePeriodSeconds=30)),
    Broken("no drain", "grace-fits-drain", lambda m: box(m)["env"].pop(0)),
    Broken("any version of the image", "image-pinned", lambda m: box(m).update(image="registry.example.com/landmark")),
    # Who starts what.
    Broken("no token", "token-authentication", lambda m: cluster(m)["authOptions"].update(mode="disabled")),
    Broken("nothing said of a token", "token-authentication", lambda m: cluster(m).pop("authOptions")),
    Broken("another Ray", "token-authentication", lambda m: cluster(m).update(rayVersion="2.46.0")),
    Broken("work on the head", "head-does-no-work", lambda m: cluster(m)["headGroupSpec"].update(rayStartParams={})),
    Broken("a job that starts by itself", "starts-nothing", lambda m: tune(m).pop("suspend")),
    Broken(
        "a submitter that may be lost once",
        "survives-a-lost-submitter",
        lambda m: tune(m).update(submitterConfig={"backoffLimit": 0}),
    ),
    Broken("a submitter by KubeRay's default", "survives-a-lost-submitter", lambda m: tune(m).pop("submitterConfig")),
    Broken(
        "a submitter that is restarted",
        "survives-a-lost-submitter",
        lambda m: submitter(m).update(restartPolicy="OnFailure"),
    ),
    Broken("a retry without a name", "a-retry-goes-on", lambda m: command(m, "--name study", "")),
    Broken("results that go with the pod", "a-retry-goes-on", lambda m: command(m, "s3://my-bucket/runs", "runs")),
    Broken("two jobs in one folder", "a-retry-goes-on", lambda m: command(m, "--name study", "--name run")),
    Broken("a cluster that stays", "cluster-ends-with-its-job", lambda m: tune(m).pop("shutdownAfterJobFinishes")),
    Broken("a flag that is none", "command-is-one", lambda m: command(m, "--workers.cpus", "--workers.cpu")),
    Broken("a module that is none", "command-is-one", lambda m: command(m, "landmark.tune", "landmark.tuning")),
    Broken("more CPUs than a worker", "command-fits-the-workers", lambda m: command(m, "cpus 7", "cpus 9")),
    Broken("GPUs forgotten", "command-fits-the-workers", lambda m: command(m, "--workers.gpus 1", "")),
    # Who reaches what.
    Broken(
        "no policy of the namespace", "network-denies-by-default", lambda m: drop(m, "NetworkPolicy", "default-deny")
    ),
    Broken("a head without its policy", "network-open-where-needed", lambda m: drop(m, "NetworkPolicy", "tune-head")),
    Broken(
        "the dashboard open to all",
        "network-closed-to-strangers",
        lambda m: network(m, "tune-head")["ingress"].append({"ports": [{"protocol": "TCP", "port": 8265}]}),
    ),
    Broken(
        "the GCS open to the namespace",
        "network-closed-to-strangers",
        lambda m: network(m, "tune-head")["ingress"].append({"from": [{"podSelector": {}}], "ports": [{"port": 6379}]}),
    ),
    Broken(
        "open to the other job",
        "network-closed-to-strangers",
        lambda m: [
            peer["podSelector"]["matchLabels"].pop("app.kubernetes.io/instance")
            for peer in network(m, "tune-workers")["ingress"][0]["from"]
        ],
    ),
    Broken(
        "open to every Prometheus's neighbour",
        "network-closed-to-strangers",
        lambda m: network(m, "tune-workers")["ingress"][1]["from"][0].pop("podSelector"),
    ),
    Broken(
        "a worker kept from its head",
        "network-open-where-needed",
        lambda m: network(m, "tune-workers")["egress"].pop(0),
    ),
    Broken(
        "a node's DNS cache out of reach",
        "network-open-where-needed",
        lambda m: network(m, "tune-submitter")["egress"][1]["to"].pop(),
    ),
    Broken(
        "all ports of a node's DNS cache",
        "network-keeps-the-machines-credentials",
        lambda m: network(m, "tune-workers")["egress"][1].pop("ports"),
    ),
    Broken(
        "credentials of the machine within reach",
        "network-keeps-the-machines-credentials",
        lambda m: network(m, "tune-workers")["egress"][2]["to"][0]["ipBlock"].pop("except"),
    ),
    Broken(
        "a key in the manifest",
        "no-credentials",
        lambda m: box(m)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "wJalrXUtnFEMI"}),
    ),
    Broken(
        "a password in an address", "no-credentials", lambda m: command(m, "s3://my-bucket", "s3://me:word@my-bucket")
    ),
    Broken(
        "a secret in the manifest",
        "no-credentials",
        lambda m: m.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "stringData": {"a": "b"}}),
    ),
    Broken("an account that is not there", "own-account", lambda m: worker(m).update(serviceAccountName="default")),
    Broken(
        "a token of Kubernetes for a worker",
        "no-token-of-kubernetes",
        lambda m: worker(m).pop("automountServiceAccountToken"),
    ),
    Broken(
        "the autoscaler's token in the head's container",
        "no-token-of-kubernetes",
        lambda m: head(m)["containers"][0]["volumeMounts"].append({"name": "kubernetes", "mountPath": "/token"}),
        "autoscale",
    ),
    Broken(
        "a namespace that takes any pod",
        "namespace-is-restricted",
        lambda m: one(m, "Namespace", "landmark")["metadata"].pop("labels"),
    ),
    # How it runs.
    Broken("a head without a budget", "disruption-is-limited", lambda m: drop(m, "PodDisruptionBudget", "tune-head")),
    Broken(
        "a share in a budget",
        "disruption-is-limited",
        lambda m: one(m, "PodDisruptionBudget", "tune-workers")["spec"].update(minAvailable="50%"),
    ),
    Broken(
        "an autoscaler of the first version",
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
        "room to grow and nothing that does",
        "autoscaler-is-confined",
        lambda m: cluster(m)["workerGroupSpecs"][0].update(maxReplicas=9),
    ),
    Broken(
        "a priority that pushes others out",
        "priority-is-modest",
        lambda m: one(m, "PriorityClass", "landmark-training").update(preemptionPolicy="PreemptLowerPriority"),
    ),
    Broken("a pod without the priority", "priority-is-modest", lambda m: worker(m).pop("priorityClassName")),
    Broken(
        "a quota that is too small",
        "queue-admits",
        lambda m: one(m, "ClusterQueue", "landmark")["spec"]["resourceGroups"][0]["flavors"][0]["resources"][3].update(
            nominalQuota=2
        ),
        "queue",
    ),
    Broken("a queue that is not there", "queue-admits", lambda m: drop(m, "LocalQueue", "landmark"), "queue"),
    Broken("no port of metrics", "everything-is-watched", lambda m: box(m).pop("ports")),
    Broken(
        "a dashboard that shows one rank's rate as the run's",
        "everything-is-watched",
        lambda m: board(
            m, "max by (run, trial, rank) (ray_landmark_images", "max by (run, trial) (ray_landmark_images"
        ),
    ),
    Broken(
        "a dashboard of metrics that are not ours",
        "everything-is-watched",
        lambda m: board(m, "ray_landmark_epoch", "ray_landmark_epochs"),
    ),
]
