"""What to train: all weights, low-rank updates, norms and biases, the last stages, only the classifier; and distillation.

Run: python benchmarks/tuning.py [--seeds 1] [--only all lora …] [--output FOLDER]. The photographs are `monuments` in
LANDMARK_TEST_DATA (2,939 of 24 monuments). Every run starts at the probe of EfficientNet-Lite0's ImageNet weights, with the
recipe `finetune` at 128 px for three epochs, so that a run takes minutes. The learning rates are those of the recipe, and
0.001 for lora and norm_bias; they were not tuned. distill adds the loss of a teacher, the recipe `probe` at 256 px.
from_scratch and from_scratch_distill are a ResNet-18 with the recipe `modern` at 64 px for ten epochs, without and with that
teacher. Completed runs are reused. The last line is JSON, saved to benchmarks/results/tuning.json. Figures of methods that
were not run are kept.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

from monuments import pack_monuments
from seeds import format_mean, mean_and_deviation
from transfer import SHORT_SIDE, train

from landmark.config import DistillConfig, ModelConfig, Recipe
from landmark.data.dataset import PackedDataset
from landmark.models import count_parameters
from landmark.recipes import load_recipe

RESULTS = Path(__file__).with_name("results") / "tuning.json"
METHODS = (
    "probe", "all", "lora", "norm_bias", "last_stages", "distill", "from_scratch", "from_scratch_distill",
)  # fmt: skip
RATES = {"all": 1e-4, "lora": 1e-3, "norm_bias": 1e-3, "last_stages": 1e-4, "distill": 1e-4}
LAST_STAGES = 5
"""Stages that are frozen with last_stages, of nine."""


def recipe_of(method: str, teacher: str) -> Recipe:
    """Return the recipe of a method."""
    if method.startswith("from_scratch"):
        base = load_recipe("modern")
        base = dataclasses.replace(
            base,
            epochs=10,
            model=dataclasses.replace(base.model, backbone="resnet18"),
            loader=dataclasses.replace(base.loader, image_size=64),
        )
    else:
        base = load_recipe("probe" if method == "probe" else "finetune")
        base = dataclasses.replace(base, loader=dataclasses.replace(base.loader, image_size=128))
    if method in RATES:
        changes: dict[str, Any] = {"tuning": method} if method in ("lora", "norm_bias") else {}
        if method == "last_stages":
            changes = {"freeze_stages": LAST_STAGES}
        model: ModelConfig = dataclasses.replace(base.model, **changes)
        optimizer = dataclasses.replace(base.optimizer, lr=RATES[method])
        base = dataclasses.replace(base, epochs=3, model=model, optimizer=optimizer)
    return dataclasses.replace(base, distill=DistillConfig(teachers=(teacher,))) if "distill" in method else base


def main() -> None:
    """Print the table and the figures, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"), help="folder for dataset and runs")
    arguments = parser.parse_args()
    dataset = PackedDataset.open(pack_monuments(arguments.output / "dataset", SHORT_SIDE))
    if any("distill" in method for method in arguments.only):
        train("probe", load_recipe("probe"), 0, dataset, arguments.output)
    teacher = str(arguments.output / "probe-0")
    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    print(f"{'method':24}{'trained weights':>18}{'val top-1':>18}{'test top-1':>18}{'ece':>18}{'s/run':>9}")
    for method in arguments.only:
        recipe = recipe_of(method, teacher)
        found = [train(f"tuning-{method}", recipe, seed, dataset, arguments.output) for seed in range(arguments.seeds)]
        size = recipe.loader.image_size
        counts = count_parameters(recipe.model, classes=dataset.num_classes, image_size=size)
        cells = {key: mean_and_deviation([run[key] for run in found]) for key in ("val_top1", "top1", "ece")}
        seconds = sum(run["seconds"] for run in found) / len(found)
        shown = "".join(f"{format_mean(*cell):>18}" for cell in cells.values())
        print(f"{method:24}{counts.trainable:>18,}{shown}{seconds:>9.0f}", flush=True)
        figures[method] = {key: round(mean, 4) for key, (mean, _) in cells.items()}
        figures[method] |= {"trained": counts.trainable, "seconds": round(seconds, 1), "seeds": len(found)}
    line = json.dumps(figures)
    RESULTS.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
