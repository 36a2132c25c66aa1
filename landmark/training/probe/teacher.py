"""Teachers of a distillation: trained models whose features of the training images are computed once."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from landmark.checkpoints.format import check_classes, load_model, read_meta, resolve_checkpoint
from landmark.config import LoaderConfig, Recipe, UserError, parse_yaml
from landmark.data.dataset import PackedDataset
from landmark.models import model_info
from landmark.models.stages import classifier_path
from landmark.storage import locate
from landmark.training.compute.device_prefetch import DeviceBatch, upload
from landmark.training.compute.precision import Precision
from landmark.training.loop.state import RunState
from landmark.training.probe.features import FeatureStore

MAX_BYTES = 16 << 30
"""Maximum size of all teachers' features in a process, bytes."""


@dataclass(kw_only=True, frozen=True)
class _Member:
    """One teacher."""

    classifier: nn.Module
    """Its last layer, with calibrated logits, on the device."""
    features: np.ndarray
    """float32 (n, d)."""
    row_of: np.ndarray
    """Row of each sample of the training split, int64 (split rows,), -1 for samples without features."""


class Teacher:
    """The mean probabilities of trained models for training images."""

    def __init__(self, members: list[_Member], temperature: float) -> None:
        self.members = members
        self.temperature = temperature

    def probabilities(self, batch: DeviceBatch) -> torch.Tensor:
        """Return the probabilities (n, classes) of a batch's images. An image without features has its label's."""
        found = [self._of(member, batch) for member in self.members]
        return torch.stack(found).mean(0)

    @torch.no_grad()
    def _of(self, member: _Member, batch: DeviceBatch) -> torch.Tensor:
        rows = member.row_of[batch.host.samples]
        features = upload(member.features[rows], batch.labels.device).float()
        found = (member.classifier(features).float() / self.temperature).softmax(1)
        if (rows < 0).any():
            missing = upload(rows < 0, batch.labels.device)
            found[missing] = nn.functional.one_hot(batch.labels[missing], found.shape[1]).to(found.dtype)
        return found


def check_teachers(recipe: Recipe, dataset: PackedDataset) -> None:
    """Raise UserError unless a recipe's teachers exist and have the classes of the dataset."""
    for place in recipe.distill.teachers:
        checkpoint = resolve_checkpoint(place)
        check_classes(checkpoint, read_meta(checkpoint), dataset)


def load_teacher(run: RunState, loader: LoaderConfig, show: Callable[[str], object] | None) -> Teacher:
    """Return the teachers of a run, with the features of its training images. Call it on every rank.

    Features that are stored, such as those of the teacher's own probe, are read. Raises UserError for other classes.
    """
    config = run.recipe.distill
    members: list[_Member] = []
    for place in config.teachers:
        members.append(_member(place, run, loader, show, sum(member.features.nbytes for member in members)))
    return Teacher(members, config.temperature)


def _member(
    place: str, run: RunState, loader: LoaderConfig, show: Callable[[str], object] | None, used: int
) -> _Member:
    """Return one teacher. used: bytes of the features of those before."""
    checkpoint = resolve_checkpoint(place)
    model, meta = load_model(checkpoint)
    check_classes(checkpoint, meta, run.dataset)
    theirs = parse_yaml(Recipe, (checkpoint / "config.yaml").read_text(), f"{checkpoint}/config.yaml")
    classifier = model.get_submodule(classifier_path(model)).requires_grad_(False)
    width = next((weight.shape[-1] for weight in classifier.parameters() if weight.ndim > 1), 0)
    size = used + 4 * width * run.dataset.split("train").rows
    if size > MAX_BYTES:
        raise UserError(
            f"distill.teachers: the features of the training images need {size / 2**30:.0f} GiB per process (limit "
            f"{MAX_BYTES / 2**30:.0f}); use fewer teachers, or a subset"
        )
    model = model.to(run.session.device)
    # The teacher's own batch may have been that of many GPUs.
    batch_size = min(theirs.loader.batch_size, max(1, run.recipe.loader.batch_size // run.session.world_size))
    theirs = dataclasses.replace(theirs, loader=dataclasses.replace(theirs.loader, batch_size=batch_size))
    if theirs.compute.channels_last:
        model = model.to(memory_format=torch.channels_last)
    precision = Precision(theirs.compute, run.session.device, model, meta.image_size)
    folder = None if run.recipe.distill.features is None else locate(run.recipe.distill.features)
    loader = dataclasses.replace(loader, image_size=meta.image_size, crop_pct=meta.crop_pct)
    info = model_info(meta.backbone)
    store = FeatureStore(model, theirs, info, precision, run.dataset, run.session, folder, loader, show)
    found = store.read("train")
    row_of = np.full(run.dataset.manifest.splits["train"].rows, -1, np.int64)
    row_of[found.samples] = np.arange(len(found.samples))
    if show is not None:
        show(f"teacher {place}: {len(found.samples):,} images ({store.computed:,} computed here)")
    return _Member(classifier=classifier, features=found.values, row_of=row_of)
