"""Preprocessing on the device in batches, from uint8 pixels to the model's input: flip, normalize, erase, mix."""

import math

import numpy as np
import torch

from landmark.config import AugmentConfig
from landmark.data.randomness import Stream, generator, uniforms
from landmark.models import MixedLabels
from landmark.training.compute.device_prefetch import DeviceBatch, upload

FIRST_DRAW = 16
"""Index of a sample's first random number that is used here. Decoding uses the earlier ones."""
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = 3.3


class Preprocess:
    """Converts uint8 pixels to the model's input on the device: flips, scales, normalizes.

    Input: (n, size, size, 3) uint8. Output: (n, 3, size, size) float32, in the channels-last memory format by default.
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, *, channels_last: bool = True
    ) -> None:
        self.device = device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        scale = 255.0 * torch.tensor(std, device=device)
        self.scale = (1 / scale).view(1, 3, 1, 1)
        self.shift = (-255.0 * torch.tensor(mean, device=device) / scale).view(1, 3, 1, 1)

    def __call__(self, images: torch.Tensor, flip: torch.Tensor | None = None) -> torch.Tensor:
        """Return the model's input for images on the device. flip: bool (n,), images to flip horizontally."""
        pixels = images.permute(0, 3, 1, 2)
        if flip is not None:
            pixels = torch.where(flip.view(-1, 1, 1, 1), pixels.flip(3), pixels)
        inputs = torch.addcmul(self.shift, pixels.float(), self.scale)
        return inputs.contiguous(memory_format=self.memory_format)


class Augmentation:
    """Augmentation on the device: random erasing, then MixUp or CutMix.

    Erased boxes are a function of (seed, epoch, visit) only, so they do not depend on the number of workers. MixUp and
    CutMix pair the images of one rank's batch. Each image's partner is the previous image of the batch. The choice and
    strength of mixing are a function of (seed, epoch, the batch's first visit, its size). A resumed run repeats them bit
    for bit with the same number of workers. With another number, batches and partners differ.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    def __call__(self, inputs: torch.Tensor, batch: DeviceBatch) -> tuple[torch.Tensor, MixedLabels | None]:
        """Return the augmented inputs, modified in place, and the mixed-in labels, if any."""
        if self.config.erasing:
            uniform = uniforms(self.seed, batch.host.epoch, batch.visits, FIRST_DRAW + 5)[:, FIRST_DRAW:]
            erase(inputs, erased_boxes(uniform, self.config.erasing, inputs.shape[2], inputs.shape[3]))
        if not (self.config.mixup or self.config.cutmix) or len(inputs) < 2:
            return inputs, None
        first = int(batch.visits[0])
        return self._mixed(
            inputs, batch.labels, generator(self.seed, Stream.MIXING, batch.host.epoch, first, len(inputs))
        )

    def _mixed(
        self, inputs: torch.Tensor, labels: torch.Tensor, random: np.random.Generator
    ) -> tuple[torch.Tensor, MixedLabels | None]:
        mixup, cutmix = self.config.mixup, self.config.cutmix
        if random.random() >= self.config.mix_prob:
            return inputs, None
        cut = bool(cutmix) and (not mixup or random.random() < 0.5)
        weight = float(random.beta(cutmix, cutmix) if cut else random.beta(mixup, mixup))
        partners = rolled(labels)
        if not cut:
            return torch.lerp(rolled(inputs), inputs, weight), MixedLabels(labels=partners, weight=weight)
        height, width = inputs.shape[2:]
        top, left, bottom, right = cut_box(weight, random.random(2), height, width)
        window = inputs[:, :, top:bottom, left:right]
        window.copy_(rolled(window))
        weight = 1 - (bottom - top) * (right - left) / (height * width)
        return inputs, MixedLabels(labels=partners, weight=weight)


def erased_boxes(uniform: np.ndarray, probability: float, height: int, width: int) -> np.ndarray:
    """Return the box to erase per image: int64 (n, 4) of top, left, bottom, right in pixels. Most boxes are empty.

    uniform: (n, 5) uniform numbers for the choice, area, aspect, top and left. Areas and aspects are distributed as in
    Zhong et al. 2017 (area uniform, aspect log-uniform), but clipped to the image instead of sampled again.
    """
    low, high = ERASED_AREA
    area = height * width * (low + (high - low) * uniform[:, 1])
    aspect = np.exp((2 * uniform[:, 2] - 1) * math.log(ERASED_ASPECT))
    chosen = uniform[:, 0] < probability
    tall = np.where(chosen, np.minimum(np.rint(np.sqrt(area * aspect)), height), 0).astype(np.int64)
    wide = np.where(chosen, np.minimum(np.rint(np.sqrt(area / aspect)), width), 0).astype(np.int64)
    top = (uniform[:, 3] * (height - tall + 1)).astype(np.int64)
    left = (uniform[:, 4] * (width - wide + 1)).astype(np.int64)
    return np.stack([top, left, top + tall, left + wide], axis=1)


def erase(inputs: torch.Tensor, boxes: np.ndarray) -> None:
    """Set a box of each image to 0, the mean color, in place. inputs: (n, c, height, width). boxes: (n, 4)."""
    top, left, bottom, right = upload(boxes, inputs.device).T[:, :, None]
    y, x = (torch.arange(inputs.shape[axis], device=inputs.device) for axis in (2, 3))
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    inputs.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def cut_box(weight: float, centre: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Return CutMix's box (top, left, bottom, right) in pixels. Without clipping it covers 1 - weight of the image.

    centre: two uniform numbers (y, x) for the box's center. The box is clipped to the image (Yun et al. 2019).
    """
    side = math.sqrt(1 - weight)
    y, x = centre[0] * height, centre[1] * width
    top, bottom = (int(min(max(y + sign * side * height / 2, 0), height)) for sign in (-1, 1))
    left, right = (int(min(max(x + sign * side * width / 2, 0), width)) for sign in (-1, 1))
    return top, left, bottom, right


def partner_labels(labels: np.ndarray) -> np.ndarray:
    """Return the labels that MixUp and CutMix add to a batch's labels, (n,): `MixedLabels.labels`, on the CPU."""
    return np.roll(labels, 1)


def rolled(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy rotated by one entry along the first dimension (the last entry first), in its memory format."""
    return torch.cat([tensor[-1:], tensor[:-1]])
