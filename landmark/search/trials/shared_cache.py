"""The cache that all trials of a study share: its size in each format."""

from collections.abc import Mapping, Sequence

from landmark.data.cache.format import CacheSizes, stored_planes_bytes, too_large
from landmark.data.cache.split_cache import GIB, jpeg_bytes, stored_side
from landmark.data.dataset import PackedDataset
from landmark.search.spaces.space import TrialSpec


def shared_sizes(plans: Sequence[TrialSpec], datasets: Mapping[str | None, PackedDataset]) -> CacheSizes:
    """Return the bytes of all images that the trials read, in each format of the cache. Trials share entries.

    Trials with another image size or other crops may need decoded images of another size.
    """
    splits = {(plan.dataset, split) for plan in plans for split in ("train", "val")}
    planes = {
        (plan.dataset, split, stored_side(plan.recipe.loader, augment, _short_side(plan, datasets)))
        for plan in plans
        for split, augment in (("train", plan.recipe.augment), ("val", None))
    }
    return CacheSizes(
        jpeg=sum(jpeg_bytes(datasets[name], split) for name, split in splits),
        yuv420=sum(stored_planes_bytes(datasets[name], split, side) for name, split, side in planes),
    )


def planes_too_large(plans: Sequence[TrialSpec], datasets: Mapping[str | None, PackedDataset]) -> str | None:
    """Return a message if trials cache decoded images, and those of all trials together do not fit; else None."""
    decoding = [plan for plan in plans if plan.recipe.loader.cache_format == "yuv420"]
    if not decoding:
        return None
    limit = min(plan.recipe.loader.cache_gib or 0.0 for plan in decoding)
    sizes = shared_sizes(decoding, datasets)
    return too_large(sizes, limit) if sizes.yuv420 > limit * GIB else None


def _short_side(plan: TrialSpec, datasets: Mapping[str | None, PackedDataset]) -> int:
    return datasets[plan.dataset].manifest.short_side
