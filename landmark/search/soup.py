"""Greedy soup: the mean of the weights of several trained models, chosen on the validation split (arXiv 2203.05482)."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import nn

from landmark.checkpoints.format import CheckpointMeta, check_classes, load_model, read_meta, resolve_checkpoint
from landmark.config import ModelConfig, Recipe, UserError, mask_credentials, parse_yaml, to_mapping
from landmark.data.dataset import PackedDataset
from landmark.inference.sources import SplitImages
from landmark.models import Ensemble, FlipAveraged
from landmark.storage import Location, NotFound, locate
from landmark.training.compute.device_augmentation import Preprocess
from landmark.training.compute.precision import inference_precision
from landmark.training.loop.validation import validate
from landmark.training.measuring import MeasuringSession

METRIC = "val_calibrated_loss"
"""Metric that is minimized. On a small split it separates models better than their accuracy."""
SAME = ("classes", "backbone", "image_size", "crop_pct", "mean", "std")
"""Properties of a checkpoint's metadata that all models share."""
SAME_MODEL = ("pooling", "neck", "head")
"""Options of the model that all models share."""

Metrics = dict[str, float]


@dataclass(kw_only=True, frozen=True)
class Candidate:
    """A trained model."""

    name: str
    """The run, or the study and its trial."""
    checkpoint: Location
    meta: CheckpointMeta
    model: ModelConfig

    def differs_from(self, other: "Candidate") -> str | None:
        """Return the name of a property in which the models differ, so that their weights cannot be averaged. None: none."""
        for owner, names in (("meta", SAME), ("model", SAME_MODEL)):
            for name in names:
                if getattr(getattr(self, owner), name) != getattr(getattr(other, owner), name):
                    return name
        return None


@dataclass(kw_only=True, frozen=True)
class Row:
    """Validation metrics of a model or a combination of models."""

    name: str
    kind: str
    """model, soup, ensemble or flip."""
    models: tuple[str, ...]
    """Names of the candidates."""
    metrics: Metrics


@dataclass(kw_only=True, frozen=True)
class Soup:
    """Result of a search for a soup."""

    rows: list[Row]
    """All that was measured, models first, best model first."""
    best: Candidate
    """The model with the lowest loss."""
    members: list[Candidate]
    """Models of the best soup. Only the best model if no soup is better."""
    weights: dict[str, torch.Tensor]
    """Mean of the members' weights."""
    metrics: Metrics
    """Validation metrics of the soup."""

    def row(self, kind: str) -> Row:
        """Return the best row of a kind."""
        return min((row for row in self.rows if row.kind == kind), key=lambda row: row.metrics[METRIC])


def candidates_of(runs: Sequence[str], limit: int) -> tuple[list[Candidate], int]:
    """Return the models of runs, studies and checkpoints, at most `limit`, and the number of trials that were left out.

    A study's trials are left out if they do not match the first model. Raises UserError for a run that does not match, and unless
    two or more models remain.
    """
    found: dict[Location, Candidate] = {}
    left_out = 0
    for run in runs:
        trials = _trials(locate(run))
        for name, place in trials or [(run, resolve_checkpoint(run))]:
            if trials and len(found) >= limit:
                break
            candidate = _candidate(name, place)
            first = next(iter(found.values()), candidate)
            different = candidate.differs_from(first)
            if different is None:
                found[place] = candidate
            elif trials:
                left_out += 1
            else:
                raise UserError(
                    f"{name}: has another {different} than {first.name}; combine models of the same {different}"
                )
    if len(found) < 2:
        reason = f" ({left_out} trials have another backbone or input)" if left_out else ""
        raise UserError(
            f"{' '.join(runs)}: contains one model{reason}; give a study with several trials of one model, or several runs"
        )
    if len(found) > limit:
        raise UserError(f"{len(found)} models are given, but max_models is {limit}; raise --max-models, or give fewer")
    return list(found.values()), left_out


def _candidate(name: str, place: Location) -> Candidate:
    meta = read_meta(place)
    recipe = parse_yaml(Recipe, (place / "config.yaml").read_text(), f"{place}/config.yaml")
    return Candidate(name=name, checkpoint=place, meta=meta, model=recipe.model)


def _trials(study: Location) -> list[tuple[str, Location]]:
    """Return the names and checkpoints of a study's trials, best first. Empty for anything else."""
    try:
        rows = csv.DictReader(io.StringIO((study / "leaderboard.csv").read_text()))
    except NotFound:
        return []
    return [(row["trial"], study / row["checkpoint"]) for row in rows if row["checkpoint"]]


class _Measurement:
    """Measures models on the validation split."""

    def __init__(self, dataset: PackedDataset, meta: CheckpointMeta, batch_size: int) -> None:
        self.session: Any = MeasuringSession()
        self.classes = dataset.num_classes
        self.reader = SplitImages.of(dataset, "val").open(meta.image_size, batch_size, meta.crop_pct)
        self.preprocess = Preprocess(meta.mean, meta.std, self.session.device)
        self.image_size = meta.image_size

    def __call__(self, model: nn.Module) -> Metrics:
        model = model.to(self.session.device).to(memory_format=torch.channels_last)
        precision = inference_precision(self.session.device, model, self.image_size)
        return validate(model, self.reader.batches(0, 1), self.preprocess, self.session, self.classes, precision)


def greedy_soup(candidates: Sequence[Candidate], dataset: PackedDataset, batch_size: int) -> Soup:
    """Return the greedy soup of models, and the metrics of all that was compared.

    The models are added from the lowest to the highest loss. A model stays if the mean of the weights then has a lower loss.
    """
    for candidate in candidates:
        check_classes(candidate.checkpoint, candidate.meta, dataset)
    measure = _Measurement(dataset, candidates[0].meta, batch_size)
    rows = []
    for candidate in candidates:
        metrics = measure(load_model(candidate.checkpoint)[0])
        rows.append(Row(name=candidate.name, kind="model", models=(candidate.name,), metrics=metrics))
    order = sorted(range(len(rows)), key=lambda place: rows[place].metrics[METRIC])
    rows, ranked = [rows[place] for place in order], [candidates[place] for place in order]
    members, weights, metrics = _add_greedily(ranked, rows, measure)
    ensemble = Ensemble([load_model(candidate.checkpoint)[0] for candidate in ranked])
    names = tuple(candidate.name for candidate in ranked)
    rows.append(Row(name=f"ensemble of {len(names)}", kind="ensemble", models=names, metrics=measure(ensemble)))
    best = ranked[0]
    flipped = measure(FlipAveraged(load_model(best.checkpoint)[0]))
    rows.append(Row(name=f"{best.name}, --tta flip", kind="flip", models=(best.name,), metrics=flipped))
    return Soup(rows=rows, best=best, members=members, weights=weights, metrics=metrics)


def _add_greedily(
    ranked: Sequence[Candidate], rows: list[Row], measure: _Measurement
) -> tuple[list[Candidate], dict[str, torch.Tensor], Metrics]:
    """Return the models of the best soup, their mean weights and its metrics. Adds a row for each soup."""
    model, _ = load_model(ranked[0].checkpoint, calibrated=False)
    members, metrics = [ranked[0]], rows[0].metrics
    weights = _weights(ranked[0])
    for candidate in ranked[1:]:
        mean = mean_weights(weights, _weights(candidate), len(members))
        model.load_state_dict(mean)
        tried = measure(model)
        names = tuple(each.name for each in (*members, candidate))
        rows.append(Row(name=f"soup of {len(names)}: + {candidate.name}", kind="soup", models=names, metrics=tried))
        if tried[METRIC] < metrics[METRIC]:
            members, weights, metrics = [*members, candidate], mean, tried
    return members, weights, metrics


def _weights(candidate: Candidate) -> dict[str, torch.Tensor]:
    return safetensors.torch.load((candidate.checkpoint / "model.safetensors").read_bytes())


def mean_weights(
    mean: Mapping[str, torch.Tensor], added: Mapping[str, torch.Tensor], count: int
) -> dict[str, torch.Tensor]:
    """Return the mean of `count` models' tensors, given as their mean, and one more model's. Counters stay as they are.

    Raises UserError if names or shapes differ.
    """
    shapes = [{name: tensor.shape for name, tensor in weights.items()} for weights in (mean, added)]
    if shapes[0] != shapes[1]:
        different = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0][0]
        raise UserError(f"the models have different layers ({different}); combine models of the same architecture")
    return {
        name: torch.lerp(tensor, added[name], 1 / (count + 1)) if tensor.is_floating_point() else tensor
        for name, tensor in mean.items()
    }


def write_soup(soup: Soup, folder: Location) -> None:
    """Write the soup as a model: weights, metadata, recipe of its best member, and soup.json with all that was compared."""
    best = soup.members[0]
    meta = dataclasses.replace(best.meta, metrics=soup.metrics, temperature=soup.metrics["temperature"])
    record = {
        "models": {candidate.name: candidate.checkpoint.uri for candidate in soup.members},
        "metric": METRIC,
        "rows": [dataclasses.asdict(row) for row in soup.rows],
    }
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(soup.weights))
    (folder / "config.yaml").write_bytes((best.checkpoint / "config.yaml").read_bytes())
    (folder / "soup.json").write_text(mask_credentials(json.dumps(record, indent=1)) + "\n")
    (folder / "meta.json").write_text(mask_credentials(json.dumps(to_mapping(meta), indent=1)) + "\n")
