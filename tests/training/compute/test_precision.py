"""Tests that half precision is used if the device supports it and computes it correctly."""

import pytest
import torch
import torchvision
from torch import nn

from landmark.config import ComputeConfig, UserError
from landmark.training.compute.precision import (
    Precision,
    fast_dtype,
    inference_precision,
    set_up_device,
    wrong_convolutions,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("backbone", "size", "wrong"),
    [("resnet18", 16, True), ("resnet18", 32, True), ("resnet18", 64, False), ("mobilenet_v3_small", 32, True)],
)
def test_sizes_where_a_kernel_covers_only_padding_are_found(backbone, size, wrong):
    model = torchvision.models.get_model(backbone).train()
    assert bool(list(wrong_convolutions(model, size))) == wrong
    assert model.training and not any(layer._forward_pre_hooks for layer in model.modules())


def test_a_kernel_as_large_as_its_map_is_found():
    assert list(wrong_convolutions(nn.Sequential(nn.Conv2d(3, 16, 16)), 16)) == ["0"]
    assert not list(wrong_convolutions(nn.Sequential(nn.Conv2d(3, 16, 16)), 32))


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="needs a CPU with bf16")
@pytest.mark.parametrize("size", [48, 64])
def test_bf16_gradients_repeat_at_sizes_that_pass_the_check(size):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4).train()
    precision = Precision(ComputeConfig(amp="bf16"), CPU, model, size)
    assert precision.dtype is torch.bfloat16
    images, found = torch.randn(4, 3, size, size), []
    for _ in range(2):
        model.zero_grad()
        nan_filled = [torch.full((1 << power,), float("nan")) for power in range(8, 20)]
        del nan_filled  # uninitialized memory then contains NaN
        with precision.autocast():
            output = model(images)
        output.float().square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, two) and one.isfinite().all() for one, two in zip(*found, strict=True))


def test_half_precision_is_refused_if_convolutions_would_be_wrong():
    model = torchvision.models.resnet18()
    for amp in ("bf16", "fp16"):
        with pytest.raises(
            UserError, match=f"compute.amp is {amp}, but at 16 pixels layer3.0.conv1 covers more than its feature map"
        ):
            Precision(ComputeConfig(amp=amp), CPU, model, 16)
    assert Precision(ComputeConfig(amp="auto"), CPU, model, 16).dtype is None
    assert Precision(ComputeConfig(amp="off"), CPU, model, 64).dtype is None
    assert Precision(ComputeConfig(amp="bf16"), CPU, model, 64).dtype is torch.bfloat16


@pytest.mark.parametrize("amx", [True, False])
def test_cpus_use_bf16_only_with_amx(amx, monkeypatch):
    """With only the bf16 instructions of AVX-512, training is slower than in fp32 (benchmarks/precision.py)."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert fast_dtype(CPU) is (torch.bfloat16 if amx else None)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), torch.bfloat16),
        ((8, 0), torch.bfloat16),
        ((7, 5), torch.float16),
        ((7, 0), torch.float16),
        ((6, 1), None),
    ],
)
def test_gpus_without_bf16_use_fp16_if_it_is_fast(capability, expected, monkeypatch):
    # The test mocks two torch queries to simulate GPU generations.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: capability >= (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert fast_dtype(torch.device("cuda", 0)) is expected
    model = nn.Conv2d(3, 3, 1)
    for amp, dtype in (("auto", expected), ("off", None)):
        assert Precision(ComputeConfig(amp=amp), torch.device("cuda", 0), model, 64).dtype is dtype


@pytest.mark.parametrize(("amp", "fast"), [("auto", True), ("fp16", True), ("off", False)])
def test_fp32_matmuls_use_tf32_on_gpus_unless_amp_is_off(amp, fast):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        set_up_device(ComputeConfig(amp=amp), torch.device("cuda", 0))
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == fast
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        torch.backends.cudnn.benchmark = False


def test_inference_on_a_cpu_is_fp32():
    assert inference_precision(CPU, nn.Conv2d(3, 3, 1), 64) is None
