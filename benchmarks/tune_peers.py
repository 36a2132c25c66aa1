"""Baselines for `landmark tune`: the same trials as plain Python calls, and the textbook script of Ray's guides.

Run by benchmarks/tune.py, which writes JOB, a JSON file of dataset, output and trials (name -> recipe):
- python benchmarks/tune_peers.py plain JOB PART PARTS: every PARTS-th trial by run_training, in sequence;
- python benchmarks/tune_peers.py textbook JOB TRIALS: the first trials by a Ray Tune function that builds a
TorchTrainer, with Ray Data for the images and TuneReportCallback for the metrics (docs.ray.io, "Hyperparameter Tuning
with Ray Tune"), two at a time. Its seconds of ray.init and of Tuner.fit are written to times.json in the job's output;
- python benchmarks/tune_peers.py connect: prints the seconds for starting Ray and connecting to it.
"""

# Imports are inside the functions, so that the plain calls only import torch.
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MAX_CONCURRENT = 2
TEXTBOOK_CPUS = 8
"""Logical CPUs of the textbook cluster. A trial's function, its worker and its read and decode tasks need one each.
With only two CPUs nothing would ever start.
"""


def plain(job: dict[str, Any], part: int, parts: int) -> None:
    """Train this part of the trials in this process."""
    from landmark.config import TrainConfig, from_mapping
    from landmark.training.run import run_training

    for name in list(job["trials"])[part::parts]:
        settings = {"dataset": job["dataset"], "output": job["output"], "name": name, "tensorboard": False}
        run_training(from_mapping(TrainConfig, {**job["trials"][name], **settings}, name))


class Decode:
    """Converts a batch of JPEG bytes into normalized floats with torchvision's transforms, as in the guides."""

    def __init__(self, size: int, *, train: bool) -> None:
        import torch
        from torchvision.transforms import v2

        if train:
            views = [
                v2.RandomResizedCrop(size, scale=(0.35, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        else:
            views = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
        normalize = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.transform = v2.Compose([*views, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), normalize])

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Decode and transform a batch of images."""
        import numpy as np
        from PIL import Image

        images = [self.transform(Image.open(io.BytesIO(data)).convert("RGB")).numpy() for data in batch["image"]]
        return {"image": np.stack(images), "label": batch["label"].astype(np.int64)}


def train_fn_per_worker(config: dict[str, Any]) -> None:
    """Train and validate, and report metrics and a checkpoint after every epoch."""
    import ray.train
    import ray.train.torch
    import torch
    import torchvision
    from torch.nn import functional

    recipe = config["recipe"]
    model = torchvision.models.get_model(recipe["model"]["backbone"], num_classes=config["classes"])
    model = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe["optimizer"]["lr"], momentum=0.9, nesterov=True)
    train, val = ray.train.get_dataset_shard("train"), ray.train.get_dataset_shard("val")
    batch_size = recipe["loader"]["batch_size"]
    for epoch in range(1, recipe["epochs"] + 1):
        model.train()
        for batch in train.iter_torch_batches(batch_size=batch_size, local_shuffle_buffer_size=4 * batch_size):
            loss = functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        hits, rows = 0, 0
        with torch.no_grad():
            for batch in val.iter_torch_batches(batch_size=batch_size):
                hits += int((model(batch["image"]).argmax(1) == batch["label"]).sum())
                rows += len(batch["label"])
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder) / "model.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"epoch": epoch, "val_top1": hits / rows}, checkpoint=checkpoint)


def train_driver_fn(config: dict[str, Any]) -> None:
    """Build and run the trainer of one trial."""
    import ray.data
    import ray.train
    import ray.train.torch
    import ray.tune
    from ray.tune.integration.ray_train import TuneReportCallback

    size = config["recipe"]["loader"]["image_size"]
    datasets = {
        split: ray.data.read_parquet(f"{config['dataset']}/{split}", columns=["image", "label"]).map_batches(
            Decode(size, train=split == "train"), batch_size=64
        )
        for split in ("train", "val")
    }
    trainer = ray.train.torch.TorchTrainer(
        train_fn_per_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        datasets=datasets,
        run_config=ray.train.RunConfig(
            name=f"train-trial_id={ray.tune.get_context().get_trial_id()}",
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def textbook(job: dict[str, Any], trials: int) -> None:
    """Run the first trials with Ray Tune, Ray Train and Ray Data."""
    import ray
    import ray.tune

    start = time.perf_counter()
    ray.init(address="local", num_cpus=TEXTBOOK_CPUS, include_dashboard=False, log_to_driver=False)
    connected = time.perf_counter()
    recipes = list(job["trials"].values())[:trials]
    tuner = ray.tune.Tuner(
        train_driver_fn,
        param_space={
            "recipe": ray.tune.grid_search(recipes),
            "classes": job["classes"],
            "dataset": job["dataset"],
            "storage": job["output"],
        },
        tune_config=ray.tune.TuneConfig(metric="val_top1", mode="max", max_concurrent_trials=MAX_CONCURRENT),
        run_config=ray.tune.RunConfig(name="textbook", storage_path=job["output"], verbose=0),
    )
    results = tuner.fit()
    incomplete = [result for result in results if (result.metrics or {}).get("epoch") != recipes[0]["epochs"]]
    if results.errors or incomplete:
        raise SystemExit(f"{len(incomplete)} of {trials} trials did not finish: {results.errors[:1]}")
    times = {"connect_s": connected - start, "fit_s": time.perf_counter() - connected}
    (Path(job["output"]) / "times.json").write_text(json.dumps(times))


def connect_s() -> float:
    """Return the seconds for starting Ray and connecting to it, as `landmark tune` does."""
    from landmark.config import ClusterConfig
    from landmark.runtime import connect

    start = time.perf_counter()
    connect(ClusterConfig(cpus=MAX_CONCURRENT))
    return time.perf_counter() - start


def main(method: str, *arguments: str) -> None:
    """Run one of the methods."""
    if method == "connect":
        print(connect_s())
        return
    job = json.loads(Path(arguments[0]).read_text())
    {"plain": plain, "textbook": textbook}[method](job, *map(int, arguments[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
