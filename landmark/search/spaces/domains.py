"""Domains of searched parameters: the allowed values of each, which may depend on the value of another parameter."""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from landmark.config import UserError, nearest

COVERED = 512
"""Maximum number of combinations of which `covering_points` returns all."""
DRAWS = 64
"""Number of random combinations that `covering_points` adds if there are more."""
KINDS = ("grid", "choice", "int", "uniform", "loguniform")
BY, DEFAULT = "by", "default"
"""Keys of a parameter with cases: the parameter that selects the case, and the domain for its other values."""
EXPECTED = (
    "expected {grid: […]}, {choice: […]}, {int: [low, high]}, {uniform: [low, high]}, {loguniform: [low, high]} or "
    "{by: OTHER_KEY, VALUE: …}"
)
Params = dict[str, Any]
"""The value of each searched key that a trial sets."""


@dataclass(kw_only=True, frozen=True)
class Domain:
    """The allowed values of a parameter."""

    kind: str
    """One of KINDS, or constant."""
    values: tuple[Any, ...]
    """The values; for int, uniform and loguniform, the lower and the upper bound."""
    where: str
    """Its key path in the space file: `parameters.KEY.KIND` or `parameters.KEY.CASE.KIND`."""

    @property
    def is_random(self) -> bool:
        """Whether trials sample a value, instead of enumerating all."""
        return self.kind not in ("grid", "constant")

    @property
    def is_continuous(self) -> bool:
        """Whether the domain is a range of real numbers."""
        return self.kind in ("uniform", "loguniform")

    def draw(self, generator: random.Random) -> Any:
        """Return a random value."""
        if self.kind == "int":
            return generator.randint(*self.values)
        if self.kind == "uniform":
            return generator.uniform(*self.values)
        if self.kind == "loguniform":
            low, high = self.values
            return math.exp(generator.uniform(math.log(low), math.log(high)))
        return generator.choice(self.values)

    def all(self) -> Sequence[Any]:
        """Return all values; for a continuous range, its bounds."""
        return range(self.values[0], self.values[1] + 1) if self.kind == "int" else self.values

    def contains(self, value: Any) -> bool:
        """Return whether the domain contains a value that was read from JSON."""
        if not self.is_continuous:
            return value in self.all()
        return _number(value) is not None and self.values[0] <= value <= self.values[1]

    def has(self, case: Any) -> bool:
        """Return whether a case matches one of the values; of a continuous range, only the bounds."""
        if self.kind == "int":
            return isinstance(case, int) and case in self.all()
        return any(_same(case, value) for value in self.values)


@dataclass(kw_only=True, frozen=True)
class Parameter:
    """A searched key: one domain, or one domain per value of another key."""

    key: str
    by: str | None
    """The searched key that selects the case; None if `default` applies to all trials."""
    cases: tuple[tuple[Any, Domain], ...] = ()
    """Values of `by` and their domains."""
    default: Domain | None = None
    """Domain for the other values of `by`; None if the key is not set for these."""

    def domain(self, chosen: Mapping[str, Any]) -> Domain | None:
        """Return the domain, given the chosen values of the keys before this one; None if the key is not set."""
        if self.by is not None and self.by in chosen:
            for value, domain in self.cases:
                if _same(value, chosen[self.by]):
                    return domain
        return self.default

    def domains(self) -> list[Domain]:
        """Return all of its domains, in the order of the file."""
        return [domain for _, domain in self.cases] + ([self.default] if self.default is not None else [])


Parameters = Mapping[str, Parameter]


def read_parameters(values: Mapping[str, Any], source: str) -> dict[str, Parameter]:
    """Return the parameters of a space file; `source` is its name in errors.

    Raises UserError with the key of an invalid domain or case.
    """
    parameters = {str(key): _parameter(str(key), value, source) for key, value in values.items()}
    for parameter in parameters.values():
        _check_by(parameter, parameters, source)
    for key in parameters:
        _check_cycle(key, parameters, source)
    for parameter in parameters.values():
        _check_cases(parameter, parameters, source)
    return parameters


def combinations(parameters: Parameters, options: Callable[[str, Domain], Iterable[Any]]) -> Iterator[Params]:
    """Yield every combination of the values that `options` returns for each key and its domain.

    A key comes after the key that it depends on. Otherwise, keys with listed values come before random ones, each in the
    order of the file, so that every combination of listed values has its own samples.
    """

    def extend(chosen: Params, left: tuple[str, ...]) -> Iterator[Params]:
        if not left:
            yield {key: chosen[key] for key in parameters if key in chosen}
            return
        ready = {key: parameters[key].domain(chosen) for key in left if parameters[key].by not in left}
        key = next((key for key, domain in ready.items() if domain is None or not domain.is_random), next(iter(ready)))
        rest, domain = tuple(other for other in left if other != key), ready[key]
        if domain is None:
            yield from extend(chosen, rest)
            return
        for value in options(key, domain):
            yield from extend({**chosen, key: value}, rest)

    return extend({}, tuple(parameters))


def sampled_points(parameters: Parameters, generator: random.Random) -> Iterator[Params]:
    """Yield the grid's combinations, each with a sample of the random parameters."""
    return combinations(parameters, lambda key, domain: [domain.draw(generator)] if domain.is_random else domain.values)


def enumerated_points(parameters: Parameters, generator: random.Random) -> Iterator[Params]:
    """Yield every combination once, starting at a random one; a continuous range contributes one sample."""

    def options(key: str, domain: Domain) -> Iterable[Any]:
        if domain.is_continuous:
            return [domain.draw(generator)]
        values = domain.all()
        start = generator.randrange(len(values))
        return itertools.chain(values[start:], values[:start])

    return combinations(parameters, options)


def sample_point(parameters: Parameters, generator: random.Random) -> Params:
    """Return one random point; grid values are sampled too."""
    return next(combinations(parameters, lambda key, domain: [domain.draw(generator)]))


def possible_values(parameters: Parameters, keys: Iterable[str]) -> Iterator[Params]:
    """Yield every combination of values of `keys` and the keys that they depend on; for ranges, the bounds."""
    wanted = set(keys) & set(parameters)
    for key in list(wanted):
        wanted.update(ancestors(key, parameters))
    part = {key: parameter for key, parameter in parameters.items() if key in wanted}
    return combinations(part, lambda key, domain: domain.values)


def covering_points(parameters: Parameters, keys: Iterable[str], most: int = COVERED) -> list[Params]:
    """Return every combination of values of `keys`, with the bounds of ranges; if more than `most`, a covering selection.

    The selection has, for each value, the combinations with the first and with the last values of all other keys, and DRAWS
    random combinations.
    """
    wanted = set(keys) & set(parameters)
    found = list(itertools.islice(possible_values(parameters, wanted), most + 1))
    if len(found) <= most:
        return found
    for key in list(wanted):
        wanted.update(ancestors(key, parameters))
    part = {key: parameter for key, parameter in parameters.items() if key in wanted}
    generator = random.Random(0)
    points = [point for _, probed in probes(part) for point in probed[1:]]
    points += [sample_point(part, generator) for _ in range(DRAWS)]
    return list({repr(sorted(point.items())): point for point in points}.values())


def count(parameters: Parameters, most: int) -> int:
    """Return the number of distinct points, up to `most`."""
    if any(domain.is_continuous for parameter in parameters.values() for domain in parameter.domains()):
        return most
    return sum(1 for _ in itertools.islice(combinations(parameters, lambda key, domain: domain.all()), most))


def probes(parameters: Parameters) -> Iterator[tuple[Domain, list[Params]]]:
    """Yield, for every listed value and every bound of a range, points that contain it.

    The first point contains only the value and those of the keys that select its case. The other two add the first and the
    last values of all other keys. A value is invalid if all of these points are.
    """
    for key, parameter in parameters.items():
        for domain in parameter.domains():
            for value in domain.values:
                if (reached := _reaching(key, domain, parameters)) is not None:
                    forced = {**reached, key: value}
                    yield domain, [forced, *(_filled(parameters, forced, place) for place in (0, -1))]


def _filled(parameters: Parameters, forced: Mapping[str, Any], place: int) -> Params:
    """Return the forced values and, for other keys, the values at an index of their domains."""
    return next(combinations(parameters, lambda key, domain: [forced[key] if key in forced else domain.values[place]]))


def _reaching(key: str, domain: Domain, parameters: Parameters) -> dict[str, Any] | None:
    """Return values of the keys before `key` that select `domain` for it; None if no values do."""
    parameter = parameters[key]
    if parameter.by is None:
        return {}
    before = parameters[parameter.by]
    for theirs in before.domains():
        for value in theirs.all():
            if parameter.domain({before.key: value}) is domain:
                forced = _reaching(before.key, theirs, parameters)
                if forced is not None:
                    return {**forced, before.key: value}
    return None


def ancestors(key: str, parameters: Parameters) -> Iterator[str]:
    """Yield the key that a key's domain depends on, the key that this one depends on, and so on."""
    while (by := parameters[key].by) is not None:
        yield by
        key = by


def _parameter(key: str, value: Any, source: str) -> Parameter:
    where = f"parameters.{key}"
    if not isinstance(value, Mapping) or BY not in value:
        return Parameter(key=key, by=None, default=_domain(where, value, source))
    named = {case: _case(f"{where}.{case}", domain, source) for case, domain in value.items() if case != BY}
    default = named.pop(DEFAULT, None)
    if not named:
        raise UserError(f"{source}: {where} has no case; give a value of {value[BY]} and its domain")
    return Parameter(key=key, by=str(value[BY]), cases=tuple(named.items()), default=default)


def _case(where: str, value: Any, source: str) -> Domain:
    if isinstance(value, Mapping):
        return _domain(where, value, source)
    return Domain(kind="constant", values=(value,), where=where)


def _domain(where: str, domain: Any, source: str) -> Domain:
    if not isinstance(domain, Mapping) or len(domain) != 1:
        raise UserError(f"{source}: {where} is {domain!r}; {EXPECTED}")
    kind, values = next(iter(domain.items()))
    if kind not in KINDS:
        raise UserError(f"{source}: {where}: unknown kind {kind!r}; {nearest(str(kind), KINDS)}")
    if not isinstance(values, list) or not values:
        state = "is empty" if values == [] else f"is {values!r}"
        raise UserError(f"{source}: {where}.{kind} {state}; give a list of one or more values")
    if kind not in ("grid", "choice"):
        values = _bounds(f"{source}: {where}.{kind}", kind, values)
    return Domain(kind=kind, values=tuple(values), where=f"{where}.{kind}")


def _bounds(where: str, kind: str, values: list[Any]) -> list[Any]:
    bounds = [number for value in values if (number := _number(value)) is not None]
    if not len(values) == len(bounds) == 2 or bounds[0] >= bounds[1]:
        raise UserError(f"{where} is {values!r}; expected two numbers, the lower first")
    if kind == "loguniform" and bounds[0] <= 0:
        raise UserError(f"{where} is {values!r}; expected bounds above 0")
    if kind == "int":
        if not all(bound.is_integer() for bound in bounds):
            raise UserError(f"{where} is {values!r}; expected two integers, the lower first")
        return [int(bound) for bound in bounds]
    return bounds


def _check_by(parameter: Parameter, parameters: Parameters, source: str) -> None:
    if parameter.by is not None and parameter.by not in parameters:
        raise UserError(
            f"{source}: parameters.{parameter.key}.by is {parameter.by!r}, which is not searched; "
            f"{nearest(parameter.by, [key for key in parameters if key != parameter.key])}"
        )


def _check_cycle(key: str, parameters: Parameters, source: str) -> None:
    chain = [key]
    for by in ancestors(key, parameters):
        if by in chain:
            raise UserError(f"{source}: parameters.{key}.by: {' by '.join([*chain, by])} is a cycle; break it")
        chain.append(by)


def _check_cases(parameter: Parameter, parameters: Parameters, source: str) -> None:
    """Check that each case is an allowed value of the key that selects it."""
    if parameter.by is None:
        return
    domains = parameters[parameter.by].domains()
    ranges = [domain.where for domain in domains if domain.is_continuous]
    if ranges:
        raise UserError(
            f"{source}: parameters.{parameter.key}.by is {parameter.by!r}, but {ranges[0]} is a continuous range; give it listed values"
        )
    for value, _ in parameter.cases:
        if not any(domain.has(value) for domain in domains):
            known = [str(other) for domain in domains for other in itertools.islice(domain.all(), 1000)]
            raise UserError(
                f"{source}: parameters.{parameter.key}.{value}: {parameter.by} is never {value!r}; {nearest(str(value), known)}"
            )


def _same(case: Any, value: Any) -> bool:
    """Return whether a case equals a value; YAML may read 1e-4 as text and 0.0001 as a number."""
    return case == value or str(case) == str(value)


def _number(value: Any) -> float | None:
    # YAML 1.1 reads 1e-4 as text.
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
