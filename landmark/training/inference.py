"""Inference by replicas of a model: Ray Data's actors, or this process; every image once, going on where it ended.

The images are divided into parts, each of which is stored when it is whole. What is done is found again by the same command,
as long as model, images and settings are the same.
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

from landmark.config import InferenceConfig, UserError
from landmark.data.dataset import read_table, write_table
from landmark.evaluation.predictions import NO_LANDMARK, Predictions
from landmark.models import Embedder
from landmark.models.chunks import ranking, ranking_of
from landmark.models.heads import embedding_classifier
from landmark.progress import Progress
from landmark.runtime import connect, is_local, own_error
from landmark.storage import Location, NotFound, locate, restated
from landmark.training.checkpoints import load_model, weights_digest
from landmark.training.images import Images, parts_of
from landmark.training.local import default_device
from landmark.training.precision import inference_precision
from landmark.training.preprocess import Preprocess
from landmark.training.validation import predict

PARTS = "parts"
"""Folder of the parts, below the results."""
LOST = b"lost"
REJECTS = b"rejects"
NAMED = 3
"""Files that are named per reason."""


@dataclass(kw_only=True, frozen=True)
class Job:
    """What is inferred, in plain values that every replica is given."""

    checkpoint: str
    """URI of a checkpoint."""
    images: Images
    guesses: int
    """Best guesses that are kept of an image, as far as there are classes."""
    batch_size: int
    labelled: bool = True
    """Whether the images' labels are those of the model's classes; else all count as without a landmark."""
    embeddings: bool = False
    """Whether embeddings are kept."""

    @functools.cached_property
    def parts(self) -> int:
        """Number of parts that the images are divided into."""
        return parts_of(self.images.rows)

    @functools.cached_property
    def folder(self) -> str:
        """Name of the folder of its parts: that of other weights, images or settings is another."""
        values = [type(self.images).__name__, self.parts, self.guesses, self.labelled, self.embeddings]
        found = hashlib.sha256(json.dumps(values).encode())
        found.update(self.images.digest())
        found.update(weights_digest(locate(self.checkpoint)).encode())
        return found.hexdigest()[:16]


@dataclass(kw_only=True, frozen=True)
class Replicas:
    """How many models infer at a time, and what each reserves; several, or one with GPUs, are Ray Data actors."""

    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


class Replica:
    """A model that infers parts, in this process or as an actor of Ray Data's."""

    def __init__(self, job: Job, output: Location | None) -> None:
        self.job = job
        self.output = output
        model, self.meta = load_model(locate(job.checkpoint))
        self.device = default_device()
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.precision = inference_precision(self.device, self.model, self.meta.image_size)
        self.classifier = embedding_classifier(self.model)
        if self.classifier is not None:
            self.classifier.gives_embeddings = True  # its guesses are ranked by chunks of the classes
        self.embedder = Embedder(self.model) if job.embeddings else None
        self.preprocess = Preprocess(self.meta.mean, self.meta.std, self.device)
        self.guesses = min(job.guesses, len(self.meta.classes))
        self.reader = job.images.open(self.meta.image_size, job.batch_size)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Infer and store the part that is named, as Ray Data asks for it; returns how many images it has."""
        (part,) = batch["part"].tolist()
        table = self.infer(part)
        return {"part": batch["part"], "rows": np.array([len(table)])}

    def infer(self, part: int, tell: Any = None) -> pa.Table:
        """Return the predictions of a part, as a table whose metadata counts the images lost; stored where there is an output."""
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
        """Return what is kept of a network's output: the best guesses, their probabilities, the loss, and the embeddings."""
        with torch.inference_mode():
            if self.classifier is None:
                best = ranking_of(output.float(), labels, self.guesses)
            else:
                best = ranking(self.classifier, output, labels, self.guesses)
        scores = (best.values - best.log_sum[:, None]).exp()
        losses = torch.where(labels == NO_LANDMARK, torch.nan, best.log_sum - best.own)
        return Predictions(
            samples=samples,
            image_ids=self.reader.ids(samples),
            labels=labels.cpu().numpy().astype(np.int32),
            guesses=best.classes.cpu().numpy().astype(np.int32),
            scores=scores.cpu().numpy().astype(np.float32),
            losses=losses.cpu().numpy().astype(np.float32),
            embeddings=None if self.embedder is None else self.embedder.last().cpu().numpy().astype(np.float16),
        )

    def _nothing(self) -> Predictions:
        shape = (0, self.guesses)
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
    """Images of damaged shards, or files that are no images, which were left out."""
    fresh: int
    """Images inferred now; the others were there already."""


def infer(
    job: Job,
    output: Location | None,
    *,
    replicas: Replicas = Replicas(),
    doing: str = "evaluating",
    quiet: bool = False,
) -> Inferred:
    """Infer a job's parts that are not stored yet and return all of its predictions, as `infer_parts` does."""
    tables, fresh = [], 0
    for table, is_fresh in infer_parts(job, output, replicas=replicas, doing=doing, quiet=quiet):
        tables.append(table)
        fresh += len(table) if is_fresh else 0
    predictions = Predictions.joined([Predictions.from_table(table) for table in tables])
    return Inferred(predictions=predictions, lost=sum(map(lost_of, tables)), fresh=fresh)


def infer_parts(
    job: Job,
    output: Location | None,
    *,
    replicas: Replicas = Replicas(),
    doing: str = "evaluating",
    quiet: bool = False,
) -> Iterator[tuple[pa.Table, bool]]:
    """Yield the predictions of a job part by part, and whether they were made now; those that are stored already come first.

    output: folder of the results, below which parts are stored until the predictions are; None: in memory alone, by one
    replica. Raises UserError where images were inferred twice or not at all.
    """
    folder = output / PARTS / job.folder if output is not None else None
    done = _done(folder) if folder is not None else set()
    missing = [part for part in range(job.parts) if part not in done]
    progress = Progress(
        f"{doing} {job.images.told}", job.images.rows * len(missing) // max(job.parts, 1), enabled=not quiet
    )
    if done and not quiet:
        print(f"going on: {len(done)} of {job.parts} parts are there already")
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
        print(f"could not be read: {_told_rejects(rejects)}")
    if seen != job.images.rows:
        raise UserError(f"{job.images.place}: {seen} of {job.images.rows} images of {job.images.told} were inferred")


def lost_of(table: pa.Table) -> int:
    """Return how many images of a part were left out."""
    return int((table.schema.metadata or {}).get(LOST, b"0"))


def _rejects_of(table: pa.Table) -> list[tuple[str, str]]:
    """Return the names of the files of a part that were no readable images, and why."""
    return json.loads((table.schema.metadata or {}).get(REJECTS, b"[]"))


def _told_rejects(rejects: list[tuple[str, str]]) -> str:
    """Return in one line how many files each reason left out, and the first of them."""
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
    """Yield each part's number when it is stored, by replicas that Ray Data keeps and feeds."""
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
        raise restated(own, f"inference stopped: {text}; run the same command again to go on") from error


def find_replicas(config: InferenceConfig) -> Replicas:
    """Return the number of replicas and what each takes; connects to Ray if they are actors of it.

    Without a number: one per GPU of the cluster that is named, or of RAY_ADDRESS's, else one in this process. More replicas
    than GPUs share them. Raises UserError if the cluster has no room for the number.
    """
    if config.replicas in (None, 1) and is_local(config.cluster):
        return Replicas(cpus=config.cpus)
    connect(config.cluster)
    gpus, cpus = (ray.cluster_resources().get(kind, 0) for kind in ("GPU", "CPU"))
    return replicas_on(config.replicas, config.cpus, int(gpus), cpus)


def replicas_on(wanted: int | None, cpus_each: float, gpus: int, cpus: float) -> Replicas:
    """Return the replicas on a cluster with so many GPUs and CPUs."""
    count = wanted or max(gpus, 1)
    if count * cpus_each > cpus:
        raise UserError(
            f"no room for {count} replicas of {cpus_each:g} CPUs: the cluster has {cpus:g}; lower --replicas or --cpus"
        )
    if not gpus:
        return Replicas(count=count, cpus=cpus_each)
    share = 1.0 if count <= gpus else math.floor(1e4 / -(-count // gpus)) / 1e4
    if share < 1:
        print(f"{count} replicas share {gpus} GPUs: each takes {share:g} of one", file=sys.stderr, flush=True)
    return Replicas(count=count, cpus=cpus_each, gpus=share)
