"""Prediction and validation over a split with each row counted once, and the time spent waiting for batches."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

from landmark.config import UserError
from landmark.data.loading.loader import Batch
from landmark.models import embedding_classifier, fit_temperature, logits_of
from landmark.models.chunked_cross_entropy import ranking
from landmark.training.compute.device_augmentation import Preprocess
from landmark.training.compute.device_prefetch import to_device
from landmark.training.compute.precision import Precision
from landmark.training.loop.session import Session

T = TypeVar("T")
CALIBRATION_LOGITS = 1 << 22
"""Maximum number of logits per rank from which the temperature is fitted."""
CALIBRATION_IMAGES = 500
"""Images per rank that these logits must have room for. With more classes, the temperature would be too uncertain."""


def predict(
    model: nn.Module, batches: Iterable[Batch], preprocess: Preprocess, precision: Precision | None = None
) -> Iterator[tuple[Batch, torch.Tensor, torch.Tensor]]:
    """Yield each batch with its logits (n, classes) and labels (n,) on the device, without gradients.

    Yields embeddings (n, d) instead of logits if the model returns them. precision: data type of the model; None: fp32.
    """
    model.eval()
    for batch in to_device(batches, preprocess.device):
        with torch.inference_mode():
            inputs = preprocess(batch.images, batch.flip)
            with precision.autocast() if precision is not None else contextlib.nullcontext():
                output = model(inputs)
            yield batch.host, logits_of(output), batch.labels


def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    preprocess: Preprocess,
    session: Session,
    num_classes: int,
    precision: Precision | None = None,
) -> dict[str, float]:
    """Return val_loss, val_top1, val_top5, val_macro_recall and the calibration over all ranks, each row counted once.

    Macro recall is the mean over the classes that occur in the split. The temperature is that of the first
    CALIBRATION_LOGITS logits of each rank, see `fit_temperature`, and val_calibrated_loss their cross entropy with it. With too
    many classes or class sampling, the temperature is 1, and val_calibrated_loss is val_loss.
    precision: as in training; None: fp32.
    """
    totals = torch.zeros(4, dtype=torch.float64, device=preprocess.device)
    classes = torch.zeros(2, num_classes, dtype=torch.float64, device=preprocess.device)
    classifier = embedding_classifier(model)
    kept, room = [], CALIBRATION_LOGITS // num_classes
    if room < CALIBRATION_IMAGES or (classifier is not None and classifier.gives_embeddings):
        room = 0  # the temperature is 1
    for _, output, labels in predict(model, batches, preprocess, precision):
        if room > 0:
            kept.append((output[:room], labels[:room]))
            room -= len(output)
        if classifier is not None and classifier.gives_embeddings:
            with torch.inference_mode():
                best = ranking(classifier, output, labels, min(5, num_classes))
            loss, top_k_labels = (best.log_sum - best.own).sum(), best.classes
        else:
            loss = nn.functional.cross_entropy(output.float(), labels, reduction="sum")
            top_k_labels = output.topk(min(5, output.shape[1]), dim=1).indices
        correct = top_k_labels == labels[:, None]
        best_correct = correct[:, 0].double()
        counts = [loss.double(), best_correct.sum(), correct.any(1).sum().double(), totals.new_full((), len(labels))]
        totals += torch.stack(counts)
        # Not bincount or a mask: on a GPU, the host would wait for the size of their results.
        classes[0].index_add_(0, labels, torch.ones_like(best_correct))
        classes[1].index_add_(0, labels, best_correct)
    loss_sum, top1, top5, rows = session.all_reduce(totals).tolist()
    support, hits = session.all_reduce(classes)
    if not rows:
        raise UserError("could not read any image of the val split; prepare the dataset again")
    present = support > 0
    temperature, calibrated_loss = _calibration(kept, session)
    return {
        "val_loss": loss_sum / rows,
        "val_top1": top1 / rows,
        "val_top5": top5 / rows,
        "val_macro_recall": float((hits[present] / support[present]).mean()),
        "val_calibrated_loss": loss_sum / rows if calibrated_loss is None else calibrated_loss,
        "temperature": temperature,
    }


def _calibration(kept: list[tuple[torch.Tensor, torch.Tensor]], session: Session) -> tuple[float, float | None]:
    """Return the temperature of batches of logits and labels, and their mean cross entropy with it.

    Returns 1 and None if there are none on any rank.
    """
    with torch.inference_mode():
        logits = torch.cat([logits for logits, _ in kept]) if kept else torch.empty(0, 1, device=session.device)
        labels = torch.cat([labels for _, labels in kept]) if kept else logits.new_zeros(0, dtype=torch.int64)
        temperature = fit_temperature(logits, labels, session.all_reduce)
        losses = nn.functional.cross_entropy(logits.float() / temperature, labels, reduction="sum").double()
        loss, images = session.all_reduce(torch.stack([losses, losses.new_full((), len(labels))])).tolist()
        return temperature, loss / images if images else None


def timed(batches: Iterable[T], wait: list[float]) -> Iterator[T]:
    """Yield the batches and add the seconds spent waiting for them to wait[0]."""
    source = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(source, None)
        wait[0] += time.perf_counter() - start
        if batch is None:
            return
        yield batch
