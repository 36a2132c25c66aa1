"""`landmark COMMAND …`: finds the command, parses its arguments, runs it and returns the exit code."""

import contextlib
import dataclasses
import importlib
import io
import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from landmark import __version__
from landmark.cli.commands import COMMANDS, Command
from landmark.cli.completion import SHELLS, completion
from landmark.cli.help import command_help, group_help, long_help, program_help
from landmark.cli.parsing import Parser
from landmark.cli.troubleshooting import link_of
from landmark.config import Stopped, UserError, nearest
from landmark.out_of_memory import out_of_memory
from landmark.progress import set_quiet

SWITCHES = ("--json", "-q", "--quiet", "-v", "--verbose")
"""Options of every command that are no fields of its config."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in ([], ["-h"], ["--help"]):
        print(program_help(COMMANDS))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "completion":
        return _completion(rest)
    actions = [command.partition(" ")[2] for command in COMMANDS if command.startswith(f"{name} ")]
    if actions and (name not in COMMANDS or (rest and rest[0] in actions)):
        if not rest or rest[0] in ("-h", "--help"):
            print(group_help(name, COMMANDS))
            return 0 if rest else 2
        if rest[0] not in actions:
            return fail(f"landmark {name}", f"unknown action '{rest[0]}'; {nearest(rest[0], actions)}", 2)
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in COMMANDS:
        names = dict.fromkeys(command.partition(" ")[0] for command in COMMANDS)
        return fail("landmark", f"unknown command '{name}'; {nearest(name, names)}", 2)
    return run(COMMANDS[name], rest)


def _completion(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(f"usage: landmark completion {{{','.join(SHELLS)}}}\n\nPrint a completion script for a shell.")
        return 0 if arguments else 2
    try:
        print(completion(arguments[0], COMMANDS), end="")
    except UserError as error:
        return fail("landmark", str(error), 2)
    return 0


def run(command: Command, arguments: Sequence[str]) -> int:
    """Run a command with its arguments; returns the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(command_help(command))
        return 0
    for argument in arguments:
        if argument.partition("=")[0] == "--help-all":
            try:
                print(long_help(command, argument.partition("=")[2]))
            except UserError as error:
                return fail(f"landmark {command.name}", str(error), 2)
            return 0
    rest = [argument for argument in arguments if argument not in SWITCHES]
    as_json, quiet = "--json" in arguments, {"-q", "--quiet"} & set(arguments)
    if {"-v", "--verbose"} & set(arguments):
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")

    def call(config: Any) -> None:
        with _while_ray_starts(command, config):
            module, _, function = command.function.partition(":")
        result = getattr(importlib.import_module(module), function)(config)
        if as_json:
            print(json.dumps(_as_object(result)), file=stdout)
        if isinstance(result, Mapping) and result.get("out_of_time"):
            raise Stopped(
                f"stopped because {result['ended_by']}; the results so far are stored. "
                "Continue with --resume and a larger --budget.seconds"
            )

    stdout = sys.stdout
    with contextlib.ExitStack() as stack:
        if quiet:
            set_quiet(True)
            stack.callback(set_quiet, False)
        if as_json or quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO() if quiet else sys.stderr))
        return run_with(command.parser(), call, rest)


def _as_object(result: Any) -> dict[str, Any]:
    """Return a command's result as one JSON object: what its `summary` says, if it has one; a list as `results`."""
    value = _as_json(result.summary() if hasattr(result, "summary") and callable(result.summary) else result)
    if isinstance(value, dict):
        return value
    return {"results": value} if value is not None else {}


def _as_json(result: Any) -> Any:
    """Return a value for JSON: dataclasses as objects, locations as text."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        return {name: _as_json(value) for name, value in values.items()}
    if isinstance(result, Mapping):
        return {str(key): _as_json(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [_as_json(value) for value in result]
    if isinstance(result, float) and not math.isfinite(result):
        return None
    return result if result is None or isinstance(result, bool | int | float | str) else str(result)


def run_with(parser: Parser, function: Callable[[Any], object], arguments: Sequence[str]) -> int:
    """Parse arguments and call a function with the config; returns the exit code.

    A user's mistake is one line on stderr: exit code 2 for the command line or a config, 1 for anything found later, 75 for
    work that stopped and can be resumed, 130 for an interrupt.
    """
    program = parser.program
    try:
        config = parser.parse(arguments)
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


@contextlib.contextmanager
def _while_ray_starts(command: Command, config: Any) -> Iterator[None]:
    """Start Ray, and import what takes seconds meanwhile in a thread: Ray has to start in the main thread, as its processes
    end with the thread that started them."""
    if not command.imports:
        yield
        return
    thread = threading.Thread(target=_import_all, args=(command.imports,), name="imports")
    thread.start()
    try:
        importlib.import_module("landmark.runtime").connect(config.cluster)
    finally:
        thread.join()
    yield


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        with contextlib.suppress(ImportError):  # raised again where the module is used
            importlib.import_module(module)


def _storage_failure(error: Exception) -> UserError | None:
    """Return the failure of storage that another library's error is about, such as Ray's; None for any other error."""
    if "ray" not in sys.modules:
        return None
    from landmark.runtime import own_error, storage_error_of
    from landmark.storage import StorageError

    own = own_error(error) or storage_error_of(error)
    return own if isinstance(own, StorageError) else None


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


def fail(program: str, message: str, code: int) -> int:
    """Print a mistake as one line on stderr; returns the exit code."""
    link = link_of(message)
    print(f"{program}: error: {message}{f' (see {link})' if link else ''}", file=sys.stderr)
    return code
