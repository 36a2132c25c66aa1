"""Inference over a split by replicas of a model: Ray Data's actors, or this process; every image once, going on where it ended.

The images are divided into parts, each of which is stored when it is whole. What is done is found again by the same command,
as long as model, images and settings are the same; whoever infers a part uses the loader of training.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from landmark.config import EvaluateConfig, LoaderConfig, SubsetConfig, UserError, from_mapping, to_mapping
from landmark.data.dataset import PackedDataset, read_table, write_table
from landmark.data.loader import Loader
from landmark.data.selection import open_dataset
from landmark.evaluation.predictions import NO_LANDMARK, Predictions
from landmark.models.chunks import ranking, ranking_of
from landmark.models.heads import embedding_classifier
from landmark.models.losses import logits_of
from landmark.progress import Progress
from landmark.runtime import connect, own_message
from landmark.storage import Location, NotFound, locate
from landmark.training.checkpoints import CHECKSUMS, load_model
from landmark.training.local import default_device
from landmark.training.preprocess import Preprocess
from landmark.training.steps import predict

PARTS = "parts"
"""Folder of the parts, below the results."""
PART_ROWS = 2048
"""Images of a part, about: what is lost when a process dies. More where that would make more than PARTS_AT_MOST."""
PARTS_AT_MOST = 256
LOST = b"lost"


@dataclass(kw_only=True, frozen=True)
class Job:
    """What is inferred, in plain values that every replica is given."""

    checkpoint: str
    """URI of a checkpoint."""
    dataset: str
    """URI of a packed dataset."""
    subset: dict[str, Any]
    """Which of its images, as a SubsetConfig's mapping."""
    subset_seed: int
    split: str
    parts: int
    """Number of parts that the split is divided into."""
    guesses: int
    """Best guesses that are kept of an image."""
    batch_size: int
    damaged: Literal["stop", "skip"] = "stop"
    strangers: bool = False
    """Whether the images show no landmark, whatever their labels."""

    @functools.cached_property
    def folder(self) -> str:
        """Name of the folder of its parts: that of other weights, images or settings is another."""
        values = {key: value for key, value in asdict(self).items() if key != "batch_size"}
        found = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        found.update((locate(self.dataset) / "manifest.json").read_bytes())
        try:
            found.update((locate(self.checkpoint) / CHECKSUMS).read_bytes())
        except NotFound:  # an exported model
            found.update((locate(self.checkpoint) / "model.safetensors").read_bytes())
        return found.hexdigest()[:16]


def job_of(
    checkpoint: Location,
    dataset: PackedDataset,
    split: str,
    guesses: int,
    batch_size: int,
    damaged: Literal["stop", "skip"],
) -> Job:
    """Return the job of a split of an open dataset."""
    rows = dataset.split(split).rows
    return Job(
        checkpoint=checkpoint.uri,
        dataset=dataset.uri,
        subset=to_mapping(dataset.subset),
        subset_seed=dataset.subset_seed,
        split=split,
        parts=min(PARTS_AT_MOST, -(-rows // PART_ROWS)),
        guesses=min(guesses, dataset.num_classes),
        batch_size=batch_size,
        damaged=damaged,
    )


class Replica:
    """A model that infers parts, in this process or as an actor of Ray Data's."""

    def __init__(self, job: Job, output: Location | None) -> None:
        self.job = job
        self.output = output
        subset = from_mapping(SubsetConfig, job.subset, "the subset")
        self.dataset = open_dataset(job.dataset, subset, job.subset_seed)
        model, self.meta = load_model(locate(job.checkpoint))
        self.device = default_device()
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.classifier = embedding_classifier(self.model)
        if self.classifier is not None:
            self.classifier.gives_embeddings = True  # its guesses are ranked by chunks of the classes
        self.preprocess = Preprocess(self.meta.mean, self.meta.std, self.device)
        catalog = self.dataset.catalog(job.split)
        self._samples = catalog["sample"].to_numpy()
        self._ids = catalog["image_id"].to_numpy(zero_copy_only=False)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Infer and store the part that is named, as Ray Data asks for it; returns how many images it has."""
        (part,) = batch["part"].tolist()
        table = self.infer(part)
        return {"part": batch["part"], "rows": np.array([len(table)])}

    def infer(self, part: int, tell: Any = None) -> pa.Table:
        """Return the predictions of a part, as a table whose metadata counts the images lost; stored where there is an output."""
        config = LoaderConfig(
            image_size=self.meta.image_size,
            batch_size=self.job.batch_size * self.job.parts,
            stream="thread",
            damaged=self.job.damaged,
        )
        batches = []
        with Loader(self.dataset, self.job.split, config, rank=part, world_size=self.job.parts, tell=tell) as loader:
            for batch, output, labels in predict(self.model, loader.epoch(1), self.preprocess):
                if self.job.strangers:
                    labels = torch.full_like(labels, NO_LANDMARK)
                ids = self._ids[np.searchsorted(self._samples, batch.samples)].astype(np.str_)
                batches.append(self.guesses(batch.samples, ids, output, labels))
        table = (Predictions.joined(batches) if batches else self._nothing()).to_table()
        table = table.replace_schema_metadata({LOST: str(loader.lost[1]).encode()})
        if self.output is not None:
            write_table(self.output / f"{part:05d}.parquet", table)
        return table

    def run(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what the network makes of normalised images: logits (n, classes), or embeddings (n, d) of an embedding model."""
        self.model.eval()
        return logits_of(self.model(inputs))

    def guesses(self, samples: np.ndarray, ids: np.ndarray, output: torch.Tensor, labels: torch.Tensor) -> Predictions:
        """Return what is kept of a network's output: the best guesses, their probabilities, the loss."""
        with torch.inference_mode():
            if self.classifier is None:
                best = ranking_of(output.float(), labels, self.job.guesses)
            else:
                best = ranking(self.classifier, output, labels, self.job.guesses)
        scores = (best.values - best.log_sum[:, None]).exp()
        losses = torch.where(labels == NO_LANDMARK, torch.nan, best.log_sum - best.own)
        return Predictions(
            samples=samples,
            image_ids=ids,
            labels=labels.cpu().numpy().astype(np.int32),
            guesses=best.classes.cpu().numpy().astype(np.int32),
            scores=scores.cpu().numpy().astype(np.float32),
            losses=losses.cpu().numpy().astype(np.float32),
        )

    def _nothing(self) -> Predictions:
        shape = (0, self.job.guesses)
        return Predictions(
            samples=np.empty(0, np.int64),
            image_ids=np.empty(0, np.str_),
            labels=np.empty(0, np.int32),
            guesses=np.empty(shape, np.int32),
            scores=np.empty(shape, np.float32),
            losses=np.empty(0, np.float32),
        )


@dataclass(kw_only=True, frozen=True)
class Inferred:
    """What a job gave."""

    predictions: Predictions
    lost: int
    """Images of damaged shards that were left out."""
    fresh: int
    """Images inferred now; the others were there already."""


def infer(
    job: Job,
    rows: int,
    output: Location | None,
    *,
    replicas: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    quiet: bool = False,
) -> Inferred:
    """Infer a job's parts that are not stored yet and return all of its predictions.

    rows: images of the split. output: folder of the results, below which parts are stored until the predictions are; None:
    in memory alone. replicas: models at a time; of several, each is a Ray Data actor with so many CPUs and GPUs. Raises
    UserError where images were inferred twice or not at all.
    """
    folder = output / PARTS / job.folder if output is not None else None
    done = _done(folder) if folder is not None else set()
    missing = [part for part in range(job.parts) if part not in done]
    progress = Progress(f"evaluating {job.split}", rows * len(missing) // job.parts, enabled=not quiet)
    if done and not quiet:
        print(f"going on: {len(done)} of {job.parts} parts are there already")
    tables = {}
    if replicas > 1 and missing:
        assert folder is not None
        for part, count in _by_ray(job, folder, missing, replicas, cpus, gpus):
            tables[part] = read_table(folder / f"{part:05d}.parquet")
            progress.update(count)
    elif missing:
        replica = Replica(job, folder)
        for part in missing:
            tables[part] = replica.infer(part, None if quiet else print)
            progress.update(len(tables[part]))
    progress.clear()
    fresh = sum(map(len, tables.values()))
    for part in done:
        assert folder is not None
        tables[part] = read_table(folder / f"{part:05d}.parquet")
    lost = sum(int((table.schema.metadata or {}).get(LOST, b"0")) for table in tables.values())
    predictions = Predictions.joined([Predictions.from_table(tables[part]) for part in sorted(tables)])
    if len(predictions) + lost != rows:
        raise UserError(
            f"{job.dataset}: {len(predictions) + lost} of {rows} images of the {job.split} split were inferred"
        )
    return Inferred(predictions=predictions, lost=lost, fresh=fresh)


def _done(folder: Location) -> set[int]:
    try:
        return {int(name.removesuffix(".parquet")) for name in folder.names() if name.endswith(".parquet")}
    except NotFound:
        return set()


def _by_ray(
    job: Job, folder: Location, missing: list[int], replicas: int, cpus: float, gpus: float
) -> Iterator[tuple[int, int]]:
    """Yield each part's number and images when it is stored, by replicas that Ray Data keeps and feeds."""
    rows = [{"part": part} for part in missing]
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Replica,
        fn_constructor_args=(job, folder),
        batch_size=1,
        concurrency=min(replicas, len(missing)),
        num_cpus=cpus,
        num_gpus=gpus or None,
    )
    try:
        for row in stream.iter_rows():
            yield int(row["part"]), int(row["rows"])
    except ray.exceptions.RayError as error:
        text = own_message(error) or (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"evaluation stopped: {text}; run the same command again to go on") from error


def find_replicas(config: EvaluateConfig) -> tuple[int, float]:
    """Return how many replicas there are, and the GPUs of each; connects to Ray where these are actors of it.

    Without a number: one a GPU of the cluster that is named, or of RAY_ADDRESS's, else one in this process.
    """
    if config.replicas is None and config.cluster.address is None and not os.environ.get("RAY_ADDRESS"):
        return 1, 0.0
    if config.replicas == 1:
        return 1, 0.0
    connect(config.cluster)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    replicas = config.replicas or max(gpus, 1)
    share = 1.0 if gpus >= replicas else 0.0
    cpus = ray.cluster_resources().get("CPU", 0)
    if replicas * config.cpus > cpus:
        raise UserError(
            f"no room for {replicas} replicas of {config.cpus:g} CPUs: the cluster has {cpus:g}; lower --replicas or --cpus"
        )
    return replicas, share
