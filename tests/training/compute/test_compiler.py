"""Tests that torch.compile without a compiler is a one-line error before the first step."""

import sysconfig

import pytest
import torch

from landmark.config import ComputeConfig, UserError
from landmark.training.compute.compiler import check_compiler
from tests.training.loop.test_step import recipe, step_of, tiny

KINDS = {"cpu": r"a C\+\+ compiler \(g\+\+\)", "cuda": r"a C compiler \(gcc or clang\)"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_compiler_error_names_the_package_to_install(kind, monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    check_compiler(torch.device(kind))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=rf"compute.compile requires {KINDS[kind]}, which .* compute.compile to false"
    ) as error:
        check_compiler(torch.device(kind))
    assert "\n" not in str(error.value)


def test_missing_python_headers_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(UserError, match=r"compute.compile requires Python's headers \(.*Python.h\)"):
        check_compiler(torch.device("cpu"))


def test_a_missing_compiler_ends_the_run_before_its_first_step(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="compute.compile requires"):
        step_of(tiny(), recipe(compute=ComputeConfig(amp="off", compile=True)))
