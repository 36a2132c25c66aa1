"""Overhead of a study: the same short trials as plain calls, with `landmark tune`, and with a textbook Ray Tune script.

Run: python benchmarks/tune.py [--quick]. The trials differ only in their learning rate: ResNet-18 at 64 px on synthetic
landmarks, one thread each, two at a time, on CPUs. Each method is timed from the start of its processes to their end:
- plain: two processes that import torch once and call run_training for their half of the trials, in sequence;
- ours: the command `landmark tune`, which starts Ray; that start is also timed separately;
- textbook: a Ray Tune function that builds a TorchTrainer with Ray Data (benchmarks/tune_peers.py). It runs once, on a
cluster with more logical CPUs, because its data tasks would otherwise never start. With --quick it runs fewer trials,
and their time is scaled to all: textbook_trials is the number of trials that ran. plain and ours alternate, and also
alternate in which is first. Ratios are medians over rounds. Both train the same: same_results counts the trials with
equal validation metrics. The last line is JSON, saved to benchmarks/results/tune.json.
"""

import argparse
import csv
import json
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(
    OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="",
    RAY_worker_niceness="0",  # as the plain calls' processes; Ray's default of 15 loses CPU time to others
)  # fmt: skip

import ray
from studies import run_together, tune_command
from tune_peers import MAX_CONCURRENT

from landmark.commands.prepare import prepare
from landmark.config import PackingConfig, PrepareConfig, SyntheticConfig

SIZE, CLASSES, IMAGES = 64, 10, 430
"""Pixels, landmarks, and images of all splits: about 300 are training images."""
LEARNING_RATES = (0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.002)
RECIPE = {
    "epochs": 3,
    "model": {"backbone": "resnet18"},
    "optimizer": {"name": "sgd"},
    "schedule": {"name": "constant"},
    "loader": {"image_size": SIZE, "batch_size": 32, "decode_threads": 1},
    "compute": {"amp": "off"},
}
PEERS = str(ROOT / "benchmarks" / "tune_peers.py")


class Comparison:
    """The three methods on the same trials. Each turn has its own folder."""

    def __init__(self, folder: Path, learning_rates: tuple[float, ...]) -> None:
        self.folder = folder
        self.dataset = str(folder / "dataset")
        self.learning_rates = learning_rates
        synthetic = SyntheticConfig(classes=CLASSES, images=IMAGES, image_size=80, tail=0.0)
        prepare(
            PrepareConfig(
                output=self.dataset, source="synthetic", synthetic=synthetic, packing=PackingConfig(short_side=80)
            )
        )
        ray.shutdown()

    def job(self, output: Path) -> str:
        """Write the trials in the format of the peers. Returns the file."""
        output.mkdir(parents=True)
        trials = {
            f"trial{number}": {**RECIPE, "optimizer": {**RECIPE["optimizer"], "lr": learning_rate}}
            for number, learning_rate in enumerate(self.learning_rates, 1)
        }
        values = {"dataset": self.dataset, "classes": CLASSES, "output": str(output), "trials": trials}
        file = output / "job.json"
        file.write_text(json.dumps(values))
        return str(file)

    def plain(self, output: Path) -> float:
        """Return the seconds of the plain calls."""
        parts, job = str(MAX_CONCURRENT), self.job(output)
        return run_together(
            [[sys.executable, PEERS, "plain", job, str(part), parts] for part in range(MAX_CONCURRENT)]
        )[0]

    def landmark_tune(self, output: Path) -> tuple[float, dict[str, Any]]:
        """Return the seconds of `landmark tune`, and its study.json."""
        space = {"recipe": RECIPE, "parameters": {"optimizer.lr": {"grid": list(self.learning_rates)}}}
        flags = ["--max-concurrent", str(MAX_CONCURRENT), "--workers.cpus", "1", "--cluster.cpus", str(MAX_CONCURRENT)]
        command = tune_command(space, self.dataset, output, "study", *flags, "--test", "none")
        seconds, _ = run_together([command])
        return seconds, json.loads((output / "study" / "study.json").read_text())

    def textbook(self, trials: int) -> tuple[float, float]:
        """Return the textbook script's seconds, scaled to all trials, and its seconds for starting Ray."""
        output = self.folder / "textbook"
        seconds, _ = run_together([[sys.executable, PEERS, "textbook", self.job(output), str(trials)]])
        parts = json.loads((output / "times.json").read_text())
        return seconds + parts["fit_s"] * (len(self.learning_rates) / trials - 1), parts["connect_s"]

    def round(self, number: int) -> dict[str, float]:
        """Return the figures of one round."""
        plain_folder, landmark_folder = (self.folder / f"round{number}-{method}" for method in ("plain", "ours"))
        plain_s = self.plain(plain_folder) if number % 2 else None
        ours_s, study = self.landmark_tune(landmark_folder)
        plain_s = self.plain(plain_folder) if plain_s is None else plain_s
        ray_start_s = float(run_together([[sys.executable, PEERS, "connect"]])[1][0])
        timing = study["timing"]
        return {
            "plain_s": plain_s,
            "ours_s": ours_s,
            "ray_start_s": ray_start_s,
            "over_plain": ours_s / plain_s,
            "over_plain_after_ray_start": (ours_s - ray_start_s) / plain_s,
            "first_step_s": timing["command_to_first_step_s"],
            "trial_start_s": timing["between_trials_s"]["median"],
            "trial_start_max_s": timing["between_trials_s"]["max"],
            "same_results": self.same(plain_folder, landmark_folder / "study"),
        }

    def same(self, plain: Path, study: Path) -> int:
        """Return how many trials have the same best validation metric with both methods."""
        found = {
            float(row["optimizer.lr"]): float(row["val_top1"])
            for row in csv.DictReader((study / "leaderboard.csv").open())
        }
        runs = [json.loads((plain / f"trial{number}" / "run.json").read_text()) for number in range(1, len(found) + 1)]
        pairs = zip(self.learning_rates, runs, strict=True)
        return sum(
            math.isclose(found[learning_rate], run["best"]["val_top1"], rel_tol=1e-5) for learning_rate, run in pairs
        )


def main() -> None:
    """Print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of fewer trials, two for the textbook script")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "tune.json")
    arguments = parser.parse_args()
    rounds, learning_rates = (1, LEARNING_RATES[:4]) if arguments.quick else (arguments.rounds, LEARNING_RATES)
    with tempfile.TemporaryDirectory() as name:
        comparison = Comparison(Path(name), learning_rates)
        found = []
        for number in range(rounds):
            found.append(comparison.round(number))
            print(", ".join(f"{key} {value:.3g}" for key, value in found[-1].items()), flush=True)
        trials = 2 if arguments.quick else len(learning_rates)
        textbook_s, textbook_ray_start_s = comparison.textbook(trials)
    figures = {key: statistics.median(row[key] for row in found) for key in found[0]}
    figures |= {
        "textbook_s": textbook_s,
        "textbook_ray_start_s": textbook_ray_start_s,
        "textbook_over_ours": textbook_s / figures["ours_s"],
        "textbook_trials": trials,
        "trials": len(learning_rates),
        "rounds": rounds,
        "quick": float(arguments.quick),
    }
    print(
        f"{len(learning_rates)} trials, {MAX_CONCURRENT} at a time: plain calls {figures['plain_s']:.1f} s, "
        f"landmark tune {figures['ours_s']:.1f} s (including Ray's start {figures['ray_start_s']:.1f} s), "
        f"textbook {textbook_s:.1f} s; start of a trial {figures['trial_start_s']:.2f} s; "
        f"{figures['same_results']:.0f} trials with equal results"
    )
    line = json.dumps({key: round(value, 3) for key, value in figures.items()})
    arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
