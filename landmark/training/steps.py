"""One training step, and the pass over a split that counts every row once."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from landmark.config import Recipe, UserError
from landmark.data.loader import Batch
from landmark.models import ModelInfo, classification_loss, logits_of, train_mode
from landmark.training.optim import Schedule, build_optimizer
from landmark.training.session import Session


class Preprocess:
    """Turns uint8 pixels into the model's input on the device: mirror, scale, normalise.

    (n, size, size, 3) uint8 becomes (n, 3, size, size) float32, channels last in memory.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self.device = device
        scale = 255.0 * torch.tensor(std, device=device)
        self.scale = (1 / scale).view(1, 3, 1, 1)
        self.shift = (-255.0 * torch.tensor(mean, device=device) / scale).view(1, 3, 1, 1)

    def __call__(self, images: np.ndarray, flip: np.ndarray) -> torch.Tensor:
        pixels = self._to_device(torch.from_numpy(images)).permute(0, 3, 1, 2)
        inputs = torch.addcmul(self.shift, pixels.float(), self.scale)
        if flip.any():
            mirrored = self._to_device(torch.from_numpy(flip)).view(-1, 1, 1, 1)
            inputs = torch.where(mirrored, inputs.flip(3), inputs)
        return inputs.contiguous(memory_format=torch.channels_last)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor


@dataclass(kw_only=True)
class TrainTotals:
    """Sums over a rank's steps."""

    loss: float
    """Loss, summed over images."""
    hits: float
    """Images whose best guess was right."""
    rows: int
    """Images."""


class TrainStep:
    """All that a training step changes on one rank: weights, optimizer, averages; and the step itself."""

    def __init__(self, model: nn.Module, recipe: Recipe, info: ModelInfo, session: Session) -> None:
        self.model = model
        self.recipe = recipe
        self.session = session
        self.preprocess = Preprocess(info.mean, info.std, session.device)
        self.optimizer = build_optimizer(model, recipe.optimizer, recipe.loader.batch_size)
        self._sums = torch.zeros(3, dtype=torch.float64, device=session.device)
        self._ready: nn.Module | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and kept: the averaged one where there is an average."""
        return self.model

    def run(self, batch: Batch, schedule: Schedule, step: float, batch_size: int) -> float:
        """Take one step; `step` and `batch_size` as Schedule.set_lr has them; returns its learning rate.

        A rank's mean loss is weighted with its share of the step's images, so that the gradient averaged
        over ranks is the gradient of the mean over all of the step's images.
        """
        if self._ready is None:
            self._ready = self.session.prepare(self.model)
        train_mode(self._ready)
        config = self.recipe.optimizer
        inputs = self.preprocess(batch.images, batch.flip)
        labels = torch.from_numpy(batch.labels).to(self.preprocess.device)
        lr = schedule.set_lr(step, batch_size)
        output = self._ready(inputs)
        loss = classification_loss(output, labels, self.recipe.loss.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * batch.share).backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._ready.parameters(), config.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            rows = len(batch.labels)
            hits = (logits_of(output).argmax(1) == labels).sum()
            self._sums += torch.stack([loss.detach().double() * rows, hits.double(), hits.new_tensor(rows).double()])
        return lr

    def take_totals(self) -> TrainTotals:
        """Return the sums since the last call, and begin anew; waits for the device."""
        loss, hits, rows = self._sums.tolist()
        self._sums.zero_()
        return TrainTotals(loss=loss, hits=hits, rows=int(rows))

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the weights of `evaluated`: tensors and plain values."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state; the weights of `model` are loaded already."""
        self.optimizer.load_state_dict(state["optimizer"])


def predict(
    model: nn.Module, batches: Iterable[Batch], preprocess: Preprocess
) -> Iterator[tuple[Batch, torch.Tensor, torch.Tensor]]:
    """Yield each batch with its logits (n, classes) and labels (n,) on the device, without gradients."""
    model.eval()
    for batch in batches:
        with torch.inference_mode():
            logits = logits_of(model(preprocess(batch.images, batch.flip)))
            yield batch, logits, torch.from_numpy(batch.labels).to(preprocess.device)


def validate(
    model: nn.Module, batches: Iterable[Batch], preprocess: Preprocess, session: Session, num_classes: int
) -> dict[str, float]:
    """Return val_loss, val_top1, val_top5 and val_macro_recall over all ranks, each row counted once.

    Macro recall is the mean over the classes that occur in the split.
    """
    totals = torch.zeros(4, dtype=torch.float64, device=preprocess.device)
    classes = torch.zeros(2, num_classes, dtype=torch.float64, device=preprocess.device)
    for _, logits, labels in predict(model, batches, preprocess):
        loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        counts = [loss, right[:, 0].sum(), right.any(1).sum(), torch.tensor(len(labels), device=loss.device)]
        totals += torch.stack([count.double() for count in counts])
        classes[0] += torch.bincount(labels, minlength=num_classes)
        classes[1] += torch.bincount(labels[right[:, 0]], minlength=num_classes)
    loss_sum, top1, top5, rows = session.all_reduce(totals).tolist()
    support, hits = session.all_reduce(classes)
    if not rows:
        raise UserError("no image of the val split could be read; prepare the dataset again")
    present = support > 0
    return {
        "val_loss": loss_sum / rows,
        "val_top1": top1 / rows,
        "val_top5": top5 / rows,
        "val_macro_recall": float((hits[present] / support[present]).mean()),
    }


def timed(batches: Iterable[Batch], wait: list[float]) -> Iterator[Batch]:
    """Yield the batches, adding the seconds spent waiting for them to wait[0]."""
    source = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(source, None)
        wait[0] += time.perf_counter() - start
        if batch is None:
            return
        yield batch
