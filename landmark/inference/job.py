"""Resumable inference by model replicas, in Ray Data actors or in this process. Each image is inferred once.

The images are divided into shards. Each shard is stored when it is complete. The same command reuses stored shards as
long as model, images and settings are the same.
"""

import functools
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from landmark.checkpoints.format import load_model, weights_digest
from landmark.config import InferenceConfig, UserError
from landmark.evaluation.predictions import NO_LANDMARK, Predictions
from landmark.inference.sources import Images, parts_of
from landmark.models import Embedder, FlipAveraged
from landmark.models.chunked_cross_entropy import ranking, ranking_of
from landmark.models.heads import embedding_classifier
from landmark.progress import Progress
from landmark.runtime import connect, is_local, own_error
from landmark.storage import Location, NotFound, locate, restated
from landmark.storage.tables import read_table, write_table
from landmark.training.compute.device_augmentation import Preprocess
from landmark.training.compute.precision import inference_precision
from landmark.training.distributed.local import default_device
from landmark.training.loop.validation import predict

PARTS = "parts"
"""Folder of the shards, below the results."""
LOST = b"lost"
REJECTS = b"rejects"
NAMED = 3
"""Number of files that are named per reason."""


@dataclass(kw_only=True, frozen=True)
class Job:
    """Description of an inference, in plain values that every replica receives."""

    checkpoint: str
    """URI of a checkpoint."""
    images: Images
    top_k: int
    """Predictions that are kept per image, at most one per class."""
    batch_size: int
    labelled: bool = True
    """Whether the images' labels are those of the model's classes. If not, all images count as distractors."""
    embeddings: bool = False
    """Whether to keep embeddings."""
    flips: bool = False
    """Whether outputs are means over an image and its mirror image."""

    @functools.cached_property
    def parts(self) -> int:
        """Number of shards."""
        return parts_of(self.images.rows)

    @functools.cached_property
    def folder(self) -> str:
        """Name of the shards' folder, which is unique for weights, images and settings."""
        values = [type(self.images).__name__, self.parts, self.top_k, self.labelled, self.embeddings]
        values += ["flips"] * self.flips
        found = hashlib.sha256(json.dumps(values).encode())
        found.update(self.images.digest())
        found.update(weights_digest(locate(self.checkpoint)).encode())
        return found.hexdigest()[:16]


@dataclass(kw_only=True, frozen=True)
class Replicas:
    """Number of replicas and resources of each. Several replicas, or one with GPUs, run as Ray Data actors."""

    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


class Replica:
    """A model that infers shards, in this process or as a Ray Data actor."""

    def __init__(self, job: Job, output: Location | None) -> None:
        self.job = job
        self.output = output
        model, self.meta = load_model(locate(job.checkpoint))
        self.device = default_device()
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.precision = inference_precision(self.device, self.model, self.meta.image_size)
        self.classifier = embedding_classifier(self.model)
        if self.classifier is not None:
            self.classifier.gives_embeddings = True  # `ranking` computes predictions in chunks of classes
        self.embedder = Embedder(self.model, flips=job.flips) if job.embeddings else None
        if job.flips:
            self.model = FlipAveraged(self.model)
        self.preprocess = Preprocess(self.meta.mean, self.meta.std, self.device)
        self.top_k = min(job.top_k, len(self.meta.classes))
        self.reader = job.images.open(self.meta.image_size, job.batch_size, self.meta.crop_pct)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Infer and store the requested shard for Ray Data. Returns its number of images."""
        (part,) = batch["part"].tolist()
        table = self.infer(part)
        return {"part": batch["part"], "rows": np.array([len(table)])}

    def infer(self, part: int, tell: Any = None) -> pa.Table:
        """Return a shard's predictions, with the count of lost images as metadata. Stores them if output is set."""
        found = []
        batches = self.reader.batches(part, self.job.parts, tell)
        for batch, output, labels in predict(self.model, batches, self.preprocess, self.precision):
            if not self.job.labelled:
                labels = torch.full_like(labels, NO_LANDMARK)
            found.append(self._predictions(batch.samples, output, labels))
        table = (Predictions.joined(found) if found else self._nothing()).to_table()
        table = table.replace_schema_metadata(
            {LOST: str(self.reader.lost).encode(), REJECTS: json.dumps(self.reader.rejects).encode()}
        )
        if self.output is not None:
            write_table(self.output / f"{part:05d}.parquet", table)
        return table

    def _predictions(self, samples: np.ndarray, output: torch.Tensor, labels: torch.Tensor) -> Predictions:
        """Return the values to keep from a model's output: top-k predictions, probabilities, losses and embeddings."""
        with torch.inference_mode():
            if self.classifier is None:
                best = ranking_of(output.float(), labels, self.top_k)
            else:
                best = ranking(self.classifier, output, labels, self.top_k)
        scores = (best.values - best.log_sum[:, None]).exp()
        losses = torch.where(labels == NO_LANDMARK, torch.nan, best.log_sum - best.own)
        return Predictions(
            samples=samples,
            image_ids=self.reader.ids(samples),
            labels=labels.cpu().numpy().astype(np.int32),
            top_k_labels=best.classes.cpu().numpy().astype(np.int32),
            scores=scores.cpu().numpy().astype(np.float32),
            losses=losses.cpu().numpy().astype(np.float32),
            embeddings=None if self.embedder is None else self.embedder.last().cpu().numpy().astype(np.float16),
        )

    def _nothing(self) -> Predictions:
        shape = (0, self.top_k)
        return Predictions(
            samples=np.empty(0, np.int64),
            image_ids=np.empty(0, np.str_),
            labels=np.empty(0, np.int32),
            top_k_labels=np.empty(shape, np.int32),
            scores=np.empty(shape, np.float32),
            losses=np.empty(0, np.float32),
        )


@dataclass(kw_only=True, frozen=True)
class InferenceResult:
    """Results of a job."""

    predictions: Predictions
    lost: int
    """Skipped images: those of corrupt shards, and files that are not images."""
    fresh: int
    """Images inferred by this call. The others were stored before."""


def infer(
    job: Job,
    output: Location | None,
    *,
    replicas: Replicas = Replicas(),
    doing: str = "evaluating",
    quiet: bool = False,
) -> InferenceResult:
    """Infer the shards of a job that are not stored yet, and return all predictions. See `infer_parts`."""
    tables, fresh = [], 0
    for table, is_fresh in infer_parts(job, output, replicas=replicas, doing=doing, quiet=quiet):
        tables.append(table)
        fresh += len(table) if is_fresh else 0
    predictions = Predictions.joined([Predictions.from_table(table) for table in tables])
    return InferenceResult(predictions=predictions, lost=sum(map(lost_of, tables)), fresh=fresh)


def infer_parts(
    job: Job,
    output: Location | None,
    *,
    replicas: Replicas = Replicas(),
    doing: str = "evaluating",
    quiet: bool = False,
) -> Iterator[tuple[pa.Table, bool]]:
    """Yield the predictions of a job shard by shard, stored ones first, and whether this call computed them.

    output: folder of the results, where shards are stored until the predictions are complete. None: keep them in
    memory, with one replica. Raises UserError unless each image was inferred exactly once.
    """
    folder = output / PARTS / job.folder if output is not None else None
    done = _done(folder) if folder is not None else set()
    missing = [part for part in range(job.parts) if part not in done]
    progress = Progress(
        f"{doing} {job.images.description}", job.images.rows * len(missing) // max(job.parts, 1), enabled=not quiet
    )
    if done and not quiet:
        print(f"resuming: {len(done)} of {job.parts} shards are complete")
    seen = 0
    rejects: list[tuple[str, str]] = []
    for part in sorted(done):
        assert folder is not None
        table = read_table(folder / f"{part:05d}.parquet")
        seen += len(table) + lost_of(table)
        rejects += _rejects_of(table)
        yield table, False
    for table in _missing(job, folder, missing, replicas, None if quiet else print):
        progress.update(len(table))
        seen += len(table) + lost_of(table)
        rejects += _rejects_of(table)
        yield table, True
    progress.clear()
    if rejects and not quiet:
        print(f"could not read: {_describe_rejects(rejects)}")
    if seen != job.images.rows:
        raise UserError(
            f"{job.images.place}: inferred {seen} of {job.images.rows} images of {job.images.description}; check that they did not change"
        )


def lost_of(table: pa.Table) -> int:
    """Return the number of skipped images of a shard."""
    return int((table.schema.metadata or {}).get(LOST, b"0"))


def _rejects_of(table: pa.Table) -> list[tuple[str, str]]:
    """Return the names and errors of the unreadable files of a shard."""
    return json.loads((table.schema.metadata or {}).get(REJECTS, b"[]"))


def _describe_rejects(rejects: list[tuple[str, str]]) -> str:
    """Return one line with the number of skipped files per reason and the first file names."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in rejects:
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(
        f"{len(names):,} {reason} ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})"
        for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    )


def _done(folder: Location) -> set[int]:
    try:
        return {int(name.removesuffix(".parquet")) for name in folder.names() if name.endswith(".parquet")}
    except NotFound:
        return set()


def _missing(
    job: Job, folder: Location | None, missing: list[int], replicas: Replicas, tell: Any
) -> Iterator[pa.Table]:
    if (replicas.count > 1 or replicas.gpus) and missing:
        assert folder is not None
        for part in _by_ray(job, folder, missing, replicas):
            yield read_table(folder / f"{part:05d}.parquet")
    elif missing:
        replica = Replica(job, folder)
        for part in missing:
            yield replica.infer(part, tell)


def _by_ray(job: Job, folder: Location, missing: list[int], replicas: Replicas) -> Iterator[int]:
    """Yield each shard's number when it is stored, using replicas that Ray Data manages."""
    rows = [{"part": part} for part in missing]
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Replica,
        fn_constructor_args=(job, folder),
        batch_size=1,
        concurrency=min(replicas.count, len(missing)),
        num_cpus=replicas.cpus,
        num_gpus=replicas.gpus or None,
    )
    try:
        for row in stream.iter_rows():
            yield int(row["part"])
    except ray.exceptions.RayError as error:
        own = own_error(error)
        text = own or (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise restated(own, f"inference stopped: {text}; run the same command again to resume") from error


def find_replicas(config: InferenceConfig) -> Replicas:
    """Return the number of replicas and the resources of each. Connects to Ray if the replicas are actors.

    By default there is one replica per GPU of the configured cluster, or of the cluster of RAY_ADDRESS, else one in
    this process. If there are more replicas than GPUs, they share them. Raises UserError if the cluster has too few
    CPUs.
    """
    if config.replicas in (None, 1) and is_local(config.cluster):
        return Replicas(cpus=config.cpus)
    connect(config.cluster)
    gpus, cpus = (ray.cluster_resources().get(kind, 0) for kind in ("GPU", "CPU"))
    return replicas_on(config.replicas, config.cpus, int(gpus), cpus)


def replicas_on(wanted: int | None, cpus_each: float, gpus: int, cpus: float) -> Replicas:
    """Return the replicas for a cluster with these numbers of GPUs and CPUs."""
    count = wanted or max(gpus, 1)
    if count * cpus_each > cpus:
        raise UserError(
            f"not enough CPUs for {count} replicas of {cpus_each:g} CPUs: the cluster has {cpus:g}; lower --replicas or --cpus"
        )
    if not gpus:
        return Replicas(count=count, cpus=cpus_each)
    gpus_each = 1.0 if count <= gpus else math.floor(1e4 / -(-count // gpus)) / 1e4
    if gpus_each < 1:
        print(f"{count} replicas share {gpus} GPUs: each uses {gpus_each:g} of one", file=sys.stderr, flush=True)
    return Replicas(count=count, cpus=cpus_each, gpus=gpus_each)
