"""The command line: `landmark <verb>`, each verb's flags made from the fields of its config."""

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from landmark import __version__
from landmark.config import Stopped, UserError, load_yaml, nearest
from landmark.flags import flags_of, unknown_flag, wrong_value
from landmark.outofmemory import out_of_memory

T = TypeVar("T")
VERBS = {
    "prepare": "pack images and labels into a dataset",
    "clean": "drop copies, wrong labels and pictures of nothing from a dataset",
    "train": "train one model",
    "tune": "search for the best model",
    "evaluate": "evaluate a model beside its trivial baselines",
    "index": "make the index that nearest neighbours are looked for in, or add images and classes to it",
    "predict": "write guesses for images, and their embeddings",
    "report": "make a page and tables out of a study or a run",
    "cluster": "check what a Ray cluster can run, or show what it is at",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `landmark <verb> …`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in ([], ["-h"], ["--help"]):
        lines = [f"  {verb:10}{text}" for verb, text in VERBS.items()]
        print("usage: landmark VERB [OPTIONS]; landmark VERB --help lists its options\n\n" + "\n".join(lines))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        return fail("landmark", f"unknown verb '{verb}'; {nearest(verb, VERBS)}", 2)
    return importlib.import_module(f"landmark.{verb}").main(arguments[1:])


def end(code: int) -> NoReturn:
    """End the process with an exit code, as every command does; a call to object storage that hangs is left behind."""
    storage, ray = sys.modules.get("landmark.storage"), sys.modules.get("ray")
    if storage is not None and storage.hanging():
        if ray is not None:
            ray.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        # The storage client waits for its calls when the interpreter ends in the usual way.
        os._exit(code)
    sys.exit(code)


def run_verb(
    kind: type[T],
    function: Callable[[T], Any],
    argv: Sequence[str] | None = None,
    *,
    default: Callable[[str | None, Sequence[str]], T | None] | None = None,
    from_file: Callable[[str, Sequence[str]], T] | None = None,
    program: str | None = None,
) -> int:
    """Parse the arguments into a config of type `kind`, call `function` with it, return the exit code.

    `--config FILE` gives the fields' defaults as YAML, as a run saves it. `default` may make them out of the other arguments
    instead, and of the name that `--recipe NAME` gives. `from_file` makes them of the file and the other arguments.
    `program`: what the verb is called, where that is not the function's name. A user's mistake is one line on stderr: exit
    code 2 for the command line or a config, 1 for anything found later, 75 for work that stopped and can be resumed.
    """
    program = program or f"landmark {function.__name__}"
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        config = parse(kind, arguments, program, default, from_file)
    except UserError as error:
        return fail(program, str(error), 2)
    try:
        function(config)
    except Stopped as error:
        return fail(program, str(error), 75)
    except UserError as error:
        return fail(program, str(error), 1)
    except KeyboardInterrupt:
        return fail(program, "interrupted", 130)
    except Exception as error:
        if isinstance(error, MemoryError | RuntimeError | OSError) and (message := out_of_memory(error)) is not None:
            return fail(program, f"{message}; lower the batch size, or use a machine with more memory", 1)
        if (failure := _storage_failure(error)) is None:
            raise
        return fail(program, str(failure), 1)
    return 0


def _storage_failure(error: Exception) -> UserError | None:
    """Return the failure of storage that another library's error is about, such as Ray's; None for any other error."""
    if "ray" not in sys.modules:
        return None
    from landmark.runtime import lost_storage, own_error
    from landmark.storage import StorageError

    own = own_error(error) or lost_storage(error)
    return own if isinstance(own, StorageError) else None


def parse(
    kind: type[T],
    arguments: Sequence[str],
    program: str,
    default: Callable[[str | None, Sequence[str]], T | None] | None = None,
    from_file: Callable[[str, Sequence[str]], T] | None = None,
) -> T:
    """Parse command-line arguments into a config; raises UserError with one line."""
    rest, config_file = take_option(arguments, "--config")
    recipe = None
    if default is not None:
        rest, recipe = take_option(rest, "--recipe")
    if config_file and recipe:
        raise UserError("--config and --recipe both say what to start from; leave one of them out")
    base: T | None = None
    if config_file:
        base = from_file(config_file, rest) if from_file is not None else load_yaml(kind, config_file)
    elif default is not None:
        base = default(recipe, rest)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            if base is None:
                return tyro.cli(kind, prog=program, args=rest)
            return tyro.cli(kind, prog=program, args=rest, default=base)
    except SystemExit as stop:
        if not stop.code:
            raise
        unknown = unknown_flag(rest, list(flags_of(kind)))
        raise UserError(unknown or _one_line(shown.getvalue())) from None


def take_option(arguments: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """Return the arguments without `flag VALUE` or `flag=VALUE`, and the value."""
    rest, value = [], None
    pending = iter(arguments)
    for argument in pending:
        if argument == flag:
            value = next(pending, None)
            if value is None:
                raise UserError(f"{flag} needs a value; give a name or a file")
        elif argument.startswith(f"{flag}="):
            value = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return rest, value


def _one_line(box: str) -> str:
    """Return the message of tyro's boxed error as one line that names the nearest valid option or choice."""
    title, text, hints = _read_box(box)
    if title == "Unrecognized options":
        given = text.partition(":")[2].replace(",", " ").split()
        return f"{given[0]!r} belongs to no option; see --help"
    if title == "Required options":
        flag = next((line.split()[0] for line in hints if line.startswith("--")), "an option")
        text = " ".join(line for line in hints[1:] if not line.startswith("--")).partition("(required)")[0].strip()
        return f"{flag} is missing: {text}"
    if choice := re.match(r"invalid choice '(.*?)' for argument '(--[\w.-]+)'\. Expected one of \((.*)\)", text):
        word, flag, valid = choice.groups()
        names = re.findall(r"'([^']*)'", valid)
        return f"{flag} is {word!r}; {nearest(word, names)}"
    return wrong_value(text) or "wrong arguments; see --help"


def _read_box(box: str) -> tuple[str, str, list[str]]:
    """Return the title, the first paragraph and the lines after it of an error that tyro draws as a box.

    Where the terminal has no line-drawing characters the box is a title and rows of hyphens.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│╭╮╰╯ ") for line in plain.splitlines()]
    lines = ["─" if line and set(line) <= set("─- ") else line.strip("─ ") for line in lines]
    lines = [line for line in lines if line]
    while lines and lines[0] == "─":
        lines.pop(0)
    if not lines:
        return "", "", []
    paragraphs: list[list[str]] = [[]]
    for line in lines[1:]:
        if line == "─" or "helptext" in line:
            paragraphs.append([])
        elif "--help" not in line:
            paragraphs[-1].append(line)
    filled = [paragraph for paragraph in paragraphs if paragraph] or [[]]
    return lines[0], " ".join(filled[0]), [line for paragraph in filled for line in paragraph]


def fail(program: str, message: str, code: int) -> int:
    """Print a mistake as one line on stderr; returns the exit code."""
    print(f"{program}: error: {message}", file=sys.stderr)
    return code
