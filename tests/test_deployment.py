"""The manifests and the image: the commands in them exist, nothing runs as root, no retry runs a study again."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import yaml

from landmark.cli import parse
from landmark.config import TuneConfig
from landmark.search.space import Space
from landmark.tune import defaults

ROOT = Path(__file__).parent.parent


def job() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "k8s" / "tune.yaml").read_text())


def pods(values: Any) -> Iterator[dict[str, Any]]:
    """Yield every pod's spec below a value."""
    for key, value in (
        values.items() if isinstance(values, dict) else enumerate(values if isinstance(values, list) else ())
    ):
        if key == "spec" and "containers" in value:
            yield value
        else:
            yield from pods(value)


def test_the_jobs_command_is_one_that_the_command_line_takes():
    words = shlex.split(job()["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "landmark.tune"]
    config = parse(TuneConfig, words[3:], "landmark tune", defaults)
    trials = Space.load(config.space).trials(config.recipe)
    assert len(trials) == 18
    worker = job()["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert config.workers.cpus < int(worker["resources"]["requests"]["cpu"])
    assert config.workers.gpus == int(worker["resources"]["limits"]["nvidia.com/gpu"])


def test_a_failed_study_is_not_run_again_and_the_cluster_has_a_token():
    spec = job()["spec"]
    assert spec["backoffLimit"] == spec["submitterConfig"]["backoffLimit"] == 0
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_no_container_is_root_may_become_it_or_outgrow_its_memory():
    found = list(pods(job()))
    assert len(found) == 3
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            for kind in ("memory", "ephemeral-storage"):
                assert container["resources"]["requests"][kind] == container["resources"]["limits"][kind]


def test_the_image_is_pinned_copies_what_exists_and_is_not_root():
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    assert re.search(r"^FROM \S+:\d+\.\d+\.\d+\S*$", text, re.MULTILINE)
    assert re.search(r"^USER 1000$", text, re.MULTILINE)
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists()
