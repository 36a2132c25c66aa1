"""The baseline: torch's DataLoader with Pillow over an image folder, and a plain loop, optionally with torchrun.

Run by benchmarks/train.py, or directly: torchrun --nproc-per-node 2 benchmarks/torchrun_peer.py FOLDER --model resnet18
--size 128 --batch 32 --epochs 3 [--mock]. Rank 0 prints one JSON line with the images/s of each epoch over all ranks.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator

import torch
import torch.distributed
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Sampler
from torchvision.transforms import v2

Pair = tuple[torch.Tensor, torch.Tensor]


def folder_loader(folder: str, size: int, batch: int, workers: int, sampler: Sampler | None = None) -> DataLoader:
    """Return the loader of a folder's images, augmented as in landmark: crops, flips, normalized floats."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.35, 1.0), ratio=(3 / 4, 4 / 3)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return DataLoader(
        torchvision.datasets.ImageFolder(folder, transform),
        batch,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )


class PlainStep:
    """A plain training step: fp32, SGD."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model.train()
        self.device = device
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def run(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Execute one step."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def main() -> None:
    """Train on this rank's part of the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--mock", action="store_true")
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if gpu else "gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    torch.manual_seed(0)
    classes = len(os.listdir(arguments.folder))
    model = torchvision.models.get_model(arguments.model, num_classes=classes).to(device)
    step = PlainStep(DistributedDataParallel(model), device)
    dataset = torchvision.datasets.ImageFolder(arguments.folder)
    sampler = DistributedSampler(dataset, num_replicas=world, rank=rank, drop_last=True)
    loader = folder_loader(arguments.folder, arguments.size, arguments.batch, 1, sampler)
    throughput = []
    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        start, rows = time.perf_counter(), 0
        for images, labels in mock_batches(loader, arguments) if arguments.mock else loader:
            step.run(images, labels)
            rows += len(labels)
        if gpu:
            torch.cuda.synchronize()
        torch.distributed.barrier()
        throughput.append(rows * world / (time.perf_counter() - start))
    if rank == 0:
        print(json.dumps(throughput))
    torch.distributed.destroy_process_group()


def mock_batches(loader: DataLoader, arguments: argparse.Namespace) -> Iterator[Pair]:
    """Yield the same batch as often as the loader yields batches."""
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    labels = torch.zeros(arguments.batch, dtype=torch.int64)
    for _ in range(len(loader)):
        yield images, labels


if __name__ == "__main__":
    main()
