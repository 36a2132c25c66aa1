"""A trained model for use in Python: predictions, embeddings and nearest images of single photographs or lists of them."""

import functools
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import nn

from landmark.checkpoints.format import CheckpointMeta, load_model, resolve_checkpoint, weights_digest
from landmark.config import PackingConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loading.jpeg import decode_batch
from landmark.data.sources.image_files import RejectedImage
from landmark.data.sources.transcode import pack_image
from landmark.data.subset_view import open_dataset
from landmark.inference.sources import SplitImages
from landmark.models import Embedder
from landmark.models.chunked_cross_entropy import ranking_of
from landmark.retrieval.gallery import GALLERY, Gallery
from landmark.retrieval.knn import search_index
from landmark.storage import Location, NotFound, StorageError, locate
from landmark.training.compute.device_augmentation import Preprocess
from landmark.training.compute.precision import inference_precision
from landmark.training.distributed.local import default_device

ImageLike = str | Path | bytes | Image.Image | np.ndarray
"""One image: a path, a URI, the bytes of an image file, a PIL image, or uint8 pixels (height, width, 3) or (height, width)."""
BATCH = 32
"""Images per forward pass."""
CALIBRATION = "no_landmark.json"
"""File of the threshold below which an image probably shows no landmark, in the folder of the run."""
CALIBRATION_IMAGES = 256
"""Validation images that the threshold is computed from, at most."""
CALIBRATION_QUANTILE = 0.05
"""Fraction of the validation images whose score is below the threshold."""


@dataclass(frozen=True)
class Prediction:
    """One predicted class of an image."""

    label: int
    """Index of the class."""
    name: str
    """Name of the class."""
    score: float
    """Softmax probability, 0 to 1."""


@dataclass(frozen=True)
class Neighbor:
    """One of the images of a gallery that are nearest to an image."""

    image_id: str
    """Id of the gallery's image."""
    label: int
    """Index of its class in the gallery."""
    name: str
    """Name of its class."""
    similarity: float
    """Cosine of the two embeddings, -1 to 1."""


class Model:
    """A trained model.

    Predictions are those of `landmark predict`: images are decoded, resized and cropped in the same way. CPUs compute in fp32,
    GPUs in half precision as `compute.amp auto` does. Get one with `landmark.load`. flips: average over an image and its mirror
    image.
    """

    def __init__(self, run: str, device: str | torch.device | None = None, *, flips: bool = False) -> None:
        self.run = run
        """Folder or URI that the model was loaded from."""
        self.checkpoint = resolve_checkpoint(run)
        """Location of its checkpoint."""
        model, self.meta = load_model(self.checkpoint)
        self.device = torch.device(device) if device is not None else default_device()
        """The device that it computes on."""
        self.module: nn.Module = model.to(self.device).to(memory_format=torch.channels_last).eval()
        """The network: normalised images float32 (n, 3, size, size) -> logits (n, classes)."""
        self._precision = inference_precision(self.device, self.module, self.meta.image_size)
        self._normalise = Preprocess(self.meta.mean, self.meta.std, self.device)
        self._embedder = Embedder(self.module, flips=flips)
        self.flips = flips
        """Whether outputs are means over an image and its mirror image."""
        self._packing = _packing_of(self.meta)
        self._galleries: dict[Location, Gallery] = {}

    def __repr__(self) -> str:
        return (
            f"<landmark.Model {self.meta.backbone}, {len(self.classes)} classes, {self.meta.image_size} px, {self.run}>"
        )

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.meta.classes)

    def preprocess(self, image: ImageLike) -> torch.Tensor:
        """Return the model's input for an image: float32 (3, size, size) on the device; raises UserError for an unreadable image."""
        return self._normalise(torch.from_numpy(self._pixels(image)[None]).to(self.device))[0]

    @overload
    def predict(self, image: ImageLike, top_k: int = 5) -> list[Prediction]: ...

    @overload
    def predict(self, image: list[ImageLike], top_k: int = 5) -> list[list[Prediction]]: ...

    def predict(self, image: ImageLike | list[ImageLike], top_k: int = 5) -> list[Prediction] | list[list[Prediction]]:
        """Return the `top_k` predicted classes, best first, of an image, or of each image of a list.

        Raises UserError for an image that cannot be read, and names it.
        """
        if top_k < 1:
            raise UserError(f"top_k is {top_k}; expected 1 or more")
        found = []
        for output, _ in self._passes(image):
            with torch.inference_mode():
                labels = torch.full((len(output),), -1, device=self.device)
                best = ranking_of(output.float(), labels, min(top_k, len(self.meta.classes)))
                scores = (best.values - best.log_sum[:, None]).exp().cpu().tolist()
            for row, values in zip(best.classes.cpu().tolist(), scores, strict=True):
                pairs = zip(row, values, strict=True)
                found.append([Prediction(label, self.meta.classes[label], score) for label, score in pairs])
        return found if isinstance(image, list) else found[0]

    def embed(self, image: ImageLike | list[ImageLike]) -> np.ndarray:
        """Return the embedding of an image, float32 (d,), or of a list of images, float32 (n, d), each of length 1."""
        found = [embeddings.cpu().numpy().astype(np.float32) for _, embeddings in self._passes(image)]
        joined = np.concatenate(found) if found else np.empty((0, 0), np.float32)
        return joined if isinstance(image, list) else joined[0]

    @overload
    def neighbors(self, image: ImageLike, top_k: int = 5) -> list[Neighbor]: ...

    @overload
    def neighbors(self, image: list[ImageLike], top_k: int = 5) -> list[list[Neighbor]]: ...

    def neighbors(self, image: ImageLike | list[ImageLike], top_k: int = 5) -> list[Neighbor] | list[list[Neighbor]]:
        """Return the `top_k` nearest images of the run's gallery, of an image or of each of a list.

        Raises UserError if the run has no gallery: `landmark index RUN` builds one.
        """
        if self.flips:
            raise UserError(
                "neighbors compares embeddings with a gallery, which has no flips; load the model without tta"
            )
        embeddings = np.atleast_2d(self.embed(image))
        gallery = self.gallery()
        assert gallery.index is not None
        nearest, cosines = search_index(gallery.index, embeddings.astype(np.float16), top_k)
        names = gallery.names
        found = []
        for rows, values in zip(nearest.tolist(), cosines.tolist(), strict=True):
            labels = gallery.labels[rows].tolist()
            ids = [gallery.image_ids[row].as_py() for row in rows]
            found.append(
                [
                    Neighbor(image_id, label, names[label], value)
                    for image_id, label, value in zip(ids, labels, values, strict=True)
                ]
            )
        return found if isinstance(image, list) else found[0]

    @functools.cached_property
    def no_landmark_score(self) -> float | None:
        """Score of the best class below which an image probably shows no landmark of this model; None if that is unknown.

        It is the threshold that `landmark evaluate --distractors` found. Without such an evaluation it is the score that 5% of
        the validation images do not reach; it is computed once and kept in the folder of the run.
        """
        location = locate(self.run)
        for place in (
            location / "evaluation-test" / "metrics.json",
            self.checkpoint / "evaluation-test" / "metrics.json",
        ):
            metrics = _read_json(place)
            if (rejection := metrics.get("rejection")) is not None and metrics.get("tta", "none") == self._tta:
                return float(rejection["threshold"])
        digest = weights_digest(self.checkpoint) + ("" if self._tta == "none" else f" {self._tta}")
        kept = _read_json(location / CALIBRATION)
        if kept.get("model") == digest:
            return float(kept["threshold"])
        if (threshold := self._calibrated()) is None:
            return None
        try:
            text = json.dumps({"threshold": threshold, "model": digest, "quantile": CALIBRATION_QUANTILE})
            (location / CALIBRATION).write_text(text + "\n")
        except (UserError, StorageError, OSError):  # a run that may only be read
            pass
        return threshold

    @property
    def _tta(self) -> str:
        return "flip" if self.flips else "none"

    def _calibrated(self) -> float | None:
        """Return the threshold by the validation images of the dataset; None if they cannot be read."""
        scores: list[float] = []
        try:
            images = SplitImages.of(open_dataset(self.meta.dataset, self.meta.subset, self.meta.subset_seed), "val")
            for batch in images.open(self.meta.image_size, BATCH, self.meta.crop_pct).batches(0, 1):
                output, _ = self._forward(batch.images)
                scores += output.float().softmax(1).max(1).values.tolist()
                if len(scores) >= CALIBRATION_IMAGES:
                    break
        except UserError:
            return None
        return float(np.quantile(scores, CALIBRATION_QUANTILE))

    def gallery(self, place: str | None = None) -> Gallery:
        """Open a k-NN gallery of this model.

        place: folder or URI. [default: gallery in the folder of the run] Raises UserError if there is none, or if it was built
        with other weights.
        """
        places = [locate(place)] if place is not None else [locate(self.run) / GALLERY, self.checkpoint / GALLERY]
        for each in places:
            if each not in self._galleries and (opened := Gallery.open(each, self.checkpoint)) is not None:
                self._galleries[each] = opened
            if (found := self._galleries.get(each)) is None:
                continue
            if found.index is None:
                raise UserError(f"{each}: the gallery is empty; add images with: landmark index {self.run} --add")
            if found.weights != weights_digest(self.checkpoint):
                raise UserError(f"{each}: built with different weights; build it again with: landmark index {self.run}")
            return found
        raise UserError(f"{place or self.run}: no gallery; build one with: landmark index {self.run}")

    def _passes(self, image: ImageLike | list[ImageLike]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield logits (n, classes) and embeddings (n, d) of the images, by batches."""
        images = image if isinstance(image, list) else [image]
        for chunk in _batched(images, BATCH):
            yield self._forward(np.stack([self._pixels(each) for each in chunk]))

    def _forward(self, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            inputs = self._normalise(torch.from_numpy(pixels).to(self.device))
            if self._precision is None:
                embeddings, logits = self._embedder.with_logits(inputs)
            else:
                with self._precision.autocast():
                    embeddings, logits = self._embedder.with_logits(inputs)
            return logits, embeddings

    def _pixels(self, image: ImageLike) -> np.ndarray:
        """Return an image as the model sees it before normalisation: uint8 (size, size, 3)."""
        name, data = _image_bytes(image)
        try:
            packed = pack_image(data, self._packing, name=name, option="max_megapixels")
        except RejectedImage as refused:
            raise UserError(f"{name}: {refused}; expected an image file") from None
        pixels, faults = decode_batch([packed.jpeg], np.array([0]), self.meta.image_size, crop_pct=self.meta.crop_pct)
        if faults:
            raise UserError(f"{name}: {faults[0]}; expected an image file")
        return pixels[0]


def load(run: str | Path, device: str | torch.device | None = None, *, tta: Literal["none", "flip"] = "none") -> Model:
    """Load the model of a run, a study (its best model) or a checkpoint, by folder or URI.

    device: torch device. [default: a GPU if there is one, else the CPU] tta: test-time augmentation; flip averages over an
    image and its mirror image. Raises UserError if there is no model.
    """
    if tta not in ("none", "flip"):
        raise UserError(f"tta is {tta!r}; expected none or flip")
    return Model(str(run), device, flips=tta == "flip")


def _batched(images: Sequence[ImageLike], size: int) -> Iterator[Sequence[ImageLike]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _image_bytes(image: ImageLike) -> tuple[str, bytes]:
    """Return an image's name for messages and the bytes of an image file."""
    if isinstance(image, bytes):
        return "the image", image
    if isinstance(image, str | Path):
        place = locate(str(image))
        try:
            return str(image), place.read_bytes()
        except (NotFound, IsADirectoryError):
            raise UserError(
                f"{image}: no such image file; give a path, a URI, bytes, a PIL image or an array"
            ) from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise UserError(
                f"the image is an array of {image.dtype} {image.shape}; expected uint8 (height, width, 3) or (height, width)"
            )
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    (image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")).save(buffer, "PNG")
    return "the image", buffer.getvalue()


def _packing_of(meta: CheckpointMeta) -> PackingConfig:
    """Return how the images of the model's dataset were packed; the defaults if the dataset is not available."""
    try:
        manifest = PackedDataset.open(meta.dataset).manifest
    except (UserError, StorageError):
        return PackingConfig()
    return PackingConfig(short_side=manifest.short_side, quality=manifest.quality)


def _read_json(place: Any) -> dict[str, Any]:
    try:
        values = json.loads(place.read_text())
    except (NotFound, UserError, StorageError, json.JSONDecodeError):
        return {}
    return values if isinstance(values, dict) else {}
