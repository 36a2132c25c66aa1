"""Tests the image: linted, pinned, not root, with existing sources, and with a complete wheel."""

import contextlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from landmark import __version__
from landmark.cli import COMMANDS
from tests.deployment.manifests import ROOT

DOCKERFILE = ROOT / "cluster" / "Dockerfile"
SCRIPTS = Path(sysconfig.get_path("scripts"))


def copied(text: str) -> list[tuple[str, str]]:
    """Return source and target of each path that is copied from the build context."""
    found = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        *sources, target = line.split()
        found += [(source, target) for source in sources]
    return found


def stages() -> list[str]:
    return re.split(r"^(?=FROM )", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with the files that the stage `project` copies."""
    folder = tmp_path_factory.mktemp("project")
    for source, target in copied(stages()[0]):
        path = folder / target / (source.rpartition("/")[2] if target.endswith("/") else "")
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, path)
    return folder


def test_the_image_has_the_compiler_that_torch_compile_needs():
    assert re.search(r"^ +&& apt-get install .*\bg\+\+=", stages()[-1], re.MULTILINE)


def test_the_linter_reports_no_problems():
    done = subprocess.run([SCRIPTS / "hadolint", str(DOCKERFILE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in DOCKERFILE.read_text()


def test_the_linter_reports_unpinned_versions(tmp_path):
    broken = DOCKERFILE.read_text().replace("g++=4:12.2.*", "g++").replace(":3.11.11-slim-bookworm", ":latest")
    (tmp_path / "Dockerfile").write_text(broken)
    done = subprocess.run([SCRIPTS / "hadolint", str(tmp_path / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 1 and "DL3008" in done.stdout and "DL3007" in done.stdout


def test_the_image_is_pinned_and_not_root():
    text, last = DOCKERFILE.read_text(), stages()[-1]
    assert all(re.match(r"FROM \S+:\d+\.\d+\.\d+\S*( AS \w+)?\n", stage) for stage in stages())
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == ["1000:1000"] and "--uid 1000" in last
    assert last.index("USER") > last.rindex("RUN")
    for line in re.findall(r"pip install (?:[^\n]*\\\n)*[^\n]*", text):
        assert "--no-cache-dir" in line and ("--constraint" in line or "--no-deps" in line)
    assert 'CMD ["landmark", "--help"]' in last


def test_copied_files_exist_and_are_in_the_build_context():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    included = {line[1:] for line in rules if line.startswith("!")}
    sources = {source for source, _ in copied(DOCKERFILE.read_text())}
    assert sources == included
    assert all((ROOT / source).exists() for source in sources)
    assert not any(fnmatch(".git", name) or fnmatch(".venv", name) for name in included)


@pytest.mark.parametrize(
    ("variant", "code", "index"),
    [("gpu", 0, "pypi.org/simple"), ("cpu", 0, "download.pytorch.org/whl/cpu"), ("tpu", 1, None)],
)
def test_the_variant_selects_the_torch_index(variant, code, index, tmp_path):
    """The step runs unchanged, except that `echo` replaces pip."""
    step = re.search(r'^RUN (case "\${VARIANT}" in (?:[^\n]*\\\n)*[^\n]*)', DOCKERFILE.read_text(), re.MULTILINE)[1]
    script = step.replace("&& pip install", "&& echo pip install")
    done = subprocess.run(["sh", "-c", script], env={"VARIANT": variant}, capture_output=True, text=True)
    assert done.returncode == code
    if index:
        assert done.stdout.endswith("torch torchvision\n") and f"--index-url https://{index}" in done.stdout
    else:
        assert done.stderr == "VARIANT is 'tpu'; expected gpu or cpu\n"


def test_the_listed_requirements_are_those_of_the_project(project):
    extras = re.search(r"cluster/requirements.py (.+) > requirements.txt", DOCKERFILE.read_text())[1].split()
    command = [sys.executable, "cluster/requirements.py", *extras]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    listed = [Requirement(line) for line in done.stdout.splitlines()]
    names = {requirement.name for requirement in listed}
    assert {"ray", "torch", "s3fs", "timm", "optuna", "cleanlab", "mlflow-skinny", "wandb"} <= names and len(
        names
    ) == len(listed)
    pinned = {line.partition("==")[0].replace("_", "-").lower() for line in (ROOT / "constraints.txt").open()}
    assert {name.lower() for name in names} <= pinned


def test_pinned_versions_install_on_every_python_of_the_project():
    """Debian 12 has Python 3.11.2, for example. A package that needs a later patch release does not install there."""
    project = (ROOT / "setup.cfg").read_text()
    oldest = re.search(r"python_requires = >=([\d.]+)", project)[1] + ".0"
    pins = dict(line.strip().split("==") for line in (ROOT / "constraints.txt").open() if "==" in line)
    newer = []
    for name, version in pins.items():
        with contextlib.suppress(PackageNotFoundError):
            required = metadata(name).get("Requires-Python")
            if required and not SpecifierSet(required).contains(oldest):
                newer.append(f"{name}=={version} needs Python {required}")
    assert not newer


def test_the_installed_wheel_has_the_command_and_its_files(project, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), "."], cwd=project, check=True, capture_output=True, timeout=200
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"landmark_ray-{__version__}") and wheel.stat().st_size < 1_000_000
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = archive.namelist()
    for data in (
        "landmark/recipes/*.yaml",
        "landmark/cli/*.json",
        "landmark/reporting/templates/*",
        "landmark/tune_spaces/*.yaml",
    ):
        expected = {str(path.relative_to(ROOT)) for path in ROOT.glob(data) if path.is_file()}
        assert expected and expected <= set(names)
    entry = (tmp_path / "site" / f"landmark_ray-{__version__}.dist-info" / "entry_points.txt").read_text()
    module, _, function = re.search(r"landmark = (.+)", entry)[1].partition(":")
    code = f"import sys, {module} as m; assert m.__file__.startswith({str(tmp_path)!r}); sys.exit(m.{function}())"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(f"  {command}" in done.stdout for command in COMMANDS)
