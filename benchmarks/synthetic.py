"""Drawing speed and difficulty of synthetic landmarks: a linear model on pixels compared with a small CNN.

Run: python benchmarks/synthetic.py [--epochs 10]. The last line is JSON, saved to benchmarks/results/synthetic.json.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import cv2
import numpy as np
import simplejpeg
import torch

from landmark.commands.prepare import prepare
from landmark.config import (
    LoaderConfig,
    LossConfig,
    ModelConfig,
    PackingConfig,
    PrepareConfig,
    SyntheticConfig,
    TrainConfig,
)
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Loader
from landmark.data.synthetic import plan_images, render_image
from landmark.evaluation import majority_top_k
from landmark.inference.evaluation import evaluate_checkpoint
from landmark.storage import locate
from landmark.training.run import run_training

DRAWN = 1200
LINEAR_SIDE = 32
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)


def drawing_throughput(size: int) -> dict[str, float]:
    """Return images/s of one core: drawing complete images, and, as an upper bound, only resizing and encoding."""
    config = SyntheticConfig(classes=100, images=DRAWN, image_size=size)
    rows = plan_images(config, 0).to_pylist()
    for row in rows[:50]:
        render_image(row, config, 0)
    start = time.perf_counter()
    for row in rows:
        data = render_image(row, config, 0)
    images_per_s = DRAWN / (time.perf_counter() - start)
    canvas = cv2.resize(simplejpeg.decode_jpeg(data), (2 * size, 2 * size))
    start = time.perf_counter()
    for _ in rows:
        pixels = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
        simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB", colorsubsampling="420")
    return {
        "images_per_s_core": images_per_s,
        "over_encoding_alone": images_per_s * (time.perf_counter() - start) / DRAWN,
    }


def pixels_of(dataset: PackedDataset, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a split's center crops as standardized pixels (n, 3 * side^2) and its labels (n,)."""
    with Loader(dataset, split, LoaderConfig(image_size=LINEAR_SIDE, batch_size=256)) as loader:
        batches = list(loader.epoch(1))
    images = np.concatenate([batch.images for batch in batches]).reshape(-1, 3 * LINEAR_SIDE**2)
    labels = np.concatenate([batch.labels for batch in batches])
    return torch.from_numpy(images).float() / 127.5 - 1, torch.from_numpy(labels)


def linear_top1(dataset: PackedDataset) -> float:
    """Return test top-1 of multinomial logistic regression on pixels.

    Its weight decay is selected on the validation split.
    """
    (x, y), (val_x, val_y), (test_x, test_y) = (pixels_of(dataset, split) for split in ("train", "val", "test"))
    found = []
    for decay in DECAYS:
        layer = torch.nn.Linear(x.shape[1], dataset.num_classes)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def closure(layer=layer, optimizer=optimizer, decay=decay) -> torch.Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(layer(x), y) + decay * layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            accuracies = [
                (layer(a).argmax(1) == b).double().mean().item() for a, b in ((val_x, val_y), (test_x, test_y))
            ]
        found.append(tuple(accuracies))
    return max(found)[1]


def main() -> None:
    """Print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    cv2.setNumThreads(1)
    figures = drawing_throughput(128)
    with tempfile.TemporaryDirectory() as folder:
        prepare(PrepareConfig(output=f"{folder}/dataset", source="synthetic", packing=PackingConfig(short_side=96)))
        dataset = PackedDataset.open(f"{folder}/dataset")
        figures["linear_top1"] = linear_top1(dataset)
        run = run_training(
            TrainConfig(
                dataset=f"{folder}/dataset",
                output=folder,
                epochs=epochs,
                model=ModelConfig(backbone="resnet18"),
                loss=LossConfig(label_smoothing=0.05),
                loader=LoaderConfig(image_size=64, batch_size=32),
                tensorboard=False,
            )
        )
        test = evaluate_checkpoint(locate(run.run) / run.best_checkpoint, dataset, "test")
        figures["cnn_top1"] = test.accumulator.top_k(1)
        figures["majority_top1"] = majority_top_k(test.train_counts, test.accumulator.support, 1)
    print(f"drawing: {figures['images_per_s_core']:.0f} images/s per core at 128 px")
    print(
        f"test top-1: linear {figures['linear_top1']:.1%}, CNN {figures['cnn_top1']:.1%}, majority {figures['majority_top1']:.1%}"
    )
    line = json.dumps({key: round(value, 4) for key, value in figures.items()})
    Path(__file__).with_name("results").joinpath("synthetic.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
