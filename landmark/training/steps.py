"""One pass over a split: training steps, and the validation that counts every row once."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from landmark.config import OptimizerConfig, UserError
from landmark.data.loader import Batch
from landmark.models import classification_loss, logits_of, train_mode
from landmark.progress import Progress
from landmark.training.optim import Schedule
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
    """Sums over a rank's part of a training epoch."""

    loss: float
    """Loss, summed over images."""
    hits: float
    """Images whose best guess was right."""
    rows: int
    """Images."""
    wait_s: float
    """Seconds spent waiting for data."""
    lr: float
    """Learning rate of the last step."""


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    preprocess: Preprocess,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    config: OptimizerConfig,
    *,
    first_step: int,
    progress: Progress,
    world_size: int,
) -> TrainTotals:
    """Run one epoch's steps on this rank.

    A rank's mean loss is weighted with its share of the step's images, so that the gradient averaged
    over ranks is the gradient of the mean over all of the step's images.
    """
    train_mode(model)
    sums = torch.zeros(3, dtype=torch.float64, device=preprocess.device)
    wait, lr, step = [0.0], 0.0, first_step
    for batch in timed(batches, wait):
        inputs = preprocess(batch.images, batch.flip)
        labels = torch.from_numpy(batch.labels).to(preprocess.device)
        lr = schedule.set_lr(step)
        output = model(inputs)
        loss = classification_loss(output, labels, config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        (loss * batch.share).backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        with torch.no_grad():
            rows = len(batch.labels)
            hits = (logits_of(output).argmax(1) == labels).sum()
            sums += torch.stack([loss.detach().double() * rows, hits.double(), hits.new_tensor(rows).double()])
        step += 1
        progress.update(len(batch.labels) * world_size)
    if step == first_step:
        raise UserError("the training stream gave no batch; check the dataset's train split")
    total_loss, hits_sum, rows_sum = sums.tolist()
    return TrainTotals(loss=total_loss, hits=hits_sum, rows=int(rows_sum), wait_s=wait[0], lr=lr)


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
