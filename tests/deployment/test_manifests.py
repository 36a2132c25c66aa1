"""Tests that every overlay is valid and violates no policy, and that the checks find broken manifests."""

import copy

import pytest

from tests.deployment import schema
from tests.deployment.broken import BROKEN
from tests.deployment.checks import CHECKS, crd_findings, foreign_findings, native_findings
from tests.deployment.manifests import OVERLAYS, clusters, of_kind
from tests.deployment.policies import findings
from tests.deployment.policies.jobs import parsed_jobs


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_strictly_valid(name, built, crds):
    manifests = built(name)
    kinds = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    assert {("RayCluster", "landmark"), ("RayJob", "tune"), ("RayJob", "train")} <= kinds
    assert crd_findings(manifests) == []
    assert foreign_findings(manifests) == []
    assert native_findings(manifests) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_violates_no_policy(name, built):
    assert findings(built(name)) == []


def test_overlays_have_the_expected_components(built):
    kinds_by_overlay = {name: {one["kind"] for one in built(name)} for name in OVERLAYS}
    assert set(OVERLAYS) == {"minimal", "cpu", "gpu", "autoscale", "queue"}
    assert all(("PriorityClass" in kinds) == (name != "minimal") for name, kinds in kinds_by_overlay.items())
    assert all(("PodMonitor" in kinds) == (name != "minimal") for name, kinds in kinds_by_overlay.items())
    assert [name for name, kinds in kinds_by_overlay.items() if "LocalQueue" in kinds] == ["queue"]
    autoscaled = [name for name in OVERLAYS if clusters(built(name))[0].spec["enableInTreeAutoscaling"]]
    assert autoscaled == ["autoscale"]
    for name in OVERLAYS:
        groups = {group["groupName"] for cluster in clusters(built(name)) for group in cluster.groups}
        assert groups == ({"cpu"} if name in ("minimal", "cpu") else {"cpu", "gpu"})


@pytest.mark.parametrize("name", OVERLAYS)
def test_jobs_have_the_same_cluster_as_the_persistent_one(name, built):
    manifests = built(name)
    persistent = of_kind(manifests, "RayCluster")[0]["spec"]
    for job in of_kind(manifests, "RayJob"):
        copied = copy.deepcopy(job["spec"]["rayClusterSpec"])
        for pod in (copied["headGroupSpec"], *copied["workerGroupSpecs"]):
            labels = pod["template"]["metadata"]["labels"]
            assert labels["app.kubernetes.io/instance"] == job["metadata"]["name"]
            labels["app.kubernetes.io/instance"] = "landmark"
        assert copied | {"suspend": True} == persistent


def test_tuning_uses_gpus_and_training_several_processes(built):
    configs = {job["metadata"]["name"]: config for job, config in parsed_jobs(built("gpu"))}
    assert configs["tune"].space == "backbone_optimizer_epochs" and configs["tune"].workers.gpus == 1
    assert configs["train"].workers.least == 4
    elastic = {job["metadata"]["name"]: config for job, config in parsed_jobs(built("autoscale"))}
    assert (elastic["train"].workers.least, elastic["train"].workers.most) == (2, 8)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.fault.replace(" ", "-"))
def test_a_broken_manifest_is_detected(broken, built, crds):
    manifests = built(broken.overlay)
    broken.mutate(manifests)
    assert manifests != built(broken.overlay)
    assert list(CHECKS[broken.check](manifests))


def test_every_check_has_a_broken_manifest():
    assert {broken.check for broken in BROKEN} == set(CHECKS)
    assert len(BROKEN) >= 15


def test_the_validator_fills_in_defaults_and_refuses_unknown_keys():
    spec = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "count": {"type": "integer", "default": 1, "minimum": 1},
            "size": {"x-kubernetes-int-or-string": True, "pattern": "^[0-9]+$"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "open": {"type": "object"},
            "closed": {"type": "object", "properties": {}},
            "ports": {
                "type": "array",
                "x-kubernetes-list-map-keys": ["port"],
                "items": {"type": "object", "properties": {"port": {"type": "integer"}}},
            },
        },
    }
    good = {"name": "a", "size": 3, "labels": {"any": "text"}, "open": {"any": [1]}, "ports": [{"port": 1}]}
    assert schema.check(spec, good) == []
    assert good["count"] == 1
    for invalid in (
        {},
        {"name": "abcdef"},
        {"name": 1},
        {"name": None},
        {"name": "a", "other": 1},
        {"name": "a", "count": 0},
        {"name": "a", "count": True},
        {"name": "a", "size": "many"},
        {"name": "a", "labels": {"any": 1}},
        {"name": "a", "closed": {"any": 1}},
        {"name": "a", "ports": [{"port": 1}, {"port": 1}]},
    ):
        assert len(schema.check(spec, invalid)) == 1, invalid
