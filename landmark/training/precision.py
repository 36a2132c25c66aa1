"""How a model computes on a device: autocast, the scaler of fp16's gradients, deterministic algorithms."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from landmark.config import ComputeConfig, UserError
from landmark.training.memory import keep_freed_memory


class Precision:
    """The number format in which a model computes, for training and validation alike.

    image_size: the smallest that the model will see, pixels. Raises UserError where half precision is asked for and
    this processor computes it wrongly at that size.
    """

    def __init__(self, config: ComputeConfig, device: torch.device, model: nn.Module, image_size: int) -> None:
        self.device = device
        self.dtype = _autocast_dtype(config, device, model, image_size)
        # Gradients of fp16 vanish below 6e-8, those of bf16 have the range of fp32.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the model's forward pass runs."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def _autocast_dtype(
    config: ComputeConfig, device: torch.device, model: nn.Module, image_size: int
) -> torch.dtype | None:
    """Return what autocast computes in; None: no autocast.

    auto: what the device has instructions for (emulated it is slower than fp32) and is right at.
    """
    chosen = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}.get(config.amp)
    if config.amp == "auto":
        chosen = fast_dtype(device)
    if chosen is None:
        return None
    wrong = next(wrong_convolutions(model, image_size), None) if device.type == "cpu" else None
    if wrong is not None and config.amp != "auto":
        raise UserError(
            f"compute.amp is {config.amp}: at {image_size} pixels {wrong} covers more than its map, which CPUs compute wrongly "
            "in half precision; use larger images, or set compute.amp to off"
        )
    return None if wrong else chosen


def wrong_convolutions(model: nn.Module, image_size: int) -> Iterator[str]:
    """Yield the names of the convolutions that torch's CPU kernels compute wrongly in half precision, in use at that size.

    Seen with torch 2.14.1 (oneDNN) and bf16 over 5,050 shapes: where some weight of a kernel meets nothing but padding,
    its gradient is whatever lay in memory (500 of 1,320 such shapes, up to 1e35), and a kernel as large as its unpadded
    map can give a wrong output (https://github.com/pytorch/pytorch/issues/163347). All other shapes were right.
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
    """Choose, for the whole process, how a GPU's algorithms are chosen, or how a CPU's memory is kept; CPUs are deterministic.

    On GPUs products in fp32, such as those of cosine heads, use TF32, unless compute.amp is off.
    """
    if device.type != "cuda":
        keep_freed_memory()
        return
    if config.deterministic:
        # cuBLAS reads it when its handle is made, at the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_float32_matmul_precision("highest" if config.amp == "off" else "high")
    torch.backends.cudnn.allow_tf32 = config.amp != "off"
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = not config.deterministic


def inference_precision(device: torch.device, model: nn.Module, image_size: int) -> Precision | None:
    """Set a GPU up for inference and return what models compute in there: as compute.amp auto has it.

    None on CPUs, for fp32: results there do not depend on the processor.
    """
    if device.type != "cuda":
        return None
    config = ComputeConfig()
    set_up_device(config, device)
    return Precision(config, device, model, image_size)


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the half precision that a device is fast at, bf16 where it has both; None where it is fast at neither.

    GPUs have bf16 from compute capability 8.0 (A100) on, and tensor cores for fp16 from 7.0 (V100, T4) on.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else None
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else None
