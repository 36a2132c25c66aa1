"""Streams of Ray Train: each rank gets its part of the training and validation data as a Ray Data dataset."""

import functools
from collections.abc import Iterator
from typing import Any

import ray.data
import ray.train

from landmark.config import SamplingConfig, TrainConfig, last_epoch
from landmark.data.cache.split_cache import SplitCache
from landmark.data.dataset import PackedDataset
from landmark.data.loading.progress import EpochProgress
from landmark.data.loading.rank_plans import RankPlans, fixed_shape
from landmark.data.loading.reader import RowGroupReader
from landmark.data.loading.sampling import EpochRows
from landmark.data.loading.streams import Shard, part_dataset, rank_dataset
from landmark.data.subset_view import open_dataset
from landmark.storage import Location
from landmark.training.loop.loaders import resolve_stream, training_loader, validation_loader
from landmark.training.observe.run_names import names_of

SPLITS = ("train", "val")
POSITION = "position.npz"
"""File in the run's folder with the position from which rank 0 resumes. It exists while the workers start."""


def split_datasets(config: TrainConfig) -> dict[str, ray.data.Dataset]:
    """Return the datasets to pass to Ray Train, or none if threads of the workers read.

    They contain only the numbers of the epochs. `RankStreams` makes each rank's dataset from its plans.
    """
    if resolve_stream(config.loader, config.workers.most).stream != "ray":
        return {}
    epochs = range(1, last_epoch(config, config.limit_s) + 1)
    return {
        split: part_dataset(epochs, 1, f"{config.name}-{split}", cpus=config.loader.reader_cpus) for split in SPLITS
    }


class RankStreams(ray.train.DataConfig):
    """Makes one dataset per rank over all remaining epochs. Ray Train calls `configure` for each new worker group.

    The ranks' own executors run the datasets, so that a dead rank leaves no actors.
    """

    def __init__(self, config: TrainConfig, run: Location) -> None:
        super().__init__()
        self.config = config
        self.run = run

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Return each rank's iterators by split, from the position that rank 0 stored. Raises UserError."""
        dataset = open_dataset(self.config.dataset, self.config.subset, self.config.subset_seed)
        position = EpochProgress.from_bytes((self.run / POSITION).read_bytes())
        nodes: list[str | None] = [*worker_node_ids] if worker_node_ids else [None] * world_size
        streams: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for split in datasets:
            for rank, found in enumerate(self._streams(dataset, split, nodes, position)):
                streams[rank][split] = found.iterator()
        return streams

    def _streams(
        self, dataset: PackedDataset, split: str, nodes: list[str | None], position: EpochProgress
    ) -> Iterator[ray.data.Dataset]:
        """Yield the dataset of each rank. The rank's loader derives the same plans from the same values."""
        config, training = self.config, split == "train"
        resolved = training_loader(config, dataset, len(nodes))
        loader = resolved if training else validation_loader(resolved)
        rows = EpochRows(dataset, split, config.sampling if training else SamplingConfig(), config.seed)
        augment = config.augment if training else None
        cache = SplitCache.of(dataset, split, loader, augment)
        make_reader = functools.partial(RowGroupReader, dataset.location, dataset.split(split).shards, cache)
        for rank, node in enumerate(nodes):
            plans = RankPlans(
                rows=rows,
                rank=rank,
                world_size=len(nodes),
                seed=config.seed,
                training=training,
                epochs=range(position.epoch, last_epoch(config, config.limit_s) + 1),
                shape=config.shape if training else fixed_shape(loader),
                shuffle_row_groups=loader.shuffle_row_groups,
                position=position,
            )
            yield rank_dataset(plans, make_reader, loader, augment, rank_name(self.run, split, rank), node)


def rank_shard(run: Location, split: str, rank: int, position: EpochProgress) -> Shard:
    """Return this rank's stream. Ray Train's workers call it for all SPLITS in order, each on all ranks.

    The call of rank 0 makes Ray Train configure the streams of all ranks, so its position is stored before.
    """
    if rank == 0:
        (run / POSITION).write_bytes(position.to_bytes())
    shard = Shard(rank_name(run, split, rank), ray.train.get_dataset_shard(split))
    if rank == 0 and split == SPLITS[-1]:
        (run / POSITION).delete()
    return shard


def rank_name(run: Location, split: str, rank: int) -> str:
    """Return the name of a rank's stream, which Ray's dashboard shows."""
    return "-".join([*filter(None, names_of(run)), split, f"rank{rank}"])
