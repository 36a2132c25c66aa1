"""The commands as functions: the same names as the flags, result objects instead of printed lines.

Options that are not parameters of a function are given by `options`, nested as in a configuration file:
`landmark.train("datasets/photos", epochs=5, options={"loader": {"decode_threads": 2}})`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from landmark.api.results import EvaluateResult, PrepareResult, ReportResult, TrainResult, TuneResult
from landmark.cli.defaults import AUTO, AUTO_MINUTES, check_length, recipe_for, recorded_run, with_length_of
from landmark.cli.options import SHORT, option_fields
from landmark.config import (
    EvaluateConfig,
    PrepareConfig,
    ReportConfig,
    TrainConfig,
    TuneConfig,
    UserError,
    from_mapping,
    to_mapping,
)
from landmark.recipes import merged, recipe_values

T = TypeVar("T")
Options = Mapping[str, Any]
PATHS = {flag.removeprefix("--").replace("-", "_"): path for flag, path in SHORT.items()}
"""Parameter -> dotted name of the field."""


def prepare(
    photos: str | Path | None = None,
    output: str | Path = "dataset",
    *,
    source: Literal["synthetic", "folders", "gldv2", "dataset"] | None = None,
    seed: int = 0,
    address: str | None = None,
    options: Options | None = None,
) -> PrepareResult:
    """Pack photographs and labels into a dataset, as `landmark prepare` does.

    photos: folder or URI of the images; not for synthetic ones. output: folder or URI of the dataset. Raises UserError.
    """
    values: dict[str, Any] = {"output": str(output), "seed": seed}
    if source is not None:
        values["source"] = source
    if photos is not None:
        values[source or "folders"] = {"path": str(photos)}
    config = _config(PrepareConfig, {}, values, {"address": address}, options)
    from landmark.commands.prepare import prepare as run

    result = run(config)
    if result is None:
        raise UserError("verify=True checks a dataset and returns no result; use landmark prepare --verify")
    manifest = result.dataset.manifest
    return PrepareResult(
        uri=result.dataset.uri,
        images={name: entry.rows for name, entry in manifest.splits.items()},
        classes=manifest.classes,
        rejects=dict(result.rejects),
    )


def train(
    dataset: str | Path,
    *,
    recipe: str | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    hours: float | None = None,
    lr: float | None = None,
    batch_size: int | Literal["auto"] | None = None,
    model: str | None = None,
    weights: str | None = None,
    opt: Literal["sgd", "rmsprop", "adam", "adamw", "muon"] | None = None,
    sched: Literal["constant", "step", "cosine", "one_cycle", "plateau"] | None = None,
    img_size: int | None = None,
    amp: Literal["auto", "off", "bf16", "fp16"] | None = None,
    seed: int | None = None,
    num_workers: int | str | None = None,
    address: str | None = None,
    output: str | Path = "runs",
    name: str = "train",
    resume: bool = False,
    options: Options | None = None,
) -> TrainResult:
    """Train one model, as `landmark train` does.

    recipe: name or YAML file of the defaults. auto is the default one, with a time limit of 10 minutes. [default: finetune for
    small datasets if start weights are installed, else modern; with `resume` the settings of the run] minutes, hours: time
    limit of training, instead of epochs. batch_size: images per step over all training processes; auto is the largest that fits
    into the memory of the GPUs. Raises UserError.
    """
    parameters = dict(locals())
    values: dict[str, Any] = {"dataset": str(dataset), "output": str(output), "name": name, "resume": resume}
    if batch_size == AUTO:
        values["auto_batch_size"] = True
        parameters["batch_size"] = None
    limits = {name: value for name, value in (("minutes", minutes), ("hours", hours)) if value is not None}
    check_length([] if epochs is None else ["epochs"], limits)
    values |= limits
    if recipe == AUTO and epochs is None and not limits:
        values["minutes"] = AUTO_MINUTES
    before = recorded_run(str(output), name) if resume and recipe is None else None
    if before is None and recipe in (None, AUTO):
        recipe, _ = recipe_for(str(dataset), model=model, weights=weights)
    if before is not None:
        before = with_length_of(before, [*limits, *([] if epochs is None else ["epochs"])])
    base = recipe_values(recipe) if recipe is not None else to_mapping(before)
    config = _config(TrainConfig, base, values, parameters, options)
    _refuse_measurements(config)
    from landmark.commands.train import train as run

    result = run(config)
    assert not isinstance(result, dict)
    return TrainResult(
        uri=result.run,
        metrics=dict(result.best),
        epochs_run=result.epochs_run,
        stopped_early=result.stopped_early,
        seconds=result.seconds,
    )


def _refuse_measurements(config: TrainConfig) -> None:
    """Raise UserError for options that print a measurement instead of training."""
    for name in ("dry_run", "headroom", "lr_range_test"):
        if getattr(config, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{name} applies to the command line; use `landmark train {flag}`, or remove the option")


def tune(
    dataset: str | Path,
    space: str | Path,
    *,
    recipe: str | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    model: str | None = None,
    weights: str | None = None,
    opt: Literal["sgd", "rmsprop", "adam", "adamw", "muon"] | None = None,
    sched: Literal["constant", "step", "cosine", "one_cycle", "plateau"] | None = None,
    img_size: int | None = None,
    amp: Literal["auto", "off", "bf16", "fp16"] | None = None,
    seed: int | None = None,
    scheduler: str | None = None,
    searcher: str | None = None,
    num_samples: int | None = None,
    search_seed: int | None = None,
    max_concurrent: int | None = None,
    num_workers: int | str | None = None,
    address: str | None = None,
    output: str | Path = "runs",
    name: str = "tune",
    resume: bool = False,
    options: Options | None = None,
) -> TuneResult:
    """Search for the best model, as `landmark tune` does.

    space: name of a search space that comes with landmark, or a YAML file. Raises UserError.
    """
    parameters = dict(locals())
    from landmark.search.spaces.space import Space

    values: dict[str, Any] = {
        "dataset": str(dataset), "space": str(space), "output": str(output), "name": name, "resume": resume,
        "scheduler": scheduler, "searcher": searcher, "num_samples": num_samples, "search_seed": search_seed,
        "max_concurrent": max_concurrent,
    }  # fmt: skip
    base = {"recipe": to_mapping(Space.load(str(space)).recipe(recipe))}
    config = _config(TuneConfig, base, values, parameters, options)
    from landmark.commands.tune import tune as run

    summary = run(config)
    return TuneResult(uri=f"{config.output.rstrip('/')}/{name}", best=summary.get("best"), summary=summary)


def evaluate(
    run: str | Path,
    *,
    split: Literal["train", "val", "test"] = "test",
    dataset: str | Path | None = None,
    against: str | Path | None = None,
    distractors: str | Path | None = None,
    tta: Literal["none", "flip"] = "none",
    batch_size: int = 128,
    output: str | Path | None = None,
    options: Options | None = None,
) -> EvaluateResult:
    """Evaluate a model, compared with its trivial baselines, as `landmark evaluate` does. Raises UserError."""
    values = {"run": run, "dataset": dataset, "against": against, "distractors": distractors, "output": output}
    texts = {key: None if value is None else str(value) for key, value in values.items()}
    config = _config(EvaluateConfig, {}, {**texts, "split": split, "tta": tta, "batch_size": batch_size}, {}, options)
    from landmark.commands.evaluate import evaluate as call
    from landmark.commands.evaluate import output_of

    return EvaluateResult(metrics=call(config), uri=output_of(config).uri)


def report(
    run: str | Path,
    *,
    output: str | Path | None = None,
    price_per_hour: float | None = None,
    options: Options | None = None,
) -> ReportResult:
    """Make a page and tables of a study or a run, as `landmark report` does. Raises UserError."""
    values = {"run": str(run), "output": None if output is None else str(output), "price_per_hour": price_per_hour}
    from landmark.commands.report import report as call

    return ReportResult(page=str(call(_config(ReportConfig, {}, values, {}, options))))


def _config(
    kind: type[T],
    base: Mapping[str, Any],
    values: Mapping[str, Any],
    parameters: Mapping[str, Any],
    options: Options | None,
) -> T:
    """Return the config of a command: `values` and the short parameters that are set, over `base`, and `options` over all.

    parameters: those of the function by name. Only the ones that are short flags are used.
    """
    names = {name for name, _ in option_fields(kind)}
    nested = merged(base, values)
    for parameter, path in PATHS.items():
        if parameter in values or parameters.get(parameter) is None:
            continue
        part: Any = parameters[parameter]
        for key in reversed((path if path in names else f"recipe.{path}").split(".")):
            part = {key: part}
        nested = merged(nested, part)
    return from_mapping(kind, merged(nested, options or {}), f"landmark.{kind.__name__.removesuffix('Config').lower()}")
