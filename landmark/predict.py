"""`landmark predict`: a model's guesses for images, by its classifier or by neighbours, and their embeddings, as tables."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.cli import end, run_verb
from landmark.config import PredictConfig, UserError
from landmark.data.dataset import PackedDataset, write_table
from landmark.data.listing import holds_dataset
from landmark.data.selection import open_dataset
from landmark.evaluation.predictions import Predictions, as_lists
from landmark.reporting.evaluation_files import write_csv
from landmark.storage import Location, check_writable, locate
from landmark.training.checkpoints import CheckpointMeta, read_meta, resolve_checkpoint
from landmark.training.gallery import GALLERY, Gallery, made_gallery
from landmark.training.images import FolderImages, Images, SplitImages, check_limit
from landmark.training.inference import PARTS, Job, Replicas, find_replicas, infer


def predict(config: PredictConfig) -> pa.Table:
    """Infer images, write predictions and embeddings, and print what was done; returns the predictions."""
    checkpoint = resolve_checkpoint(config.checkpoint)
    meta = read_meta(checkpoint)
    output = locate(config.output)
    check_writable(output)
    dataset = _trained_on(meta)
    by_neighbours = config.by == "neighbours"
    replicas = find_replicas(config)
    images = _images(config, dataset)
    gallery = _gallery(config, checkpoint, replicas) if by_neighbours else None
    job = Job(
        checkpoint=checkpoint.uri,
        images=images,
        guesses=config.guesses,
        batch_size=config.batch_size,
        labelled=False,
        embeddings=config.embeddings or by_neighbours,
    )
    found = infer(job, output, replicas=replicas, doing="predicting")
    predictions = found.predictions
    if not len(predictions):
        raise UserError(f"{config.images}: no readable image; give a folder of images, or a packed dataset")
    if gallery is not None:
        table = _by_neighbours(predictions, gallery, config)
    else:
        classes = dataset.labels if dataset is not None else pa.table({"name": meta.classes})
        table = as_table(predictions.image_ids, predictions.guesses, predictions.scores, classes, config.reject)
    name = f"predictions.{config.format}"
    (write_csv if config.format == "csv" else write_table)(output / name, table)
    if config.embeddings:
        assert predictions.embeddings is not None
        columns = {"image_id": table["image_id"], "embedding": as_lists(predictions.embeddings)}
        write_table(output / "embeddings.parquet", pa.table(columns))
    if (output / PARTS).exists():
        (output / PARTS).delete()
    refused = pc.sum(pc.equal(table["label"], -1)).as_py()
    print(
        f"{len(table):,} images"
        + (f"; {refused:,} score below {config.reject:g}: no landmark" if config.reject else "")
        + (f"; {found.lost:,} could not be read" if found.lost else "")
    )
    print(
        f"predictions: {output / name}"
        + (f"  embeddings: {output / 'embeddings.parquet'}" if config.embeddings else "")
    )
    return table


def as_table(
    image_ids: np.ndarray, guesses: np.ndarray, scores: np.ndarray, classes: pa.Table, reject: float
) -> pa.Table:
    """Return predictions as flat columns: image_id, label, landmark_id, name, score; then name_2, score_2 and so on.

    guesses int (n, k), scores (n, k). classes: name, and landmark_id where it is known, a row a label. Images whose score is
    below `reject` have label -1 and neither landmark nor name; nor has a further guess that no neighbour voted for.
    """
    known = pa.array(scores[:, 0] >= reject)
    columns = {
        "image_id": pa.array(image_ids, pa.string()),
        "label": pc.if_else(known, pa.array(guesses[:, 0]), pa.scalar(-1, pa.int32())),
    }
    for name in ("landmark_id", "name"):
        if name in classes.column_names:
            values = classes[name].combine_chunks().take(pa.array(guesses[:, 0]))
            columns[name] = pc.if_else(known, values, pa.scalar(None, values.type))
    columns["score"] = pa.array(scores[:, 0])
    for place in range(1, guesses.shape[1]):
        voted = pa.array(guesses[:, place], mask=scores[:, place] == 0)
        columns[f"name_{place + 1}"] = classes["name"].combine_chunks().take(voted)
        columns[f"score_{place + 1}"] = pa.array(scores[:, place])
    return pa.table(columns)


def _by_neighbours(predictions: Predictions, gallery: Gallery, config: PredictConfig) -> pa.Table:
    assert predictions.embeddings is not None
    guesses, scores, nearest, cosines = gallery.guesses(predictions.embeddings, config.neighbours, config.guesses)
    table = as_table(predictions.image_ids, guesses, scores, gallery.classes, config.reject)
    table = table.append_column("nearest_image", gallery.image_ids.take(pa.array(nearest)))
    return table.append_column("nearest_cosine", pa.array(cosines))


def _trained_on(meta: CheckpointMeta) -> PackedDataset | None:
    """Return the dataset that a model was trained on, None where it is not there any more."""
    try:
        return open_dataset(meta.dataset, meta.subset, meta.subset_seed)
    except UserError:
        return None


def _images(config: PredictConfig, dataset: PackedDataset | None) -> Images:
    place = locate(config.images)
    if holds_dataset(place):
        check_limit(place, config.max_megapixels)
        return SplitImages.of(open_dataset(config.images), config.split, config.damaged)
    return FolderImages.of(place, dataset, config.max_megapixels, output=locate(config.output))


def _gallery(config: PredictConfig, checkpoint: Location, replicas: Replicas) -> Gallery:
    place = locate(config.gallery) if config.gallery else locate(config.checkpoint) / GALLERY
    return made_gallery(checkpoint, place, None, replicas, config.batch_size, config.damaged)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code."""
    return run_verb(PredictConfig, predict, argv)


if __name__ == "__main__":
    end(main())
