"""`landmark train --batch-size auto`: the largest batch that fits into the GPU memory, measured before training."""

import dataclasses
from typing import Any

import torch

from landmark.config import TrainConfig, UserError, from_mapping, to_mapping
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import open_dataset
from landmark.models import logits_of
from landmark.out_of_memory import out_of_memory
from landmark.training.compute.memory import free_memory
from landmark.training.distributed.failures import memory_errors, ray_errors
from landmark.training.distributed.local import default_device
from landmark.training.loop.state import RunState
from landmark.training.measuring import MeasuringSession

MEMORY = 0.9
"""Fraction of the GPU memory that the batch may use. The rest is for fragmentation, and for what other libraries allocate."""
STEPS = 10
"""Minimum number of steps per epoch. A larger batch would train too few."""


def with_largest_batch(config: TrainConfig, dataset: PackedDataset) -> TrainConfig:
    """Return the config with the largest batch that fits into each worker's GPU, and that leaves STEPS steps per epoch.

    Prints it. Raises UserError without a GPU.
    """
    workers = config.workers.least
    limit = dataset.split("train").rows // (STEPS * workers)
    each = _measured_here(config, limit) if config.workers.in_process else _measured_by_ray(config, limit)
    size = max(each * workers, config.workers.most)
    reason = (
        f"{2 * each} would leave fewer than {STEPS} steps per epoch" if 2 * each > limit else f"{2 * each} do not fit"
    )
    print(f"batch size: {size} ({each} per worker; {reason})", flush=True)
    return dataclasses.replace(
        config, auto_batch_size=False, loader=dataclasses.replace(config.loader, batch_size=size)
    )


def _measured_here(config: TrainConfig, limit: int) -> int:
    if default_device().type != "cuda":
        raise _no_gpu()
    with memory_errors(config):
        return largest_batch(config, limit)


def _measured_by_ray(config: TrainConfig, limit: int) -> int:
    import ray

    from landmark.runtime import connect
    from landmark.training.distributed.capacity import check_capacity, effective_workers
    from landmark.training.distributed.ray_train import gpus_per_worker

    connect(config.cluster)
    check_capacity(dataclasses.replace(config, workers=effective_workers(config.workers, [config.loader])))
    if not (gpus := gpus_per_worker(config.workers.gpus)):
        raise _no_gpu()
    task = ray.remote(_in_task).options(num_gpus=gpus, num_cpus=1, max_retries=0)
    with ray_errors(), memory_errors(config):
        return int(ray.get(task.remote(to_mapping(config), limit)))


def _no_gpu() -> UserError:
    return UserError("--batch-size auto measures the memory of a GPU, and there is none; give a number")


def _in_task(values: dict[str, Any], limit: int) -> int:
    return largest_batch(from_mapping(TrainConfig, values, "the run's config"), limit)


def largest_batch(config: TrainConfig, limit: int) -> int:
    """Return the largest power of two, up to `limit`, of images per step that fit into this process's memory.

    Each attempt takes a complete step of the optimizer on empty images of the largest size of the run. The model is discarded. Returns
    1 if not even two images fit.
    """
    one_worker = dataclasses.replace(config.workers, count=1)
    compute = dataclasses.replace(config.compute, sync_batchnorm=False, ddp_comm_hook="none")
    config = dataclasses.replace(config, workers=one_worker, compute=compute, auto_batch_size=False)
    session = MeasuringSession()
    dataset = open_dataset(config.dataset, config.subset, config.subset_seed)
    run = RunState(config, dataset, session)  # type: ignore[arg-type]
    cuda = session.device.type == "cuda"
    if cuda:
        torch.cuda.set_per_process_memory_fraction(MEMORY)
    size = max(config.shape(epoch)[0] for epoch in range(1, config.epochs + 1))
    best, images = 1, 2
    try:
        while images <= limit and _fits(run, images, size):
            best, images = images, images * 2
    finally:
        del run
        free_memory(session.device)
        if cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
    return best


def _fits(run: RunState, images: int, size: int) -> bool:
    """Return whether a step on this number of images fits into the memory."""
    step, device = run.step, run.session.device
    try:
        pixels = torch.zeros(images, size, size, 3, dtype=torch.uint8, device=device)
        inputs = step.preprocess(pixels)
        with step.precision.autocast():
            loss = logits_of(step.prepare()(inputs)).float().square().mean()
        step.precision.scaler.scale(loss).backward()
        step.optimizer.step()
        step.optimizer.zero_grad(set_to_none=True)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error) is None:
            raise
        fits = False
    else:
        fits = True
    free_memory(device)
    return fits
