"""Messages about missing packages name the install command and never an unrelated project on PyPI."""

import configparser
import importlib.metadata
import re
from pathlib import Path

import pytest

from landmark.config.extras import DISTRIBUTION, install_command

ROOT = Path(__file__).parent.parent.parent


def test_the_command_names_the_packages_of_the_extra(monkeypatch):
    requirements = [
        "ray>=2.60",
        'optuna<6,>=4.5; extra == "optuna"',
        'timm>=1.0.15; extra == "lite0"',
        "lite>=0.1; extra == 'lite0'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements if name == DISTRIBUTION else None)
    assert install_command("optuna") == "pip install 'optuna<6,>=4.5'"
    assert install_command("lite0") == "pip install 'lite>=0.1' 'timm>=1.0.15'"


def test_an_uninstalled_checkout_names_the_project_folder(monkeypatch):
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert install_command("optuna") == "pip install '.[optuna]' in the project folder"


def test_the_distribution_name_is_not_landmark():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["name"] == DISTRIBUTION != "landmark"


@pytest.mark.parametrize("folder", ["landmark", "docs", "tune_spaces", "tests", "README.md"])
def test_no_file_suggests_installing_an_unrelated_project(folder):
    path = ROOT / folder
    files = [path] if path.is_file() else [file for kind in ("py", "md", "yaml") for file in path.rglob(f"*.{kind}")]
    pattern = re.compile(r"pip install [^\n]*?['\" \t]landmark(\[|['\"\s]|$)")
    assert [file.name for file in files if file != Path(__file__) and pattern.search(file.read_text())] == []
