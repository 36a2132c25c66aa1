"""Tests the command line: arguments, help, one-line errors, exit codes, no tracebacks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from landmark.cli import COMMANDS, Parser, main
from landmark.cli.app import SWITCHES, run_with
from landmark.cli.completion import SHELLS, completion
from landmark.cli.foreign import FOREIGN
from landmark.cli.help import command_help, groups, long_help, shown_options
from landmark.cli.options import options_of, switched_off
from landmark.config import EvaluateConfig, PredictConfig, Stopped, TrainConfig, TuneConfig, UserError

ROOT = Path(__file__).parent.parent.parent
TRAIN = Parser(kind=TrainConfig, program="landmark train", positional=("--dataset",))


def run(parser: Parser, arguments: list[str], capsys: pytest.CaptureFixture[str], function=lambda config: None):
    code = run_with(parser, function, arguments)
    return code, capsys.readouterr().err.strip()


def train(*arguments: str) -> TrainConfig:
    return TRAIN.parse(["d", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DATASET is missing"),
        (["d", "--epoch", "3"], "unknown option '--epoch'; did you mean '--epochs'?"),
        (["d", "--optimizer.nam", "x"], "unknown option '--optimizer.nam'; did you mean '--optimizer.name'?"),
        (["d", "--optimizer.name", "adm"], "--optimizer.name is 'adm'; did you mean 'adam'?"),
        (["d", "--opt", "adm"], "--opt is 'adm'; did you mean 'adam'?"),
        (["d", "--epochs", "many"], "--epochs is 'many'; expected a whole number"),
        (["d", "--epochs", ""], "--epochs is ''; expected a whole number"),
        (["d", "--optimizer.lr", ""], "--optimizer.lr is ''; expected a number or None"),
        (["d", "--lr", "fast"], "--lr is 'fast'; expected a number or None"),
        (["d", "--classes", "1.5"], "--classes is '1.5'; expected a whole number or None"),
        (["d", "--loss.label-smoothing", "x"], "--loss.label-smoothing is 'x'; expected a number"),
        (["d", "--epochs"], "--epochs has no value; give one after it"),
        (["--lerning-rate=0.1", "d"], "unknown option '--lerning-rate'; '--learning-rate' is in landmark: --lr"),
        (["d", "--loader.bach-size", "3"], "'--loader.bach-size'; did you mean '--loader.batch-size'?"),
        (["d", "--epochs", "0"], "epochs is 0; expected 1 or more"),
        (["d", "--num-workers", "100"], "loader.batch_size is 64; expected at least one image per worker"),
        (["d", "--augment.flip", "True"], "'True' belongs to no option; see --help"),
        (["d", "more"], "'more' belongs to no option; see --help"),
        (["d", "--no-compute.compile"], "unknown option '--no-compute.compile'; did you mean '--compute.no-compile'?"),
        (
            ["d", "--resume", "runs/last.pt"],
            "unexpected value 'runs/last.pt' of --resume; use --resume (without a value)",
        ),
        (["d", "--loader", "4"], "unknown option '--loader'; its options are --loader."),
        (["--config"], "--config needs a value"),
        (["--config", "none.yaml"], "none.yaml: cannot read the config file"),
    ],
)
def test_an_invalid_command_line_is_a_one_line_error_and_exit_code_2(arguments, message, capsys):
    code, error = run(TRAIN, arguments, capsys)
    assert code == 2
    assert error.startswith("landmark train: error: ")
    assert message in error
    assert "\n" not in error


def test_short_flags_and_positional_arguments_set_the_same_fields():
    short = train(
        *(
            "--epochs",
            "3",
            "--lr=0.1",
            "--batch-size",
            "32",
            "--model",
            "resnet50",
            "--weights",
            "DEFAULT",
            "--opt",
            "adamw",
        ),
        *("--sched", "cosine", "--img-size", "96", "--amp", "--seed", "7", "--num-workers", "2:4", "--address", "auto"),
        *("-o", "elsewhere"),
    )
    full = TRAIN.parse(
        [
            *("--dataset", "d", "--epochs", "3", "--optimizer.lr", "0.1", "--loader.batch_size", "32"),
            *("--model.backbone", "resnet50", "--model.weights", "DEFAULT", "--optimizer.name", "adamw"),
            *("--schedule.name", "cosine", "--loader.image-size", "96", "--compute.amp", "auto", "--seed", "7"),
            *("--workers.count", "2:4", "--cluster.address", "auto", "--output", "elsewhere"),
        ]
    )
    assert short == full
    assert short.optimizer.lr == 0.1 and short.workers.count == "2:4" and short.compute.amp == "auto"
    assert train("--amp", "bf16").compute.amp == "bf16"
    tune = Parser(kind=TuneConfig, program="landmark tune", positional=("--dataset",))
    assert tune.parse(["d", "--space", "small", "--lr", "0.3"]).recipe.optimizer.lr == 0.3


def test_positional_images_may_be_mixed_with_options():
    parser = Parser(kind=PredictConfig, program="landmark predict", positional=("--run", "--images"))
    found = parser.parse(["r", "a.jpg", "--top-k", "3", "b.jpg", "-", "--format=csv"])
    assert (found.run, found.images, found.top_k, found.format) == ("r", ("a.jpg", "b.jpg", "-"), 3, "csv")


FOREIGN_FLAGS = """
    --pretrained --data-dir --workers -j -b --weight-decay --momentum --clip-grad --warmup-epochs --smoothing --model-ema
    --experiment --checkpoint-hist --amp-dtype --data-path --device --lr-scheduler --label-smoothing --output-dir --test-only
    --max-epochs --accelerator --devices --num-nodes --precision --gradient-clip-val --learning-rate --num-train-epochs
    --per-device-train-batch-size --gradient-accumulation-steps --fp16 --bf16 --optim --model-name-or-path
    --overwrite-output-dir --resume-from-checkpoint --report-to --imgsz --arch --gpus
"""


@pytest.mark.parametrize("flag", FOREIGN_FLAGS.split())
def test_the_error_for_a_foreign_flag_names_the_landmark_flag(flag, capsys):
    code, error = run(TRAIN, ["d", flag, "1"], capsys)
    assert code == 2 and "\n" not in error
    assert error.startswith(f"landmark train: error: unknown option '{flag}'; in landmark: ")


def test_flags_suggested_for_foreign_flags_exist():
    known = {"--help", "--recipe", "--config"}
    for command in COMMANDS.values():
        for option in options_of(command.config):
            known |= {option.flag, option.short or option.flag}
            if option.values == 0:
                known.add(switched_off(option.flag))
    for foreign, answer in FOREIGN.items():
        for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z]", answer):
            assert flag in known, f"{foreign}: {flag}"


def test_exit_codes(capsys):
    parser = Parser(kind=EvaluateConfig, program="landmark evaluate", positional=("--run",))

    def code_of(error: BaseException) -> tuple[int, str]:
        def fails(config: EvaluateConfig) -> None:
            raise error

        return run(parser, ["c"], capsys, fails)

    assert code_of(UserError("the bucket is gone; create it")) == (
        1,
        "landmark evaluate: error: the bucket is gone; create it",
    )
    assert code_of(Stopped("stopped"))[0] == 75
    assert code_of(KeyboardInterrupt())[0] == 130
    with pytest.raises(ZeroDivisionError):
        code_of(ZeroDivisionError())


def test_commands_are_listed_and_unknown_ones_get_a_suggestion(capsys):
    assert main(["--help"]) == 0
    assert "tune" in capsys.readouterr().out
    assert main(["tun"]) == 2
    assert "unknown command 'tun'; did you mean 'tune'?" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["cluster"]) == 2
    assert main(["cluster", "chek"]) == 2
    assert "unknown action 'chek'; did you mean 'check'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_help_fits_one_screen_and_help_all_has_every_option(command):
    text = command_help(command)
    assert len(text.splitlines()) <= 40
    assert all(len(line) <= 120 for line in text.splitlines())
    assert text.count("\n  landmark ") == len(command.examples) >= 1
    complete_help, options = long_help(command), shown_options(command)
    assert all((option.short or option.flag) in complete_help for option in options)
    for group in groups(options):
        assert f"{group} options:" in long_help(command, group) or f"{group}." in long_help(command, group)
    if groups(options):
        with pytest.raises(UserError, match="no such group of options"):
            long_help(command, "nothing")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_every_option_has_a_description_and_a_default(command):
    for option in options_of(command.config):
        assert option.text, option.flag
        assert option.default is not None or "[default: " in option.text, option.flag


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_help_examples_are_valid_commands(command, tmp_path):
    for example in command.examples:
        words = example.partition(" > ")[0].split()[1 + len(command.name.split()) :]
        if command.name == "train":  # the default recipe depends on the dataset, which does not exist
            words += [] if "--recipe" in words else ["--recipe", "modern"]
        words = [word for word in words if word not in SWITCHES]
        words = ["demo" if word == "space.yaml" else word for word in words]
        assert isinstance(command.parser().parse(words), command.config)


def test_help_version_and_usage_errors_import_neither_torch_nor_ray():
    code = (
        "import sys, contextlib, io\n"
        "from landmark.cli import COMMANDS, main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    for name in COMMANDS:\n"
        "        assert main([*name.split(), '--help']) == 0\n"
        "        assert main([*name.split(), '--help-all']) == 0\n"
        "        assert main([*name.split(), '--no-such-option']) == 2\n"
        "    assert main(['--version']) == main(['completion', 'bash']) == 0\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'pyarrow', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_json_output_is_exactly_one_object_on_stdout():
    command = [sys.executable, "-m", "landmark", "spaces", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "demo" in json.loads(done.stdout)["results"]
    quiet = subprocess.run([*command[:-1], "-q"], cwd=ROOT, capture_output=True, text=True)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["train", "tune"])
def test_train_and_tune_run_as_modules(module):
    done = subprocess.run(
        [sys.executable, "-m", f"landmark.{module}", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: landmark {module} DATASET")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_has_every_command_and_option(shell):
    script = completion(shell, COMMANDS)
    for name, command in COMMANDS.items():
        assert name.split()[0] in script
        for option in options_of(command.config):
            assert option.flag.removeprefix("--") in script
    with pytest.raises(UserError, match="unknown shell 'bsh'; did you mean 'bash'"):
        completion("bsh", COMMANDS)


def test_bash_completes_commands_and_options(tmp_path):
    (tmp_path / "script").write_text(completion("bash", COMMANDS))
    code = (
        f"source {tmp_path}/script\n"
        'complete_for() { COMP_WORDS=(landmark "$@"); COMP_CWORD=$#; COMPREPLY=(); _landmark; echo "${COMPREPLY[@]}"; }\n'
        "complete_for tr; complete_for train d --optimizer.n; complete_for cluster ch; complete_for cluster check --timeo\n"
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["train", "--optimizer.name --optimizer.nonfinite", "check", "--timeout-s"]
