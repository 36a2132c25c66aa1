"""Features of the start weights: computed once per image, stored in parts, and read by every later run and trial."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from landmark.config import LoaderConfig, Recipe, Stopped, UserError, to_mapping
from landmark.data.dataset import PackedDataset
from landmark.data.dataset_view import COLUMNS, FilteredDataset
from landmark.data.loading.loader import Batch, Loader
from landmark.models import FeatureModel, ModelInfo, plain_state
from landmark.models.stages import classifier_path
from landmark.progress import Progress
from landmark.storage import Location, NotFound, TransientStorageError
from landmark.storage.tables import read_table, write_table
from landmark.training.compute.device_augmentation import Preprocess
from landmark.training.compute.device_prefetch import to_device
from landmark.training.compute.precision import Precision
from landmark.training.loop.session import Session

PART_ROWS = 512
"""Approximate images per part, the maximum loss if a process dies."""
MAX_PARTS = 256
CENTER = 0
"""Number of the view that is evaluation's center crop. View v of the others has the crops and flips of epoch v."""
FEATURE = "feature"
VERSION = 1
"""Version of the computation. Features of another version are not used."""


@dataclass(kw_only=True, frozen=True)
class Features:
    """Features of a split's images."""

    values: np.ndarray
    """float32 (n, d)."""
    samples: np.ndarray
    """Sample numbers, int64 (n,)."""


class FeatureStore:
    """Features of one model on one dataset. Each part is computed once, by one of the ranks, and stored if there is a folder.

    folder: where features are stored, by a key of weights, dataset and preprocessing. None: features are kept in memory,
    which requires a single rank. show: receives the progress.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        info: ModelInfo,
        precision: Precision,
        dataset: PackedDataset,
        session: Session,
        folder: Location | None,
        loader: LoaderConfig,
        show: Callable[[str], object] | None,
    ) -> None:
        assert folder is not None or session.world_size == 1, "several ranks need a folder"
        self.model = model.eval()
        self.recipe = recipe
        self.precision = precision
        self.dataset = dataset
        self.session = session
        self.loader = loader
        self.show = show
        self.preprocess = Preprocess(info.mean, info.std, session.device, channels_last=recipe.compute.channels_last)
        self.key = feature_key(model, recipe, dataset, precision, loader)
        self.folder = None if folder is None else folder / self.key
        self.computed = 0
        """Images whose features this process computed."""
        self.lost = 0
        """Images that this process could not decode."""

    def read(self, split: str, view: int = CENTER) -> Features:
        """Return the features of a split's images, and compute those that are not stored yet. Call it on every rank."""
        folder = None if self.folder is None else self.folder / self._name(split, view)
        wanted = self._wanted(split)
        stored = np.empty(0, np.int64) if folder is None else _stored_samples(folder)
        missing = wanted.copy()
        missing[stored] = False
        # Another process may store parts at the same time, so all ranks use the list that rank 0 found.
        missing = self._of_rank_0(missing)
        found = list(self._compute_missing(missing, split, view, folder)) if missing.any() else []
        self.session.all_reduce(torch.zeros(1, device=self.session.device))  # all parts are stored
        tables = found if folder is None else [_read_part(folder / name) for name in _names(folder)]
        self.session.heartbeat("starting")
        return _joined(tables, wanted, split, self.dataset)

    def _wanted(self, split: str) -> np.ndarray:
        selected = self.dataset.selected(split)
        if selected is not None:
            return selected
        return np.ones(self.dataset.manifest.splits[split].rows, dtype=bool)

    def _of_rank_0(self, mask: np.ndarray) -> np.ndarray:
        if self.session.world_size == 1:
            return mask
        own = torch.from_numpy(mask if self.session.rank == 0 else np.zeros_like(mask)).float()
        return self.session.all_reduce(own.to(self.session.device)).cpu().numpy() > 0

    def _compute_missing(
        self, missing: np.ndarray, split: str, view: int, folder: Location | None
    ) -> Iterator[pa.Table]:
        """Compute this rank's parts of the missing samples, bool (split rows,), and store or yield them."""
        rows = int(missing.sum())
        parts = min(MAX_PARTS, -(-rows // PART_ROWS))
        prefix = hashlib.sha256(missing.tobytes()).hexdigest()[:8]
        images = _view_of(self.dataset, split, missing)
        mine = [part for part in range(parts) if part % self.session.world_size == self.session.rank]
        # Trials that run at the same time start at different parts, so that they seldom compute the same one.
        first = os.getpid() % max(1, len(mine))
        name = split if view == CENTER else f"{split}, view {view + 1} of {self.recipe.probe.views}"
        sink = None if self.show is print else self.show
        total = len(mine) * rows // parts
        progress = Progress(f"features of {name}", total, enabled=self.show is not None, sink=sink)
        with FeatureModel(self.model, self.recipe.model.backbone) as features:
            for part in (*mine[first:], *mine[:first]):
                place = None if folder is None else folder / f"{prefix}-{part:05d}-of-{parts:05d}.parquet"
                if place is not None and place.exists():
                    continue
                self._end_if_terminated()
                table = self._compute(features, images, split, view, part, parts, progress)
                if place is None:
                    yield table
                else:
                    write_table(place, table)
        progress.clear()

    def _name(self, split: str, view: int) -> str:
        if view == CENTER:
            return split
        values = json.dumps([to_mapping(self.recipe.augment), self.recipe.seed], sort_keys=True)
        return f"{split}-view-{view:03d}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"

    def _compute(
        self,
        features: FeatureModel,
        images: PackedDataset,
        split: str,
        view: int,
        part: int,
        parts: int,
        progress: Progress,
    ) -> pa.Table:
        """Return one part's sample numbers and features."""
        config = dataclasses.replace(
            self.loader, batch_size=self.recipe.loader.batch_size * parts, stream="thread", decode="worker", decoders=1
        )
        options: dict[str, Any] = {}
        if view != CENTER:
            options = {"augment": self.recipe.augment, "epochs": range(view, view + 1)}
        samples: list[np.ndarray] = []
        values: list[torch.Tensor] = []
        with Loader(
            images, split, config, rank=part, world_size=parts, seed=self.recipe.seed, tell=self.show, **options
        ) as loader:
            for batch in to_device(self._alive(loader.epoch(max(view, 1))), self.session.device):
                with torch.inference_mode(), self.precision.autocast():
                    values.append(features(self.preprocess(batch.images, batch.flip)).cpu())
                samples.append(batch.host.samples)
                progress.update(len(batch.host.samples))
            self.lost += sum(loader.lost.values())
        numbers = np.concatenate(samples) if samples else np.empty(0, np.int64)
        flat = torch.cat(values).numpy() if values else np.empty((0, _width(features.layer)), np.float32)
        self.computed += len(numbers)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        return pa.table({"sample": numbers, FEATURE: column})

    def _end_if_terminated(self) -> None:
        """End the run after SIGTERM. Ray Train ends the processes of a run of several ranks by itself."""
        if self.session.world_size == 1 and self.session.checkpoint_requested():
            raise Stopped("terminated; the stored features are kept: run the same command again to continue")

    def _alive(self, batches: Any) -> Any:
        for batch in batches:
            assert isinstance(batch, Batch)
            self.session.heartbeat("starting")
            yield batch


def feature_key(
    model: nn.Module, recipe: Recipe, dataset: PackedDataset, precision: Precision, loader: LoaderConfig
) -> str:
    """Return a hexadecimal key of everything that a center crop's features depend on: weights, images, preprocessing.

    Labels, subsets and the classifier's own weights do not count.
    """
    head = f"{classifier_path(model)}."
    digest = hashlib.sha256()
    for name, tensor in plain_state(model).items():
        if not name.startswith(head):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    values = {
        "version": VERSION,
        "backbone": recipe.model.backbone,
        "pooling": recipe.model.pooling,
        "image_size": recipe.loader.image_size,
        "crop_pct": recipe.loader.crop_pct,
        "dtype": str(precision.dtype),
        "cache_format": loader.cache_format,
        "dataset": dataset.manifest.shards_digest(),
    }
    digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _view_of(dataset: PackedDataset, split: str, samples: np.ndarray) -> FilteredDataset:
    """Return a view of only these samples of a split, bool (split rows,)."""
    table = read_table(dataset.location / "catalog.parquet", columns=COLUMNS, filters=pc.field("split") == split)
    return FilteredDataset(dataset, table.filter(pa.array(samples[table["sample"].to_numpy()])))


def _joined(tables: list[pa.Table], wanted: np.ndarray, split: str, dataset: PackedDataset) -> Features:
    """Return the features of the wanted samples, bool (split rows,), sorted by sample. Two processes may have stored one."""
    table = pa.concat_tables(tables).combine_chunks() if tables else None
    samples = np.empty(0, np.int64) if table is None else table["sample"].to_numpy()
    samples, rows = np.unique(samples, return_index=True)
    kept = wanted[samples]
    if table is None or not kept.any():
        raise UserError(f"{dataset.location}: could not read any image of the {split} split; prepare the dataset again")
    values = table[FEATURE].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return Features(values=values[rows[kept]], samples=samples[kept])


def _width(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return int(weight.shape[-1])


def _names(folder: Location) -> list[str]:
    """Return the names of the stored parts."""
    try:
        return sorted(name for name in folder.names() if name.endswith(".parquet"))
    except NotFound:
        return []


def _read_part(place: Location, columns: list[str] | None = None) -> pa.Table:
    """Read a stored part. Raises UserError that names the file if it is corrupt."""
    try:
        return read_table(place, columns=columns)
    except TransientStorageError:
        raise
    except UserError as error:
        reason = str(error).removesuffix("; prepare the dataset again")
        raise UserError(f"{reason}; delete this file of features, and run the same command again") from None


def _stored_samples(folder: Location) -> np.ndarray:
    """Return the numbers of the samples whose features are stored, int64."""
    found = [_read_part(folder / name, columns=["sample"])["sample"].to_numpy() for name in _names(folder)]
    return np.concatenate(found) if found else np.empty(0, np.int64)
