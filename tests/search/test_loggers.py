"""Tests that loggers such as MLflow and TensorBoard never stop, slow down or silence a study."""

import dataclasses
import threading

import pytest

from landmark.config import TuneConfig, UserError
from landmark.search import loggers
from landmark.storage import locate
from tests.support.event_files import read_events, run_script
from tests.support.mlflow_server import MLflowServer
from tests.support.seaweed import free_ports


@dataclasses.dataclass(frozen=True)
class Trial:
    """The attributes of a trial that Ray's callbacks read."""

    name: str

    @property
    def config(self) -> dict:
        return {"trial": {"name": self.name, "dataset": "ftp://me:secret@host/photos"}}

    evaluated_params = {"lr": 0.1}

    def __str__(self) -> str:
        return self.name


class Messages:
    """Messages of a tracker, with a way to wait for one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.changed = threading.Condition()

    def __call__(self, line: str) -> None:
        with self.changed:
            self.lines.append(line)
            self.changed.notify_all()

    def wait_for(self, text: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: any(text in line for line in self.lines), 60), self.lines


def config(**changes) -> TuneConfig:
    return TuneConfig(dataset="d", space="demo", name="study", **{"tensorboard": False, **changes})


def report_epochs(tracker, trial: Trial, epochs: range) -> None:
    for epoch in epochs:
        tracker.on_trial_result(1, [], trial, {"val_top1": epoch / 10, "timesteps_total": epoch, "note": "text"})


def steps(server: MLflowServer, trial: str) -> list[int]:
    run = next(run for run in server.runs.values() if run["tags"]["trial_name"] == trial)
    return [step for key, step, _ in run["metrics"] if key == "val_top1"]


def test_a_server_may_be_down_at_the_start_and_stop_later(tmp_path):
    server = MLflowServer(free_ports(1)[0])
    settings = config(mlflow=server.uri.replace("//", "//me:secret@"))
    loggers.check_loggers(settings)
    messages = Messages()
    (tracker,) = loggers.logger_callbacks(settings, locate(tmp_path), messages)
    first, second = Trial("001"), Trial("002")
    tracker.setup()
    tracker.on_trial_start(1, [], first)
    report_epochs(tracker, first, range(1, 3))
    messages.wait_for("entries are queued until it works again")
    server.start()
    messages.wait_for("works again; the queued entries are written")
    server.stop()
    report_epochs(tracker, first, range(3, 5))
    tracker.on_trial_complete(1, [], first)
    tracker.on_trial_start(1, [], second)
    with messages.changed:
        assert messages.changed.wait_for(lambda: len(messages.lines) == 3, 60), messages.lines
    server.start()
    report_epochs(tracker, second, range(1, 6))
    tracker.on_experiment_end([])
    server.stop()
    assert steps(server, "001") == [1, 2, 3, 4] and steps(server, "002") == [1, 2, 3, 4, 5]
    assert [run["status"] for run in server.runs.values()] == ["FINISHED", "RUNNING"]
    (params,) = {run["params"]["trial/dataset"] for run in server.runs.values()}
    assert params == "ftp://host/photos"
    assert len(messages.lines) == 4 and "secret" not in "".join(messages.lines)


def test_a_server_that_never_answers_is_given_up_at_the_end(tmp_path):
    settings = config(mlflow=f"http://127.0.0.1:{free_ports(1)[0]}")
    messages = Messages()
    (tracker,) = loggers.logger_callbacks(settings, locate(tmp_path), messages)
    tracker.setup()
    tracker.on_trial_start(1, [], Trial("001"))
    report_epochs(tracker, Trial("001"), range(1, 4))
    tracker.on_experiment_end([])
    assert len(messages.lines) == 2
    assert messages.lines[1].endswith("6 entries could not be written; the results on disk contain all of them")


def test_a_refused_entry_does_not_block_the_others(tmp_path):
    server = MLflowServer(free_ports(1)[0])
    server.start()
    server.refused.add("note_of_nobody")
    messages = Messages()
    (tracker,) = loggers.logger_callbacks(config(mlflow=server.uri), locate(tmp_path), messages)
    trial = Trial("001")
    tracker.setup()
    tracker.on_trial_start(1, [], trial)
    tracker.on_trial_result(1, [], trial, {"note_of_nobody": 1.0, "timesteps_total": 1})
    report_epochs(tracker, trial, range(2, 4))
    tracker.on_experiment_end([])
    server.stop()
    assert steps(server, "001") == [2, 3]
    assert len(messages.lines) == 2 and "an entry was dropped" in messages.lines[0]


def test_uris_that_mlflow_does_not_support(tmp_path):
    with pytest.raises(UserError, match=r"--mlflow s3://bucket/x: MLflow does not support this URI; expected a folder"):
        loggers.check_loggers(config(mlflow="s3://bucket/x"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--mlflow .*file/below: Not a directory; choose a writable folder"):
        loggers.check_loggers(config(mlflow=str(tmp_path / "file" / "below")))


FULL_DISK = """
import resource, sys
from landmark.search.loggers import logger_callbacks
from landmark.storage import locate
from tests.search.test_loggers import Messages, Trial, config, report_epochs
messages = Messages()
(tracker,) = logger_callbacks(config(tensorboard=True), locate(sys.argv[1]), messages)
trial = Trial("001")
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
tracker.setup()
tracker.on_trial_start(1, [], trial)
report_epochs(tracker, trial, range(1, 50))
messages.wait_for("File too large; entries are queued")
resource.setrlimit(resource.RLIMIT_FSIZE, before)
report_epochs(tracker, trial, range(50, 100))
tracker.on_trial_complete(1, [], trial)
tracker.on_experiment_end([])
assert len(messages.lines) == 2 and "works again" in messages.lines[1], messages.lines
"""


def test_tensorboard_continues_when_a_full_disk_has_space_again(tmp_path):
    done = run_script(FULL_DISK, tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = [event for file in sorted((tmp_path / "001").iterdir()) for event in read_events(file)]
    assert [event.step for event in found if event.summary.value[0].tag == "ray/tune/val_top1"] == list(range(1, 100))
