"""Numerical settings per device: autocast, gradient scaler for fp16, deterministic algorithms."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from landmark.config import ComputeConfig, UserError
from landmark.training.compute.memory import disable_malloc_trim


class Precision:
    """Data type of a model's computations in training and validation.

    image_size: minimum image size in training, pixels. Raises UserError if the config requires half precision and this
    processor computes it incorrectly at that size.
    """

    def __init__(self, config: ComputeConfig, device: torch.device, model: nn.Module, image_size: int) -> None:
        self.device = device
        self.dtype = _autocast_dtype(config, device, model, image_size)
        # fp16 gradients underflow below 6e-8. bf16 has the range of fp32.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context for the model's forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def _autocast_dtype(
    config: ComputeConfig, device: torch.device, model: nn.Module, image_size: int
) -> torch.dtype | None:
    """Return the data type for autocast, or None for no autocast.

    auto: half precision if the device has instructions for it and computes it correctly. Emulation is slower than fp32.
    """
    chosen = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}.get(config.amp)
    if config.amp == "auto":
        chosen = fast_dtype(device)
    if chosen is None:
        return None
    wrong = next(wrong_convolutions(model, image_size), None) if device.type == "cpu" else None
    if wrong is not None and config.amp != "auto":
        raise UserError(
            f"compute.amp is {config.amp}, but at {image_size} pixels {wrong} covers more than its feature map, which CPUs compute "
            "incorrectly in half precision; use larger images, or set compute.amp to off"
        )
    return None if wrong else chosen


def wrong_convolutions(model: nn.Module, image_size: int) -> Iterator[str]:
    """Yield the names of the convolutions that torch's CPU kernels compute incorrectly in half precision at this size.

    Measured with torch 2.14.1 (oneDNN) and bf16 over 5,050 shapes. If some weight of a kernel is only applied to
    padding, its gradient is uninitialized memory (500 of 1,320 such shapes, up to 1e35). A kernel as large as its
    unpadded map can give an incorrect output (https://github.com/pytorch/pytorch/issues/163347). All other shapes were
    correct.
    """
    found: list[str] = []

    def look(name: str, layer: nn.Conv2d, size: torch.Size) -> None:
        if any(_is_wrong(layer, axis, int(size[2 + axis])) for axis in (0, 1)):
            found.append(name)

    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):

            def before(layer: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                assert isinstance(layer, nn.Conv2d)
                look(name, layer, inputs[0].shape)

            hooks.append(layer.register_forward_pre_hook(before))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    yield from found


def _is_wrong(layer: nn.Conv2d, axis: int, size: int) -> bool:
    kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
    reach = dilation * (kernel - 1)
    padding = layer.padding[axis] if not isinstance(layer.padding, str) else reach // 2
    if kernel > 1 and not padding and kernel == size:
        return True
    places = range(0, size + 2 * padding - reach, stride)
    return not all(any(0 <= place - padding + tap * dilation < size for place in places) for tap in range(kernel))


def set_up_device(config: ComputeConfig, device: torch.device) -> None:
    """Configure a GPU's algorithms, or a CPU's memory allocation, for the whole process. CPUs are always deterministic.

    On GPUs, fp32 matrix products, such as those of cosine heads, use TF32 unless compute.amp is off.
    """
    if device.type != "cuda":
        disable_malloc_trim()
        return
    if config.deterministic:
        # cuBLAS reads the variable when its handle is created, at the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_float32_matmul_precision("highest" if config.amp == "off" else "high")
    torch.backends.cudnn.allow_tf32 = config.amp != "off"
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = not config.deterministic


def inference_precision(device: torch.device, model: nn.Module, image_size: int) -> Precision | None:
    """Configure a GPU for inference and return the precision of compute.amp auto.

    Returns None on CPUs, which use fp32, so that results do not depend on the processor.
    """
    if device.type != "cuda":
        return None
    config = ComputeConfig()
    set_up_device(config, device)
    return Precision(config, device, model, image_size)


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the half precision that a device computes fast: bf16 if it has both, None if it has neither.

    GPUs support bf16 from compute capability 8.0 (A100) on, and have tensor cores for fp16 from 7.0 (V100, T4) on. CPUs need
    AMX: with only the bf16 instructions of AVX-512, training is slower than in fp32 (benchmarks/precision.py).
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else None
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else None
