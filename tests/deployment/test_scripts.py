"""Tests shell scripts with shellcheck and `bash -n`."""

import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.deployment.manifests import ROOT

SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("cluster/*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_has_no_shellcheck_findings(script):
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    subprocess.run(["bash", "-n", str(script)], check=True)
