"""`landmark predict`: predicts the classes of images; prints them, or writes tables and embeddings."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.checkpoints.format import CheckpointMeta, read_meta, resolve_checkpoint
from landmark.config import NEIGHBORS, PredictConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.sources.listing import holds_dataset
from landmark.data.subset_view import open_dataset
from landmark.evaluation.predictions import Predictions, as_lists
from landmark.inference.job import PARTS, Job, Replicas, find_replicas, infer
from landmark.inference.model import ImageLike, Model, Prediction, load
from landmark.inference.sources import FolderImages, Images, SplitImages, check_limit
from landmark.retrieval.gallery import GALLERY, Gallery, build_gallery
from landmark.storage import Location, check_writable, locate
from landmark.storage.tables import write_csv, write_table

PRINTED = 1000
"""Maximum number of images whose predictions are printed; more images need --output."""
STDIN = "-"
TABLE_OPTIONS = (
    "format", "embeddings", "split", "replicas", "cpus", "batch_size", "corrupt", "max_megapixels", "cluster", "cache",
)  # fmt: skip
"""Options that apply only to written predictions."""


def predict(config: PredictConfig) -> list[dict[str, Any]] | dict[str, Any]:
    """Predict the classes of images: print them, or write tables if an output is given.

    Returns the printed predictions per image, or the number of images and the location of each table.
    """
    if config.output is not None:
        table, places = write_predictions(config)
        return {"images": len(table), **places}
    return print_predictions(config)


def print_predictions(config: PredictConfig) -> list[dict[str, Any]]:
    """Print the top-k predictions per image, and whether it probably shows no landmark; returns them."""
    _refuse_tables_options(config)
    model = load(config.run, tta=config.tta)
    gallery = model.gallery(config.gallery) if config.by == "knn" else None
    found: list[dict[str, Any]] = []
    for name, image in _named_images(config):
        try:
            predictions = _best(model, image, config, gallery)
        except UserError as error:
            if len(config.images) == 1 and name in (config.images[0], "stdin"):
                raise
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            continue
        threshold = config.reject or (model.no_landmark_score if gallery is None else None)
        if threshold is None and not found:
            print("note: a check for images without a landmark needs --reject", file=sys.stderr, flush=True)
        none = threshold is not None and (not predictions or predictions[0].score < threshold)
        found.append(
            {
                "image": name,
                "predictions": [dataclasses.asdict(prediction) for prediction in predictions],
                "probably_no_landmark": none if threshold is not None else None,
            }
        )
        print(name)
        for prediction in predictions:
            print(f"  {prediction.score:7.2%}  {prediction.name}")
        if none:
            print(f"  probably no landmark: the top score is below {threshold:.2%}")
    if not found:
        raise UserError(f"{' '.join(config.images)}: no readable image; give image files, folders or URIs")
    return found


def _best(model: Model, image: ImageLike, config: PredictConfig, gallery: Gallery | None) -> list[Prediction]:
    if gallery is None:
        return model.predict(image, config.top_k)
    embeddings = model.embed(image)[None].astype(np.float16)
    top_k_labels, scores, _, _ = gallery.classify(embeddings, config.neighbors or NEIGHBORS, config.top_k)
    names = gallery.names
    pairs = zip(top_k_labels[0].tolist(), scores[0].tolist(), strict=True)
    return [Prediction(label, names[label], score) for label, score in pairs if score > 0]


def _named_images(config: PredictConfig) -> Iterator[tuple[str, ImageLike]]:
    """Yield the name and the source of each image: files, files in folders, stdin."""
    count = 0
    for given in config.images:
        if given == STDIN:
            yield "stdin", sys.stdin.buffer.read()
            continue
        place = locate(given)
        if not place.exists():
            raise UserError(f"{given}: does not exist; give image files, folders or URIs")
        if place.is_file():
            names, count = [given], count + 1
        elif holds_dataset(place):
            raise UserError(f"{given}: is a packed dataset; add --output FOLDER to write its predictions as a table")
        else:
            files = FolderImages.of(place)
            names, count = [f"{given.rstrip('/')}/{name}" for name in files.names], count + files.rows
        if count > PRINTED:
            raise UserError(f"more than {PRINTED:,} images; add --output FOLDER to write their predictions as a table")
        yield from ((name, name) for name in names)


def _refuse_tables_options(config: PredictConfig) -> None:
    """Raise UserError for an option that applies only to tables."""
    default = PredictConfig(run=config.run, images=config.images)
    for name in TABLE_OPTIONS:
        if getattr(config, name) != getattr(default, name):
            raise UserError(f"{name} applies only to written predictions; add --output FOLDER, or remove the option")


def write_predictions(config: PredictConfig) -> tuple[pa.Table, dict[str, str]]:
    """Write predictions and embeddings, and print a summary; returns the table of predictions and the files' locations."""
    assert config.output is not None
    if len(config.images) != 1 or config.images[0] == STDIN:
        raise UserError("with --output, give one folder, file or packed dataset; without it, give any number of files")
    checkpoint = resolve_checkpoint(config.run)
    meta = read_meta(checkpoint)
    output = locate(config.output)
    check_writable(output)
    dataset = _trained_on(meta)
    by_knn = config.by == "knn"
    replicas = find_replicas(config)
    images = _images(config, dataset)
    gallery = _gallery(config, checkpoint, replicas) if by_knn else None
    job = Job(
        checkpoint=checkpoint.uri,
        images=images,
        top_k=config.top_k,
        batch_size=config.batch_size,
        labelled=False,
        embeddings=config.embeddings or by_knn,
        flips=config.tta == "flip",
    )
    found = infer(job, output, replicas=replicas, doing="predicting")
    predictions = found.predictions
    if not len(predictions):
        raise UserError(f"{config.images[0]}: no readable image; give a folder of images, or a packed dataset")
    if gallery is not None:
        table = _by_knn(predictions, gallery, config)
    else:
        classes = dataset.labels if dataset is not None else pa.table({"name": meta.classes})
        table = as_table(predictions.image_ids, predictions.top_k_labels, predictions.scores, classes, config.reject)
    places = {"predictions": str(output / f"predictions.{config.format}")}
    (write_csv if config.format == "csv" else write_table)(output / f"predictions.{config.format}", table)
    if config.embeddings:
        assert predictions.embeddings is not None
        columns = {"image_id": table["image_id"], "embedding": as_lists(predictions.embeddings)}
        write_table(output / "embeddings.parquet", pa.table(columns))
        places["embeddings"] = str(output / "embeddings.parquet")
    if (output / PARTS).exists():
        (output / PARTS).delete()
    refused = pc.sum(pc.equal(table["label"], -1)).as_py()
    print(
        f"{len(table):,} images"
        + (f"; {refused:,} below the score threshold {config.reject:g} (no landmark)" if config.reject else "")
        + (f"; {found.lost:,} could not be read" if found.lost else "")
    )
    print("  ".join(f"{name}: {place}" for name, place in places.items()))
    return table, places


def as_table(
    image_ids: np.ndarray, top_k_labels: np.ndarray, scores: np.ndarray, classes: pa.Table, reject: float
) -> pa.Table:
    """Return predictions as flat columns: image_id, label, landmark_id, name, score; then name_2, score_2 and so on.

    top_k_labels: predicted labels, int (n, k). scores: float (n, k). classes: one row per label, with the columns name and, if
    known, landmark_id. Images with a score below `reject` have label -1, and null as landmark_id and name. Lower-ranked
    predictions that no neighbour voted for have a null name.
    """
    known = pa.array(scores[:, 0] >= reject)
    columns = {
        "image_id": pa.array(image_ids, pa.string()),
        "label": pc.if_else(known, pa.array(top_k_labels[:, 0]), pa.scalar(-1, pa.int32())),
    }
    for name in ("landmark_id", "name"):
        if name in classes.column_names:
            values = classes[name].combine_chunks().take(pa.array(top_k_labels[:, 0]))
            columns[name] = pc.if_else(known, values, pa.scalar(None, values.type))
    columns["score"] = pa.array(scores[:, 0])
    for place in range(1, top_k_labels.shape[1]):
        voted = pa.array(top_k_labels[:, place], mask=scores[:, place] == 0)
        columns[f"name_{place + 1}"] = classes["name"].combine_chunks().take(voted)
        columns[f"score_{place + 1}"] = pa.array(scores[:, place])
    return pa.table(columns)


def _by_knn(predictions: Predictions, gallery: Gallery, config: PredictConfig) -> pa.Table:
    assert predictions.embeddings is not None
    top_k_labels, scores, nearest, cosines = gallery.classify(
        predictions.embeddings, config.neighbors or NEIGHBORS, config.top_k
    )
    table = as_table(predictions.image_ids, top_k_labels, scores, gallery.classes, config.reject)
    table = table.append_column("nearest_image", gallery.image_ids.take(pa.array(nearest)))
    return table.append_column("nearest_cosine", pa.array(cosines))


def _trained_on(meta: CheckpointMeta) -> PackedDataset | None:
    """Return the dataset that a model was trained on; None if it no longer exists."""
    try:
        return open_dataset(meta.dataset, meta.subset, meta.subset_seed)
    except UserError:
        return None


def _images(config: PredictConfig, dataset: PackedDataset | None) -> Images:
    given = config.images[0]
    assert config.output is not None
    place = locate(given)
    if holds_dataset(place):
        check_limit(place, config.max_megapixels)
        return SplitImages.of(open_dataset(given), config.split, config.corrupt, config.cache_options())
    if config.cache is not None and config.by == "classifier":
        raise UserError(f"cache applies to a packed dataset, but {given} is a folder of image files; remove --cache")
    return FolderImages.of(place, dataset, config.max_megapixels, output=locate(config.output))


def _gallery(config: PredictConfig, checkpoint: Location, replicas: Replicas) -> Gallery:
    place = locate(config.gallery) if config.gallery else locate(config.run) / GALLERY
    return build_gallery(
        checkpoint, place, None, replicas, config.batch_size, config.corrupt, cache=config.cache_options()
    )
