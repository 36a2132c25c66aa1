"""Evaluation cost: all metrics at the size of GLDv2's test set, and inference compared with the bare model.

Run: python benchmarks/evaluate.py [--quick]. Two parts:
- metrics: synthetic top-10 predictions for 117,577 images of 203,094 classes are stored. A fifth of the images have no
landmark. A separate process reads them, computes every metric with 1,000 bootstrap replicates, and writes all tables.
metrics_s is the time from reading to the last file. metrics_peak_mib is the process's peak resident memory.
- inference: ResNet-18 at 128 px over a packed dataset of synthetic images, with the code of `landmark evaluate` (read,
decode, crop, infer, store predictions), alternating with the same model on tensors in memory. inference_over_bare is
the median of the ratios of images/s.
The last line is JSON, saved to benchmarks/results/evaluate.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")

import numpy as np

from landmark.evaluation.predictions import Predictions

if TYPE_CHECKING:
    from landmark.config import LoaderConfig

ROWS, CLASSES, TOP_K, NO_LANDMARK_FRACTION = 117_577, 203_094, 10, 0.2
SIZE, BATCH, IMAGES, SPEED_CLASSES = 128, 64, 3000, 20


def make_predictions(rows: int) -> Predictions:
    """Return predictions of a model that classifies about half of the images correctly. Classes have a long tail."""
    random = np.random.default_rng(0)
    labels = np.minimum((random.pareto(0.9, rows) * 20).astype(np.int64), CLASSES - 1)
    top_k_labels = random.integers(0, CLASSES, (rows, TOP_K))
    correct = random.random(rows) < 0.5
    top_k_labels[correct, np.minimum(random.geometric(0.6, int(correct.sum())) - 1, TOP_K - 1)] = labels[correct]
    scores = -np.sort(-random.dirichlet(np.ones(TOP_K + 1), rows)[:, :TOP_K], axis=1)
    labels[random.random(rows) < NO_LANDMARK_FRACTION] = -1
    ids = random.integers(0, 1 << 62, rows)
    return Predictions(
        samples=np.arange(rows),
        image_ids=np.array([f"{number:016x}" for number in ids.tolist()]),
        labels=labels.astype(np.int32),
        top_k_labels=top_k_labels.astype(np.int32),
        scores=scores.astype(np.float32),
        losses=np.where(labels < 0, np.nan, random.exponential(size=rows)).astype(np.float32),
    )


def measure_metrics(folder: str) -> None:
    """Read the stored predictions, compute and write everything, and print seconds and peak memory."""
    from landmark.evaluation.io import write_evaluation_files
    from landmark.evaluation.summary import accumulate, metrics_of
    from landmark.storage import locate
    from landmark.storage.tables import read_table

    train_counts = np.maximum(10_000 // (np.arange(CLASSES) + 1), 1)
    names = [f"landmark {label}" for label in range(CLASSES)]
    start = time.perf_counter()
    predictions = Predictions.from_table(read_table(locate(folder) / "stored.parquet"))
    accumulator = accumulate(predictions, CLASSES, (1, 5, 10))
    summary = metrics_of(predictions, accumulator, "test", train_counts)
    computed = time.perf_counter() - start
    write_evaluation_files(locate(folder) / "evaluation", summary, accumulator, predictions, names, train_counts)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"metrics_s": seconds, "metrics_compute_s": computed, "metrics_peak_mib": peak}))


def metrics(folder: Path, rows: int) -> dict[str, float]:
    """Return the figures of the metrics process."""
    from landmark.storage import locate
    from landmark.storage.tables import write_table

    write_table(locate(folder) / "stored.parquet", make_predictions(rows).to_table())
    command = [sys.executable, __file__, "--metrics", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def train_model(folder: Path, images: int) -> "LoaderConfig":
    """Pack synthetic images and train a model for one epoch, in `dataset` and `train`. Returns the loader's config."""
    import ray

    from landmark.commands.prepare import prepare
    from landmark.config import LoaderConfig, ModelConfig, PackingConfig, PrepareConfig, SyntheticConfig, TrainConfig
    from landmark.training.run import run_training

    synthetic = SyntheticConfig(classes=SPEED_CLASSES, images=images, image_size=160, tail=0.0)
    prepare(
        PrepareConfig(
            output=str(folder / "dataset"),
            source="synthetic",
            synthetic=synthetic,
            packing=PackingConfig(short_side=160),
        )
    )
    ray.shutdown()
    loader = LoaderConfig(image_size=SIZE, batch_size=BATCH, stream="thread")
    model = ModelConfig(backbone="resnet18")
    run_training(
        TrainConfig(
            dataset=str(folder / "dataset"), output=str(folder), epochs=1, model=model, loader=loader, tensorboard=False
        )
    )
    return loader


def inference(folder: Path, images: int, rounds: int) -> dict[str, float]:
    """Return images/s of the evaluation path and of the bare model."""
    import torch

    from landmark.checkpoints.format import resolve_checkpoint
    from landmark.data.loading.loader import Loader
    from landmark.data.subset_view import open_dataset
    from landmark.inference.job import Job, Replica
    from landmark.inference.sources import SplitImages

    torch.set_num_threads(os.cpu_count() or 1)
    loader = train_model(folder, images)
    checkpoint = resolve_checkpoint(str(folder / "train"))
    dataset = open_dataset(str(folder / "dataset"))
    replica = Replica(
        Job(checkpoint=checkpoint.uri, images=SplitImages.of(dataset, "train"), top_k=10, batch_size=BATCH), None
    )
    rows = dataset.split("train").rows
    with Loader(dataset, "train", loader) as batches:
        batches_in_memory = [torch.from_numpy(batch.images.copy()) for batch in batches.epoch(1)]

    def evaluation_path() -> float:
        start = time.perf_counter()
        counted = sum(len(replica.infer(part)) for part in range(replica.job.parts))
        assert counted == rows
        return rows / (time.perf_counter() - start)

    def bare_model() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for images_of_batch in batches_in_memory:
                replica.model(replica.preprocess(images_of_batch, torch.zeros(len(images_of_batch), dtype=torch.bool)))
        return rows / (time.perf_counter() - start)

    found = []
    for number in range(rounds + 1):
        pair = (evaluation_path(), bare_model()) if number % 2 else (bare_model(), evaluation_path())[::-1]
        if number:  # the first round is warm-up
            found.append(pair)
            print(f"evaluation {pair[0]:,.0f} images/s, bare model {pair[1]:,.0f} images/s", flush=True)
    return {
        "inference_images_per_s": statistics.median(pair[0] for pair in found),
        "bare_images_per_s": statistics.median(pair[1] for pair in found),
        "inference_over_bare": statistics.median(pair[0] / pair[1] for pair in found),
    }


def main() -> None:
    """Print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, one round")
    parser.add_argument("--metrics", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "evaluate.json")
    arguments = parser.parse_args()
    if arguments.metrics:
        measure_metrics(arguments.metrics)
        return
    rows, images, rounds = (ROWS // 10, IMAGES // 5, 1) if arguments.quick else (ROWS, IMAGES, 3)
    with tempfile.TemporaryDirectory() as name:
        figures: dict[str, float] = {"rows": rows, "classes": CLASSES, **metrics(Path(name), rows)}
        print(
            f"{rows:,} images x {CLASSES:,} classes: metrics {figures['metrics_compute_s']:.1f} s, with all files "
            f"{figures['metrics_s']:.1f} s, {figures['metrics_peak_mib']:,.0f} MiB",
            flush=True,
        )
        figures |= inference(Path(name), images, rounds)
    line = json.dumps({key: round(value, 3) for key, value in figures.items()})
    arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
