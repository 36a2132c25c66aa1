"""Classes that the user names by import path, such as schedulers and searchers of Ray Tune."""

import contextlib
import importlib
import inspect
import random
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from landmark.config import UserError, nearest

T = TypeVar("T")


def load_class(path: str, base: type[T], key: str) -> type[T]:
    """Return the class MODULE:CLASS, a subclass of `base`. The working directory is searched for modules, too.

    key: option that contains the path. Raises UserError if there is no such class.
    """
    module_name, _, name = path.partition(":")
    with _working_directory_importable():
        try:
            module = importlib.import_module(module_name)
            found = getattr(module, name, None)
        except Exception as error:  # anything that the module's own code raises
            raise UserError(
                f"{key} is {path}, but the module {module_name} cannot be imported ({_one_line(error)}); "
                "install it, or add its folder to PYTHONPATH"
            ) from None
    if found is None:
        classes = [
            other for other, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)
        ]
        raise UserError(f"{key} is {path}, but the module has no {name}; {nearest(name, classes)}")
    if not isinstance(found, type) or not issubclass(found, base):
        raise UserError(f"{key} is {path}; expected a subclass of {base.__module__}.{base.__qualname__}")
    return found


def create(
    kind: type[T], options: Mapping[str, Any], key: str, reserved: Mapping[str, str], defaults: dict[str, Any]
) -> T:
    """Return an object of a class that the user named.

    options: the user's keyword arguments. key: option that contains them. reserved: argument -> the option that sets it
    instead. defaults: arguments that are passed if the class has them and the user gives no others. Raises UserError for
    an unknown, reserved or invalid argument.
    """
    accepted = _accepted(kind)
    for name in options:
        if name in reserved:
            raise UserError(f"{key}.{name} is set, but landmark sets it from {reserved[name]}; remove it")
        if accepted is not None and name not in accepted:
            raise UserError(
                f"{key}.{name}: {kind.__name__} has no such argument; {nearest(name, accepted - {*reserved})}"
            )
    known = {name: value for name, value in defaults.items() if accepted is None or name in accepted}
    try:
        return kind(**{**known, **options})
    except Exception as error:
        raise UserError(f"{key}: {kind.__name__} does not accept {dict(options)} ({_one_line(error)})") from None


def _accepted(kind: type) -> set[str] | None:
    """Return the keyword arguments of a class; None if it accepts any."""
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL}


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added:
            sys.path.remove(folder)


_preserved = False


@contextlib.contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the states of `random` and NumPy's global generator at the end of the context.

    NumPy takes 0.1 ms for this. Inner contexts therefore do nothing.
    """
    global _preserved
    if _preserved:
        yield
        return
    states, _preserved = (random.getstate(), np.random.get_state()), True
    try:
        yield
    finally:
        _preserved = False
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextlib.contextmanager
def seeded(*seed: object) -> Iterator[None]:
    """Seed `random` and NumPy's global generator within the context, and restore their states afterwards."""
    with preserved_generators():
        number = zlib.crc32(repr(seed).encode())
        random.seed(number)
        np.random.seed(number)
        yield


def call(context: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a user's function; raises UserError with the context for any exception in it."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{context}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
