"""Ray Train's streams: what each rank gets from the DataConfig, with the node's cache."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from landmark.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig, WorkersConfig
from landmark.data.cache.format import GIB, cache_sizes
from landmark.data.loading.loader import Loader
from landmark.data.loading.progress import EpochProgress
from landmark.data.loading.streams import Shard
from landmark.storage import locate
from landmark.training.distributed.streams import POSITION, RankStreams
from landmark.training.loop.loaders import training_loader
from tests.support.packed import write_packed

LOADER = {"image_size": 32, "batch_size": 8, "stream": "ray", "reader_cpus": 0.1, "decode_threads": 1}


@pytest.mark.parametrize("fits", [True, False], ids=["planes", "planes that do not fit"])
def test_the_streams_of_all_ranks_fill_the_cache_that_their_loaders_expect(ray_cluster, tmp_path, fits):
    dataset = write_packed(tmp_path / "data", {"train": [40, 24], "val": [16]}, size=80)
    sizes = cache_sizes(dataset, LoaderConfig(image_size=32), {"train": AugmentConfig(), "val": None})
    assert sizes.jpeg < sizes.yuv420
    gib = (sizes.yuv420 if fits else (sizes.jpeg + sizes.yuv420) / 2) / GIB * (1.1 if fits else 1)
    config = TrainConfig(
        dataset=str(tmp_path / "data"),
        output=str(tmp_path),
        model=ModelConfig(backbone="reference_mlp"),
        loader=LoaderConfig(**LOADER, cache=str(tmp_path / "cache"), cache_gib=gib, cache_format="yuv420"),
        workers=WorkersConfig(count=2),
        epochs=1,
    )
    run = locate(str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    position = EpochProgress(epoch=1, partitioning=(2, 8, config.loader.shuffle_row_groups), length=64)

    def samples() -> list[int]:
        (run / POSITION).write_bytes(position.to_bytes())
        iterators = RankStreams(config, run).configure({"train": None, "val": None}, 2, [], None)  # type: ignore[dict-item]
        loader, found = training_loader(config, dataset, 2), []
        for rank in range(2):
            shard = Shard(f"train-{rank}", iterators[rank]["train"])
            with Loader(
                dataset,
                "train",
                loader,
                rank=rank,
                world_size=2,
                augment=config.augment,
                position=position,
                shard=shard,
            ) as batches:
                found += [sample for batch in batches.epoch(1) for sample in batch.samples.tolist()]
        return found

    first = samples()
    assert sorted(first) == list(range(64))
    kinds = {path.stem.rpartition("-")[2] for path in (tmp_path / "cache").rglob("*.arrow")}
    assert ("jpeg" in kinds) != fits and len(kinds) == 1
    shutil.rmtree(tmp_path / "data" / "train")
    assert np.array_equal(samples(), first)


def test_rays_dataset_actor_imports_no_torch():
    """Ray Train's controller and its dataset actor unpickle RankStreams. Torch would cost them seconds and 500 MB."""
    code = "import sys; import landmark.training.distributed.streams; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
