"""Several hosts on one machine, and the cost of an unreachable host: a study of 2-worker trials and a run, by job.

Run, as root: python benchmarks/hosts.py. Network namespaces on a bridge contain a Ray head, three workers with one CPU
each, a bucket (SeaweedFS) and the host that submits jobs (tests/support/hosts.py). In each job, the link of one of the two
training hosts goes down in the second of two epochs. `seconds` is the time from then until the next training step, on
another pair of hosts. With the settings of tests/support/hosts.py, Ray needs up to 9 s of it to detect an unreachable host.
`repeated`: samples that were used again; `skipped`: samples that were never used. The last line is JSON, saved to
benchmarks/results/hosts.json.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))

from tests.support.hosts import Hosts, missing
from tests.support.jobs import TRIAL, Cut, cut_in_run, cut_in_study, put_dataset, repeated, skipped, trial_path


def row(hosts: Hosts, cut: Cut, runs: list[str]) -> dict:
    """Return the figures of one job."""
    return {
        "trained_on": sorted({host.name for host in cut.before}),
        "cut_off": cut.host.name,
        "went_on_on": sorted({host.name for host in cut.after}),
        "seconds": round(cut.seconds, 1),
        "repeated": sum(repeated(hosts, run) for run in runs),
        "skipped": sum(skipped(hosts, run) for run in runs),
    }


def main() -> None:
    """Print the table and save it."""
    if (reason := missing()) is not None:
        raise SystemExit(f"benchmarks/hosts.py: {reason}")
    with tempfile.TemporaryDirectory() as name, Hosts(workers=3) as hosts:
        folder, place = Path(name), "landmark/benchmark"
        put_dataset(hosts, folder / "packed")
        trials = [trial_path(place, TRIAL)]
        rows = {"study": row(hosts, cut_in_study(hosts, place, folder / "study.txt"), trials)}
        finished = json.loads(hosts.get(f"s3://{place}/study/study.json"))["finished"]
        print((folder / "study.txt").read_text())
        hosts.mend()
        rows["run"] = row(hosts, cut_in_run(hosts, place, folder / "run.txt"), [f"{place}/run"])
        print((folder / "run.txt").read_text())
        for what, found in rows.items():
            print(f"{what:6} {found}")
        figures = {
            "hosts": len(hosts.workers),
            "trials": finished,
            "seconds_to_recover": rows["study"]["seconds"],
            "samples_skipped": sum(found["skipped"] for found in rows.values()),
            **rows,
        }
    line = json.dumps(figures)
    Path(__file__).with_name("results").joinpath("hosts.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
