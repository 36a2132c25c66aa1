"""Batch size check: a batch norm over 1 x 1 maps cannot be trained on one image at a time."""

from landmark.config import Recipe, UserError
from landmark.data.loading.plan import min_batch_rows
from landmark.models import needs_two_images


def check_batches(recipe: Recipe, images: int, workers: int) -> None:
    """Raise UserError with a sufficient batch size if a worker would train on one image, which the model cannot.

    images: number of images in an epoch. The function builds a model, without weights, only if a worker computes single
    images.
    """
    if images < workers:
        return  # the loader's plan raises the error
    for size, batch_size in dict.fromkeys(recipe.shape(epoch) for epoch in range(1, recipe.epochs + 1)):
        if _smallest_part(recipe, images, workers, batch_size) > 1:
            continue
        if not needs_two_images(recipe.model, recipe.loader.image_size, size):
            continue
        each = f"{workers} workers" if workers > 1 else "one worker"
        problem = (
            f"loader.batch_size {recipe.loader.batch_size} with {each} and compute.accumulate {recipe.compute.accumulate} gives "
            f"{recipe.model.backbone} a single image at a time, but its batch norm over 1 x 1 maps requires 2 or more"
        )
        raise UserError(f"{problem}; {_remedy(recipe, images, workers, batch_size)}")


def _smallest_part(recipe: Recipe, images: int, workers: int, batch_size: int) -> int:
    rows = min_batch_rows(images, workers, batch_size)
    return rows // min(recipe.compute.accumulate, rows)


def _remedy(recipe: Recipe, images: int, workers: int, batch_size: int) -> str:
    enough = next(
        (size for size in range(batch_size + 1, images + 1) if _smallest_part(recipe, images, workers, size) > 1), None
    )
    if enough is None:
        return f"the epoch has {images} images: lower workers.count or compute.accumulate, or train on more images"
    return f"raise loader.batch_size to {enough} or more, or lower workers.count or compute.accumulate"
