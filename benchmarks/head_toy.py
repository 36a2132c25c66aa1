"""Accuracy with a tenth of the classes per step: 20,000 synthetic classes, trained with all and with sampled classes.

Run: python benchmarks/head_toy.py [--quick]. A class is a random direction in 24 dimensions. An image of it is that
direction plus noise, passed through a fixed random map to 192 bytes, an image of 8 px. The model is one linear layer to
an embedding of 64 and ArcFace. All variants execute the same steps of `TrainStep` from the same weights, with the same
images in the same order. They differ only in `--model.head.sample`. Accuracy is top-1 over all 20,000 classes, by the
exact softmax in chunks, on images not used for training. The upper bound is nearest_true: the class whose true
direction is nearest to the image's direction before the map. The last line is JSON, saved to
benchmarks/results/head_toy.json: gap10 is the full loss's top-1 minus that of sample 0.1, in points.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(CUDA_VISIBLE_DEVICES="")

import numpy as np
import torch

from landmark.config import (
    ComputeConfig,
    HeadConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
)
from landmark.data.loading.loader import Batch
from landmark.models import ModelInfo
from landmark.models.heads import Classifier
from landmark.training.compute.optim import Schedule
from landmark.training.loop.step import TrainStep
from landmark.training.loop.validation import validate

CLASSES, IMAGES_PER_CLASS, TEST_IMAGES = 20_000, 3, 20_000
LATENT, SIZE, WIDTH, BATCH, NOISE = 24, 8, 64, 512, 0.5
SAMPLES = {"sampled10": 0.1, "full": None, "sampled1": 0.01}
INFO = ModelInfo(name="toy", source="reference", image_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)


class SingleProcess:
    """The session of a single process."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model."""
        return model

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values."""
        return values


def class_directions(classes: int) -> np.ndarray:
    """Return each class's direction, (classes, LATENT) of length 1."""
    found = np.random.default_rng(1).normal(size=(classes, LATENT))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def synthetic_images(labels: np.ndarray, true: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of classes, uint8 (n, 8, 8, 3), and their noisy directions, (n, LATENT)."""
    noise = np.random.default_rng(seed).normal(size=(len(labels), LATENT)) * NOISE / LATENT**0.5
    noisy = true[labels] + noise
    mapped = noisy @ np.random.default_rng(2).normal(size=(LATENT, 3 * SIZE**2))
    return np.clip(128 + 40 * mapped, 0, 255).astype(np.uint8).reshape(-1, SIZE, SIZE, 3), noisy


def batches(images: np.ndarray, labels: np.ndarray, order: np.ndarray, epoch: int) -> Iterator[Batch]:
    """Yield the images in batches."""
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        flip = np.zeros(len(part), dtype=bool)
        yield Batch(
            images=images[part], labels=labels[part], samples=part, visits=part, flip=flip, weight=1.0, epoch=epoch
        )


def nearest_true(noisy: np.ndarray, labels: np.ndarray, true: np.ndarray) -> float:
    """Return the fraction of images whose nearest direction is that of their class."""
    parts = np.array_split(np.arange(len(labels)), 20)
    return float(np.mean(np.concatenate([(noisy[part] @ true.T).argmax(1) == labels[part] for part in parts])))


def train_and_validate(
    sample: float | None, classes: int, epochs: int, data: tuple[np.ndarray, ...]
) -> tuple[float, float]:
    """Return top-1, percent, and the seconds of training."""
    images, labels, test_images, test_labels = data
    head = HeadConfig(name="arcface", scale=24.0, margin=0.2, sample=sample)
    recipe = Recipe(
        epochs=epochs,
        model=ModelConfig(head=head),
        optimizer=OptimizerConfig(name="adam", lr=0.05),
        schedule=ScheduleConfig(name="one_cycle", peak_at=0.2),
        compute=ComputeConfig(amp="off"),
        loader=LoaderConfig(image_size=16, batch_size=BATCH),
    )
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(3 * SIZE**2, WIDTH), Classifier(head, WIDTH, classes)]
    step = TrainStep(torch.nn.Sequential(*layers), recipe, INFO, SingleProcess())
    steps_per_epoch = -(-len(labels) // BATCH)
    schedule = Schedule(
        step.optimizer,
        recipe.schedule,
        optimizer_config=recipe.optimizer,
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        mode="max",
    )
    start = time.perf_counter()
    for epoch in range(epochs):
        order = np.random.default_rng([3, epoch]).permutation(len(labels))
        for number, batch in enumerate(batches(images, labels, order, epoch + 1)):
            step.run(batch, schedule, epoch * steps_per_epoch + number, BATCH)
        totals = step.take_totals()
        print(f"  epoch {epoch + 1}: loss {totals.loss / totals.rows:.3f}", flush=True)
    seconds = time.perf_counter() - start
    test = batches(test_images, test_labels, np.arange(len(test_labels)), 1)
    return 100 * validate(step.evaluated, test, step.preprocess, SingleProcess(), classes)["val_top1"], seconds


def main() -> None:
    """Print the accuracies and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="use a tenth of the classes and three epochs")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "head_toy.json")
    arguments = parser.parse_args()
    classes, epochs = (CLASSES // 10, 3) if arguments.quick else (CLASSES, 10)
    true = class_directions(classes)
    labels, test_labels = np.repeat(np.arange(classes), IMAGES_PER_CLASS), np.arange(TEST_IMAGES) % classes
    images, _ = synthetic_images(labels, true, 4)
    test_images, noisy = synthetic_images(test_labels, true, 5)
    figures: dict[str, float] = {"classes": classes, "nearest_true_top1": 100 * nearest_true(noisy, test_labels, true)}
    print(f"{classes:,} classes, {len(labels):,} training images, {epochs} epochs")
    print(f"{'nearest':10} top-1 {figures['nearest_true_top1']:6.2f}%", flush=True)
    for name, sample in SAMPLES.items():
        top1, seconds = train_and_validate(sample, classes, epochs, (images, labels, test_images, test_labels))
        figures |= {f"{name}_top1": top1, f"{name}_s": seconds}
        print(f"{name:10} top-1 {top1:6.2f}%, {seconds:7.1f} s", flush=True)
    for name in ("10", "1"):
        figures[f"gap{name}"] = figures["full_top1"] - figures[f"sampled{name}_top1"]
    line = json.dumps({key: round(value, 3) for key, value in figures.items()})
    arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
