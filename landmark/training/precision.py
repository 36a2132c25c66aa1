"""How a model computes on a device: autocast, the scaler of fp16's gradients, deterministic algorithms."""

import os

import torch

from landmark.config import ComputeConfig


class Precision:
    """The number format in which a model computes, for training and validation alike."""

    def __init__(self, config: ComputeConfig, device: torch.device) -> None:
        self.device = device
        self.dtype = autocast_dtype(config, device)
        # Gradients of fp16 vanish below 6e-8, those of bf16 have the range of fp32.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> torch.autocast:
        """Return the context in which the model's forward pass runs."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def autocast_dtype(config: ComputeConfig, device: torch.device) -> torch.dtype | None:
    """Return what autocast computes in; None: no autocast.

    auto: bf16 where the device has instructions for it. Emulated it is slower than fp32. Not on a CPU that is to be
    deterministic: its bf16 kernels gave two equal runs different gradients (seen with torch 2.14, maps of 1 x 1).
    """
    if config.amp == "auto" and config.deterministic and device.type == "cpu":
        return None
    if config.amp == "auto":
        return torch.bfloat16 if _has_bf16(device) else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.amp]


def set_up_device(config: ComputeConfig, device: torch.device) -> None:
    """Choose, for the whole process, how a GPU's algorithms are chosen; CPUs are deterministic as they are."""
    if device.type != "cuda":
        return
    if config.deterministic:
        # cuBLAS reads it when its handle is made, at the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = not config.deterministic


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
