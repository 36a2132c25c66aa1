"""Decisions of Ray Tune's schedulers compared with the rules that landmark had before, and the time to rebuild them.

Run: python benchmarks/decisions.py [--seeds N] [--journals FOLDER …]. No model is trained. A simulated study has 200 trials
of 27 epochs, eight at a time; its metric is a saturating curve per trial with noise. Both kinds of rules get the same curves
and the same order of reports, until they decide differently. `different` counts the decisions (per trial and epoch, in both
studies) that are not equal. `epochs` is the fraction of the full grid's epochs that ran. `regret` is the best final level of
all trials minus the final level of the trial that the study ranks first.

`hyperband_plain` is Ray Tune's own HyperBandScheduler without landmark's changes, by import path. `--journals` are folders
of recorded ASHA studies of the earlier versions, such as those of benchmarks/search.py: their reports are replayed, and
every recorded decision is compared. `rebuild` is the time to restore a study from a journal, with the record and all
comparisons. The last line is JSON, saved to benchmarks/results/decisions.json.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))

from landmark.config import SchedulerConfig, SpaceConfig, parse_yaml
from landmark.search.schedulers.build import build_scheduler
from landmark.search.spaces.space import Space
from landmark.search.state.journal import Journal
from landmark.search.state.state import StudyState
from landmark.storage import locate
from tests.support.earlier_schedulers import build_earlier
from tests.support.simulated_study import SimulatedStudy, decided, learning_curves

TRIALS, EPOCHS, SLOTS = 200, 27, 8
CONFIGS = {
    "asha": SchedulerConfig(name="asha"),
    "median": SchedulerConfig(name="median_stopping"),
    "hyperband": SchedulerConfig(name="hyperband"),
}
PLAIN = SchedulerConfig(name="ray.tune.schedulers:HyperBandScheduler")


def simulate(
    config: SchedulerConfig, seed: int, trials: int = TRIALS, build: Callable[..., Any] = build_scheduler
) -> list[dict]:
    """Return the events of a simulated study."""
    events: list[dict] = []
    study = SimulatedStudy(config, trials, events, epochs=EPOCHS, max_epochs=EPOCHS, build=build)
    study.run(learning_curves(trials, EPOCHS, seed), SLOTS, random.Random(seed))
    return events


def outcome(events: list[dict], seed: int) -> tuple[float, float]:
    """Return the fraction of the grid's epochs that ran, and the regret of the best trial."""
    reports = [event for event in events if event["event"] == "report"]
    best = max(reports, key=lambda event: event["row"]["val_top1"])["trial"]
    final = {
        trial: value for (trial, epoch), value in learning_curves(TRIALS, EPOCHS, seed, 0).items() if epoch == EPOCHS
    }
    return len(reports) / (TRIALS * EPOCHS), max(final.values()) - final[int(best)]


def different(first: list[dict], second: list[dict]) -> tuple[int, int]:
    """Return the number of decisions of both studies together, and how many of them differ."""
    one, two = decided(first), decided(second)
    keys = one.keys() | two.keys()
    return len(keys), sum(one.get(key) != two.get(key) for key in keys)


def compare(name: str, seeds: int) -> dict[str, float]:
    """Return the figures of a scheduler, over all seeds."""
    totals, rows = [0, 0], []
    for seed in range(seeds):
        earlier, now = simulate(CONFIGS[name], seed, build=build_earlier), simulate(CONFIGS[name], seed)
        count, unequal = different(earlier, now)
        totals = [totals[0] + count, totals[1] + unequal]
        rows.append([*outcome(earlier, seed), *outcome(now, seed)])
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    keys = ("earlier_epochs", "earlier_regret", "epochs", "regret")
    figures = {f"{name}_decisions": totals[0], f"{name}_different": totals[1]}
    return figures | {f"{name}_{key}": mean for key, mean in zip(keys, means, strict=True)}


def rebuild_seconds(
    config: SchedulerConfig, seed: int, kinds: tuple[str, ...], most: int, trials: int = TRIALS
) -> tuple[int, float]:
    """Return the number of events of these kinds in a part of a journal, at most `most`, and the seconds to restore it."""
    events, part, found = simulate(config, seed, trials), [], 0
    for event in events:
        if event["event"] in kinds:
            found += 1
        if found > most:
            break
        part.append(event)
    times = []
    for _ in range(5):
        start = time.process_time()
        SimulatedStudy(config, trials, part, epochs=EPOCHS, max_epochs=EPOCHS)
        times.append(time.process_time() - start)
    return min(found, most), statistics.median(times)


def replay_journal(folder: Path) -> int:
    """Compare all recorded decisions of an ASHA study; returns their number. Raises UserError at a difference."""
    text = (folder / "space.yaml").read_text()
    space = Space(parse_yaml(SpaceConfig, text, str(folder)), str(folder), text)
    epochs = max(int(point.get("epochs", space.recipe().epochs)) for point in space.points)
    events = list(Journal(locate(folder)).read())
    for event in events:
        if event["event"] == "driver":
            event["scheduler"] = "the earlier version"
    record = StudyState()
    rule = build_scheduler(
        record,
        space.config.scheduler,
        space.config.metric,
        space.config.mode(),
        max_epochs=epochs,
        seed=0,
        exploit=print,
    )
    record.restore(events, lambda number, point: space.plan(number, point, space.recipe()), rule.replay)
    return sum(event["event"] == "decision" for event in events)


def main() -> None:
    """Print the table and the figures, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--journals", type=Path, nargs="*", default=[], help="folders of recorded ASHA studies")
    arguments = parser.parse_args()
    figures: dict[str, float] = {"trials": TRIALS, "epochs": EPOCHS, "seeds": arguments.seeds}
    print(
        f"{'scheduler':12}{'decisions':>10}{'different':>10}{'epochs before':>15}{'now':>7}{'regret before':>15}{'now':>7}"
    )
    for name in CONFIGS:
        found = compare(name, arguments.seeds)
        figures |= found
        print(
            f"{name:12}{found[f'{name}_decisions']:>10}{found[f'{name}_different']:>10}{found[f'{name}_earlier_epochs']:>15.1%}"
            f"{found[f'{name}_epochs']:>7.1%}{found[f'{name}_earlier_regret']:>15.2%}{found[f'{name}_regret']:>7.2%}"
        )
    plain = [outcome(simulate(PLAIN, seed), seed) for seed in range(arguments.seeds)]
    figures |= {
        "hyperband_plain_epochs": statistics.mean(epochs for epochs, _ in plain),
        "hyperband_plain_regret": statistics.mean(regret for _, regret in plain),
    }
    print(
        f"hyperband, Ray Tune's class: {figures['hyperband_plain_epochs']:.1%} of the epochs, "
        f"regret {figures['hyperband_plain_regret']:.2%}"
    )
    figures["asha_events"], figures["asha_rebuild_s"] = rebuild_seconds(
        CONFIGS["asha"], 0, ("trial", "report", "ended"), 970
    )
    figures["hyperband_reports"], figures["hyperband_rebuild_s"] = rebuild_seconds(
        CONFIGS["hyperband"], 0, ("report",), 366
    )
    for name, kind in (("asha", "events"), ("hyperband", "reports")):
        print(f"{name}: {figures[f'{name}_{kind}']} {kind} rebuilt in {figures[f'{name}_rebuild_s']:.3f} s")
    if arguments.journals:
        figures["recorded_decisions"] = sum(map(replay_journal, arguments.journals))
        print(f"{figures['recorded_decisions']} decisions of {len(arguments.journals)} recorded journals are equal")
    line = json.dumps({key: round(value, 5) for key, value in figures.items()})
    Path(__file__).with_name("results").joinpath("decisions.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
