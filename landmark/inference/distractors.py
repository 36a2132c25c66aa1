"""Inference of distractors, that is, non-landmark images.

GAP counts predictions for distractors as incorrect, and rejection uses their scores.
"""

import dataclasses

import numpy as np

from landmark.config import UserError
from landmark.data.sources.listing import holds_dataset
from landmark.data.subset_view import open_dataset
from landmark.evaluation.predictions import Predictions
from landmark.inference.job import Job, Replicas, infer
from landmark.inference.sources import FolderImages, Images, SplitImages, check_limit
from landmark.storage import Location


def infer_distractors(
    place: Location,
    job: Job,
    output: Location | None,
    replicas: Replicas,
    *,
    first_sample: int,
    max_megapixels: int | None = None,
    quiet: bool = False,
) -> tuple[Predictions, int]:
    """Return predictions for distractors, and the number of unreadable files.

    place: a packed dataset, all of whose images count regardless of their labels, or a folder of images in any format
    with its subfolders. job: that of the split. first_sample: number of the first distractor. max_megapixels: limit for
    a folder's images. Raises UserError if there is no image.
    """
    found = [
        infer(dataclasses.replace(job, images=images, labelled=False), output, replicas=replicas, quiet=quiet)
        for images in _images_at(place, job, max_megapixels)
    ]
    predictions = [each.predictions for each in found if len(each.predictions)]
    if not predictions:
        raise UserError(f"{place}: no readable image; pass a folder or a packed dataset of non-landmark images")
    first = first_sample
    for number, each in enumerate(predictions):
        predictions[number] = dataclasses.replace(each, samples=first + np.arange(len(each)))
        first += len(each)
    return Predictions.joined(predictions), sum(each.lost for each in found)


def _images_at(place: Location, job: Job, max_megapixels: int | None) -> list[Images]:
    assert isinstance(job.images, SplitImages)
    if not holds_dataset(place):
        return [FolderImages.of(place, job.images.opened(), max_megapixels)]
    check_limit(place, max_megapixels)
    dataset = open_dataset(place.uri)
    splits = [split for split, entry in dataset.manifest.splits.items() if entry.rows]
    return [SplitImages.of(dataset, split, job.images.corrupt, job.images.cache) for split in splits]
