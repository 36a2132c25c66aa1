"""Tests the `ray up` files and the SLURM script: valid by Ray's schema, secure, and with valid commands."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from landmark.cli import parse
from landmark.cli.defaults import tune as defaults
from landmark.config import TuneConfig
from tests.deployment.manifests import ROOT
from tests.deployment.policies.access import SECRET_TEXT

FILES = ("aws", "gcp", "local")
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
SLURM = ROOT / "cluster" / "slurm.sh"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())


def ray_starts(commands: list[str]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Return the environment and the parsed options of each `ray start`; raises if Ray refuses a command."""
    found = []
    for command in commands:
        environment: dict[str, str] = {}
        for part in command.split(";"):
            words = shlex.split(part)
            if words[:1] == ["export"]:
                environment |= dict(word.split("=", 1) for word in words[1:])
            if words[:2] == ["ray", "start"]:
                found.append((environment, cli.commands["start"].make_context("start", words[2:]).params))
            elif words[:1] == ["ray"]:
                cli.commands[words[1]].make_context(words[1], words[2:])
    return found


def findings(config: dict[str, Any]) -> list[str]:
    """Return the faults in the security and the resources of a `ray up` cluster."""
    found = []
    if config["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token":
        found.append("no token on the nodes")
    if SECRET_TEXT.search(yaml.dump(config)) or re.search(r"RAY_AUTH_TOKEN=", yaml.dump(config)):
        found.append("a credential in the file")
    heads = ray_starts(config["head_start_ray_commands"])
    workers = ray_starts(config["worker_start_ray_commands"])
    for environment, _ in [*heads, *workers]:
        if environment.get("RAY_AUTH_MODE") != "token":
            found.append("Ray starts without token authentication")
        if environment.get("RAY_USAGE_STATS_ENABLED") != "0":
            found.append("Ray sends usage statistics")
    for _, options in heads:
        if options["dashboard_host"] != "127.0.0.1":
            found.append("the dashboard listens on the network")
        if options["num_cpus"] != 0:
            found.append("trials run on the head")
    if "security_group" in config["provider"]:
        found.append("SSH is open to the internet: Ray opens port 22 to 0.0.0.0/0 in any group that it creates")
    for name, kind in config.get("available_node_types", {}).items():
        machine = kind["node_config"]
        if config["provider"]["type"] == "aws" and not (machine.get("SecurityGroupIds") and machine.get("SubnetIds")):
            found.append(f"{name}: SSH is open to the internet: Ray creates its security group")
        if config["provider"]["type"] == "aws" and machine["MetadataOptions"]["HttpTokens"] != "required":
            found.append(f"{name}: its metadata service returns credentials without a session token")
        if kind["resources"].get("GPU", 0) * 6 > kind["resources"]["CPU"]:
            found.append(f"{name}: too few CPUs per GPU")
        profile = machine.get("IamInstanceProfile", {}).get("Name") or machine["serviceAccounts"][0]["email"]
        if profile.partition("@")[0] != ("landmark-head" if name == config["head_node_type"] else "landmark-worker"):
            found.append(f"{name}: has permissions that it does not need")
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_cluster_file_is_valid_and_secure(name):
    config = load(name)
    jsonschema.validate(config, SCHEMA)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert findings(config) == []
    assert (
        len(ray_starts(config["head_start_ray_commands"])) == len(ray_starts(config["worker_start_ray_commands"])) == 1
    )
    install = next(command for command in config["setup_commands"] if "pip install" in command)
    assert "--constraint ~/landmark/constraints.txt ~/landmark'[" in install
    extras = re.search(r"landmark'\[([\w,]+)\]", install)[1].split(",")
    assert all(re.search(rf"^{extra} =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE) for extra in extras)


HEAD, WORKER = "head_start_ray_commands", "worker_start_ray_commands"


def _replace(config: dict[str, Any], key: str, old: str, new: str) -> None:
    changed = [command.replace(old, new) for command in config[key]]
    assert changed != config[key]
    config[key] = changed


@pytest.mark.parametrize(
    ("expected", "mutate"),
    [
        ("no token on the nodes", lambda c: c["file_mounts"].pop("~/.ray/auth_token")),
        ("Ray starts without token", lambda c: _replace(c, WORKER, "RAY_AUTH_MODE=token", "")),
        ("Ray sends usage statistics", lambda c: _replace(c, HEAD, "RAY_USAGE_STATS_ENABLED=0", "")),
        (
            "a credential in the file",
            lambda c: _replace(c, HEAD, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=a"),
        ),
        ("the dashboard listens", lambda c: _replace(c, HEAD, "127.0.0.1", "0.0.0.0")),
        ("trials run on the head", lambda c: _replace(c, HEAD, "--num-cpus=0", "")),
        (
            "gpu: SSH is open to the internet",
            lambda c: c["available_node_types"]["gpu"]["node_config"].pop("SecurityGroupIds"),
        ),
        (
            "SSH is open to the internet: Ray opens port 22",
            lambda c: c["provider"].update(security_group={"GroupName": "landmark"}),
        ),
        (
            "returns credentials without a session token",
            lambda c: c["available_node_types"]["gpu"]["node_config"]["MetadataOptions"].update(HttpTokens="optional"),
        ),
        ("too few CPUs per GPU", lambda c: c["available_node_types"]["gpu"]["resources"].update(CPU=4)),
        (
            "permissions that it does not need",
            lambda c: c["available_node_types"]["cpu"]["node_config"].update(
                IamInstanceProfile={"Name": "landmark-head"}
            ),
        ),
    ],
)
def test_an_insecure_cluster_file_is_detected(expected, mutate):
    config = copy.deepcopy(load("aws"))
    mutate(config)
    assert any(expected in line for line in findings(config)), findings(config)


def test_unknown_options_and_keys_are_refused_by_ray():
    config = load("aws")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        jsonschema.validate(config | {"idle_timeout": 10}, SCHEMA)
    with pytest.raises(Exception, match="No such option"):
        ray_starts(["ray start --head --dashboard-hosts=127.0.0.1"])
    del config["head_node_type"]
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config(config) | {"head_node_type": "none"})


def script_commands() -> list[list[str]]:
    """Return the commands of the SLURM script. Lines that end with `\\` are joined with the next one."""
    text = SLURM.read_text().replace("\\\n", " ")
    ports = " ".join(re.search(r"^ports=\((.+?)\)\n\n", text, re.MULTILINE | re.DOTALL)[1].split("\n"))
    ports = re.sub(r"\$\(\(port \+ (\d)\)\)", lambda match: str(20070 + int(match[1])), ports)
    text = text.replace('"${ports[@]}"', ports).replace('"${ports[@]:1}"', ports.partition(" ")[2])
    lines = [line for line in text.splitlines() if line.lstrip().startswith(("srun", "python -m", "until ray"))]
    values = {
        "RAY_ADDRESS": "10.0.0.1:20070",
        "address": "10.0.0.1",
        "port": "20070",
        "cpus": "8",
        "folder": "/tmp/landmark-7",
    }
    for name, value in values.items():
        lines = [line.replace(f'"${name}"', value) for line in lines]
    return [shlex.split(line) for line in lines]


def test_the_slurm_script_starts_ray_with_a_token_and_runs_landmark_tune():
    text = SLURM.read_text()
    assert text.index("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=") < text.index("ray start")
    assert "umask 077" in text and "RAY_AUTH_TOKEN=" not in text and 'rm -rf "$secrets"' in text
    starts = []
    for words in script_commands():
        for start in [index for index, word in enumerate(words) if word == "ray"]:
            end = next((index for index, word in enumerate(words) if index > start and word in (">", "&")), len(words))
            name, arguments = words[start + 1], words[start + 2 : end]
            starts.append((name, cli.commands[name].make_context(name, arguments).params))
    (head,) = [options for name, options in starts if name == "start" and options["head"]]
    (worker,) = [options for name, options in starts if name == "start" and not options["head"]]
    assert head["dashboard_host"] == "127.0.0.1" and head["block"] and worker["block"]
    assert worker["address"] == f"{head['node_ip_address']}:{head['port']}"
    assert head["temp_dir"] == worker["temp_dir"] == "/tmp/landmark-7"
    service_ports = {f"{name}_port" for name in ("ray_client_server", "runtime_env_agent", "metrics_export")}
    service_ports |= {f"dashboard_agent_{name}_port" for name in ("listen", "grpc")}
    assert sorted(head[name] for name in service_ports) == list(range(20071, 20076))
    assert {worker[name] for name in service_ports - {"ray_client_server_port"}} == set(range(20072, 20076))
    assert head["min_worker_port"] == worker["min_worker_port"] == head["max_worker_port"] == 0
    # Since SLURM 22.05, a step does not inherit the CPUs of its job.
    assert text.index('export SRUN_CPUS_PER_TASK="$cpus"') < text.index("ray start")
    usage = next(line for line in text.splitlines() if "sbatch" in line and "--dataset" in line)
    words = shlex.split(usage.lstrip("# "))
    config = parse(TuneConfig, words[words.index("cluster/slurm.sh") + 1 :], "landmark tune", defaults)
    assert (config.name, config.workers.cpus) == ("study", 7.0)
    assert ["python", "-m", "landmark.tune", "$@", "&"] in script_commands()
