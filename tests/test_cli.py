"""The command line: one line for a mistake, exit codes, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from landmark.cli import main, run_verb
from landmark.config import EvaluateConfig, TrainConfig, UserError


def run(
    kind: type, arguments: list[str], capsys: pytest.CaptureFixture[str], function=lambda config: None
) -> tuple[int, str]:
    function.__name__ = "verb"
    code = run_verb(kind, function, arguments)
    return code, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset is missing"),
        (["--dataset", "d", "--epoch", "3"], "unknown option '--epoch'; did you mean '--epochs'?"),
        (
            ["--dataset", "d", "--optimizer.nam", "x"],
            "unknown option '--optimizer.nam'; did you mean '--optimizer.name'?",
        ),
        (["--dataset", "d", "--optimizer.name", "adm"], "--optimizer.name is 'adm'; did you mean 'adam'?"),
        (["--dataset", "d", "--epochs", "many"], "--epochs is 'many'; expected a whole number"),
        (["--dataset", "d", "--epochs", ""], "--epochs is ''; expected a whole number"),
        (["--dataset", "d", "--optimizer.lr", ""], "--optimizer.lr is ''; expected a number or None"),
        (["--dataset", "d", "--classes", "1.5"], "--subset.classes is '1.5'; expected a whole number or None"),
        (["--dataset", "d", "--loss.label-smoothing", "x"], "--loss.label-smoothing is 'x'; expected a number"),
        (["--dataset", "d", "--epochs"], "--epochs has no value; give one after it"),
        (["--epoch", "0.1"], "unknown option '--epoch'; did you mean '--epochs'?"),
        (["--lerning-rate=0.1", "--dataset", "d"], "unknown option '--lerning-rate'; see --help"),
        (["--dataset", "d", "--num-workers", "3"], "unknown option '--num-workers'; did you mean '--workers'?"),
        (["--dataset", "d", "--batch-size", "3"], "unknown option '--batch-size'; did you mean '--loader.batch-size'?"),
        (["--dataset", "d", "--loader.bach-size", "3"], "'--loader.bach-size'; did you mean '--loader.batch-size'?"),
        (["--dataset", "d", "--model", "x"], "unknown option '--model'; its options are --model.backbone, --model."),
        (["--dataset", "d", "--epochs", "0"], "epochs is 0; expected 1 or more"),
        (["--dataset", "d", "--workers.count", "100"], "loader.batch_size is 64; expected at least one image a worker"),
        (["--dataset", "d", "--augment.flip", "True"], "'True' belongs to no option; see --help"),
        (
            ["--dataset", "d", "--no-compute.compile", "x"],
            "unknown option '--no-compute.compile'; did you mean '--compute.no-compile'?",
        ),
        (["--config"], "--config needs a value"),
        (["--config", "none.yaml"], "none.yaml: cannot read the config file"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments, message, capsys):
    code, error = run(TrainConfig, arguments, capsys)
    assert code == 2
    assert error.startswith("landmark verb: error: ")
    assert message in error
    assert "\n" not in error


def test_a_mistake_found_later_is_exit_code_1(capsys):
    def fails(config: EvaluateConfig) -> None:
        raise UserError("the bucket is gone; make it")

    code, error = run(EvaluateConfig, ["--checkpoint", "c"], capsys, fails)
    assert (code, error) == (1, "landmark verb: error: the bucket is gone; make it")


def test_verbs_are_listed_and_an_unknown_one_has_a_nearest(capsys):
    assert main(["--help"]) == 0
    assert "tune" in capsys.readouterr().out
    assert main(["tun"]) == 2
    assert "unknown verb 'tun'; did you mean 'tune'?" in capsys.readouterr().err
    assert main([]) == 2


def test_the_command_line_starts_without_torch_or_ray():
    code = "import sys, landmark.cli; sys.exit(any(name in sys.modules for name in ('torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


@pytest.mark.parametrize("verb", ["prepare", "train", "evaluate", "report", "tune"])
def test_every_verb_has_help(verb):
    done = subprocess.run(
        [sys.executable, "-m", f"landmark.{verb}", "--help"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--" in done.stdout
