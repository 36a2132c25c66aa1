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

from tests.support.hosts import Hosts, unavailable_reason
from tests.support.jobs import (
    TRIAL,
    Disconnection,
    disconnect_in_run,
    disconnect_in_study,
    put_dataset,
    repeated,
    skipped,
    trial_path,
)


def row(hosts: Hosts, disconnection: Disconnection, runs: list[str]) -> dict:
    """Return the figures of one job."""
    return {
        "trained_on": sorted({host.name for host in disconnection.before}),
        "cut_off": disconnection.host.name,
        "went_on_on": sorted({host.name for host in disconnection.after}),
        "seconds": round(disconnection.seconds, 1),
        "repeated": sum(repeated(hosts, run) for run in runs),
        "skipped": sum(skipped(hosts, run) for run in runs),
    }


def main() -> None:
    """Print the table and save it."""
    if (reason := unavailable_reason()) is not None:
        raise SystemExit(f"benchmarks/hosts.py: {reason}")
    with tempfile.TemporaryDirectory() as name, Hosts(workers=3) as hosts:
        folder, prefix = Path(name), "landmark/benchmark"
        put_dataset(hosts, folder / "packed")
        trials = [trial_path(prefix, TRIAL)]
        rows = {"study": row(hosts, disconnect_in_study(hosts, prefix, folder / "study.txt"), trials)}
        finished = json.loads(hosts.get(f"s3://{prefix}/study/study.json"))["finished"]
        print((folder / "study.txt").read_text())
        hosts.reconnect()
        rows["run"] = row(hosts, disconnect_in_run(hosts, prefix, folder / "run.txt"), [f"{prefix}/run"])
        print((folder / "run.txt").read_text())
        for job, found in rows.items():
            print(f"{job:6} {found}")
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
