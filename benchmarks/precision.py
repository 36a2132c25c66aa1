"""Half precision on CPUs: images/s of training and of inference in fp32 and in bf16 autocast.

Run: python benchmarks/precision.py [--seconds 6]. For each model, both take turns, and the medians count. The last line is
JSON, saved to benchmarks/results/precision.json: bf16_over_fp32 is the ratio of the images/s in training. `compute.amp auto`
uses bf16 on a CPU only with AMX.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import torch
from torch.nn.functional import cross_entropy

from landmark.config import ModelConfig
from landmark.models import build_model, train_mode
from landmark.training.compute.memory import disable_malloc_trim

CASES = (("timm/tf_efficientnet_lite0", 224, 32), ("resnet18", 224, 32), ("resnet18", 80, 32), ("resnet50", 224, 16))
CLASSES = 24
RESULTS = Path(__file__).with_name("results") / "precision.json"


def rates(name: str, size: int, images: int, seconds: float) -> dict[str, float]:
    """Return the images/s of training and inference in both precisions."""
    model = build_model(ModelConfig(backbone=name), classes=CLASSES, image_size=size).to(
        memory_format=torch.channels_last
    )
    inputs = torch.randn(images, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (images,))
    found: dict[str, list[float]] = {}
    end = time.perf_counter() + seconds
    first = True
    while first or time.perf_counter() < end:
        for dtype in ("fp32", "bf16"):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
                train_mode(model)
                start = time.perf_counter()
                loss = cross_entropy(model(inputs).float(), labels)
                loss.backward()
                train_s = time.perf_counter() - start
                model.eval()
                start = time.perf_counter()
                with torch.no_grad():
                    model(inputs)
                inference_s = time.perf_counter() - start
            if not first:
                found.setdefault(f"train_{dtype}", []).append(images / train_s)
                found.setdefault(f"inference_{dtype}", []).append(images / inference_s)
        if first:
            end, first = time.perf_counter() + seconds, False
    return {key: statistics.median(values) for key, values in found.items()}


def main() -> None:
    """Print the table and the figures, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds per model")
    seconds = parser.parse_args().seconds
    disable_malloc_trim()
    names = ("train_fp32", "train_bf16", "inference_fp32", "inference_bf16")
    amx = torch.cpu._is_amx_tile_supported()
    print(f"CPU with AMX: {amx}, AVX-512 bf16: {torch.cpu._is_avx512_bf16_supported()}; images/s")
    print(f"{'model':30}{'px':>5}" + "".join(f"{name:>16}" for name in names))
    figures: dict[str, float] = {}
    for name, size, images in CASES:
        row = rates(name, size, images, seconds)
        print(f"{name:30}{size:>5}" + "".join(f"{row[key]:>16.1f}" for key in names), flush=True)
        figures[f"{name.removeprefix('timm/')}_{size}"] = round(row["train_bf16"] / row["train_fp32"], 3)
    result = {"amx": amx, "bf16_over_fp32": figures}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
