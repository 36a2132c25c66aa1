"""Images without a landmark, inferred beside a split's: GAP counts a guess for one as wrong, rejection is told by their scores."""

import dataclasses

import numpy as np

from landmark.config import UserError
from landmark.data.listing import holds_dataset
from landmark.data.selection import open_dataset
from landmark.evaluation.predictions import Predictions
from landmark.storage import Location
from landmark.training.images import FolderImages, Images, SplitImages, check_limit
from landmark.training.inference import Job, Replicas, infer


def infer_strangers(
    place: Location,
    job: Job,
    output: Location | None,
    replicas: Replicas,
    *,
    first_sample: int,
    max_megapixels: int | None = None,
    quiet: bool = False,
) -> tuple[Predictions, int]:
    """Return predictions for images that show no landmark, and how many files are none that can be read.

    place: a packed dataset, all of whose images count, whatever their labels; or a folder of images in any format, those below
    it included. job: the split's. first_sample: the number of the first one. max_megapixels: the limit of a folder's images.
    Raises UserError where there is no image.
    """
    found = [
        infer(dataclasses.replace(job, images=images, labelled=False), output, replicas=replicas, quiet=quiet)
        for images in _images_at(place, job, max_megapixels)
    ]
    predictions = [each.predictions for each in found if len(each.predictions)]
    if not predictions:
        raise UserError(
            f"{place}: no readable image; give a folder of images without a landmark, or a packed dataset of them"
        )
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
    return [SplitImages.of(dataset, split, job.images.damaged) for split in splits]
