"""Overhead of a study: the same short trials as plain calls, with `landmark tune`, and with a textbook Ray Tune script.

Run: python benchmarks/tune.py [--quick]. The trials differ only in their learning rate: ResNet-18 at 64 px on synthetic
landmarks, one thread each, two at a time, on CPUs. Each way is timed from the start of its processes to their end:
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
from tune_peers import AT_A_TIME

from landmark.commands.prepare import prepare
from landmark.config import PackingConfig, PrepareConfig, SyntheticConfig

SIZE, CLASSES, IMAGES = 64, 10, 430
"""Pixels, landmarks, and images of all splits: about 300 are training images."""
RATES = (0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.002)
RECIPE = {
    "epochs": 3,
    "model": {"backbone": "resnet18"},
    "optimizer": {"name": "sgd"},
    "schedule": {"name": "constant"},
    "loader": {"image_size": SIZE, "batch_size": 32, "decode_threads": 1},
    "compute": {"amp": "off"},
}
PEERS = str(ROOT / "benchmarks" / "tune_peers.py")


class Contest:
    """The three ways on the same trials. Each turn has its own folder."""

    def __init__(self, folder: Path, rates: tuple[float, ...]) -> None:
        self.folder = folder
        self.dataset = str(folder / "dataset")
        self.rates = rates
        drawn = SyntheticConfig(classes=CLASSES, images=IMAGES, image_size=80, tail=0.0)
        prepare(
            PrepareConfig(
                output=self.dataset, source="synthetic", synthetic=drawn, packing=PackingConfig(short_side=80)
            )
        )
        ray.shutdown()

    def job(self, output: Path) -> str:
        """Write the trials in the format of the peers. Returns the file."""
        output.mkdir(parents=True)
        trials = {
            f"trial{number}": {**RECIPE, "optimizer": {**RECIPE["optimizer"], "lr": rate}}
            for number, rate in enumerate(self.rates, 1)
        }
        values = {"dataset": self.dataset, "classes": CLASSES, "output": str(output), "trials": trials}
        file = output / "job.json"
        file.write_text(json.dumps(values))
        return str(file)

    def plain(self, output: Path) -> float:
        """Return the seconds of the plain calls."""
        parts, job = str(AT_A_TIME), self.job(output)
        return run_together([[sys.executable, PEERS, "plain", job, str(part), parts] for part in range(AT_A_TIME)])[0]

    def ours(self, output: Path) -> tuple[float, dict[str, Any]]:
        """Return the seconds of `landmark tune`, and its study.json."""
        space = {"recipe": RECIPE, "parameters": {"optimizer.lr": {"grid": list(self.rates)}}}
        room = ["--max-concurrent", str(AT_A_TIME), "--workers.cpus", "1", "--cluster.cpus", str(AT_A_TIME)]
        command = tune_command(space, self.dataset, output, "study", *room, "--test", "none")
        seconds, _ = run_together([command])
        return seconds, json.loads((output / "study" / "study.json").read_text())

    def textbook(self, trials: int) -> tuple[float, float]:
        """Return the textbook script's seconds, scaled to all trials, and its seconds for starting Ray."""
        output = self.folder / "textbook"
        seconds, _ = run_together([[sys.executable, PEERS, "textbook", self.job(output), str(trials)]])
        parts = json.loads((output / "times.json").read_text())
        return seconds + parts["fit_s"] * (len(self.rates) / trials - 1), parts["connect_s"]

    def round(self, number: int) -> dict[str, float]:
        """Return the figures of one round."""
        plain_at, ours_at = (self.folder / f"round{number}-{way}" for way in ("plain", "ours"))
        plain_s = self.plain(plain_at) if number % 2 else None
        ours_s, study = self.ours(ours_at)
        plain_s = self.plain(plain_at) if plain_s is None else plain_s
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
            "same_results": self.same(plain_at, ours_at / "study"),
        }

    def same(self, plain: Path, study: Path) -> int:
        """Return how many trials have the same best validation metric in both ways."""
        found = {
            float(row["optimizer.lr"]): float(row["val_top1"])
            for row in csv.DictReader((study / "leaderboard.csv").open())
        }
        runs = [json.loads((plain / f"trial{number}" / "run.json").read_text()) for number in range(1, len(found) + 1)]
        pairs = zip(self.rates, runs, strict=True)
        return sum(math.isclose(found[rate], run["best"]["val_top1"], rel_tol=1e-5) for rate, run in pairs)


def main() -> None:
    """Print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of fewer trials, two for the textbook script")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "tune.json")
    arguments = parser.parse_args()
    rounds, rates = (1, RATES[:4]) if arguments.quick else (arguments.rounds, RATES)
    with tempfile.TemporaryDirectory() as name:
        contest = Contest(Path(name), rates)
        found = []
        for number in range(rounds):
            found.append(contest.round(number))
            print(", ".join(f"{key} {value:.3g}" for key, value in found[-1].items()), flush=True)
        trials = 2 if arguments.quick else len(rates)
        textbook_s, textbook_ray_start_s = contest.textbook(trials)
    figures = {key: statistics.median(row[key] for row in found) for key in found[0]}
    figures |= {
        "textbook_s": textbook_s,
        "textbook_ray_start_s": textbook_ray_start_s,
        "textbook_over_ours": textbook_s / figures["ours_s"],
        "textbook_trials": trials,
        "trials": len(rates),
        "rounds": rounds,
        "quick": float(arguments.quick),
    }
    print(
        f"{len(rates)} trials, {AT_A_TIME} at a time: plain calls {figures['plain_s']:.1f} s, landmark tune "
        f"{figures['ours_s']:.1f} s (including Ray's start {figures['ray_start_s']:.1f} s), textbook {textbook_s:.1f} s; "
        f"start of a trial {figures['trial_start_s']:.2f} s; {figures['same_results']:.0f} trials with equal results"
    )
    line = json.dumps({key: round(value, 3) for key, value in figures.items()})
    arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
