"""`landmark index`: builds a model's k-NN gallery, or adds images and classes to it without training."""

from landmark.checkpoints.format import resolve_checkpoint
from landmark.config import IndexConfig
from landmark.data.sources.listing import holds_dataset
from landmark.data.subset_view import open_dataset
from landmark.inference.job import find_replicas
from landmark.inference.sources import FolderImages, Images, SplitImages, check_limit
from landmark.retrieval.gallery import GALLERY, Gallery, build_gallery
from landmark.storage import locate


def index(config: IndexConfig) -> Gallery:
    """Build or open a gallery, add the images of --add, and print its size."""
    checkpoint = resolve_checkpoint(config.run)
    place = locate(config.gallery) if config.gallery else locate(config.run) / GALLERY
    dataset = open_dataset(config.dataset) if config.dataset else None
    replicas = find_replicas(config)
    images = _images(config) if config.add else None
    gallery = build_gallery(
        checkpoint, place, dataset, replicas, config.batch_size, config.corrupt, cache=config.cache_options()
    )
    if images is not None:
        added = gallery.add(images, replicas, config.batch_size)
        if added.images:
            gallery.save()
        skipped = f"; {added.skipped:,} were already in the gallery" if added.skipped else ""
        lost = f"; {added.lost:,} could not be read" if added.lost else ""
        print(f"added {added.images:,} images and {added.classes:,} new classes{skipped}{lost}")
    assert gallery.index is not None
    print(f"{len(gallery):,} images of {len(gallery.classes):,} classes, {gallery.index.ndim} dimensions")
    print(f"gallery: {place}  next: landmark predict {config.run} IMAGE --by knn")
    return gallery


def _images(config: IndexConfig) -> Images:
    assert config.add is not None
    place = locate(config.add)
    if holds_dataset(place):
        check_limit(place, config.max_megapixels)
        return SplitImages.of(open_dataset(config.add), "train", config.corrupt, config.cache_options())
    return FolderImages.of(place, max_megapixels=config.max_megapixels)
