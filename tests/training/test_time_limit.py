"""Tests runs with a time limit: the schedule, the end, resuming, several ranks, and what the options exclude."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch

import landmark
from landmark.checkpoints.format import read_state
from landmark.cli.commands import COMMANDS
from landmark.commands.status import run_status
from landmark.config import (
    EarlyStoppingConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    ResizingConfig,
    ScheduleConfig,
    Stopped,
    TrainConfig,
    UserError,
)
from landmark.data.dataset import PackedDataset
from landmark.models import build_model
from landmark.search.trials.trial import TuneSession
from landmark.storage import locate
from landmark.training.loop.state import RunState
from landmark.training.loop.time_limit import TimeLimit
from landmark.training.observe.recorder import Recorder
from landmark.training.resume import recorded_config
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.support.ranks import Rank, World
from tests.support.runs import history, small_run

BACKBONE = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [50, 47], "val": [21], "test": [23]}, classes=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("weights") / "start.pt"
    torch.save(build_model(ModelConfig(backbone=BACKBONE), classes=3, image_size=32).state_dict(), place)
    return str(place)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds that a time limit reads, in a list whose only item a test changes."""
    now = [100.0]
    monkeypatch.setattr("landmark.training.loop.time_limit.time.monotonic", lambda: now[0])
    return now


def config(packed: PackedDataset, folder: Path, **changes) -> TrainConfig:
    return small_run(packed, folder, **{"schedule": ScheduleConfig(name="cosine"), **changes})


class Alone(World):
    """A world of one rank."""

    def __init__(self) -> None:
        super().__init__(1)


def test_the_last_validation_fits_into_the_limit(clock: list[float]) -> None:
    limit = TimeLimit(100.0, Alone().members[0], val_rows=20)  # type: ignore[arg-type]
    limit.begin_epoch(0)
    clock[0] += 10
    # 10 images took 10 s. Validating 20 at half the time per image takes 10 s, so 90 s are left for training.
    assert not limit.ends(1, 10) and limit.fraction == pytest.approx(10 / 90)
    clock[0] += 79
    assert not limit.ends(2, 89)
    clock[0] += 1.5
    assert limit.ends(3, 90) and limit.fraction == 1
    again = TimeLimit(100.0, Alone().members[0], val_rows=20)  # type: ignore[arg-type]
    again.begin_epoch(0)
    again.validated(30.0)
    clock[0] += 35
    assert not again.ends(1, 10) and again.fraction == pytest.approx(35 / 70)
    assert again.fits_epoch()
    clock[0] += 6
    assert not again.fits_epoch()  # 59 s are less than another epoch with two validations


def test_a_validation_longer_than_the_limit_leaves_half_of_it(clock: list[float]) -> None:
    limit = TimeLimit(10.0, Alone().members[0], val_rows=10_000)  # type: ignore[arg-type]
    limit.begin_epoch(0)
    clock[0] += 2
    assert not limit.ends(1, 1) and limit.fraction == pytest.approx(2 / 5)


def test_all_ranks_use_the_clock_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark.training.loop.time_limit.SYNC_INTERVAL_STEPS", 2)
    compared: list[int] = []

    def fractions(rank: Rank) -> list[float]:
        limit = TimeLimit(1000.0, rank, val_rows=1)  # type: ignore[arg-type]
        limit.load(100.0 if rank.rank == 0 else 900.0)
        limit.begin_epoch(0)
        found = [limit.fraction]
        limit.load(500.0 if rank.rank == 0 else 2000.0)
        for step in range(1, 7):
            before = limit.fraction
            assert not limit.ends(step, step * 100)
            if limit.fraction != before and rank.rank == 0:
                compared.append(step)
            found.append(round(limit.fraction, 2))
        return [*found, float(limit.fits_epoch())]

    found = World(3).run(fractions)
    assert found[0] == found[1] == found[2]
    assert found[0] == pytest.approx([0.1, *[0.5] * 6, 1.0], abs=0.01)
    assert compared == [1, 3, 5]  # the fraction is the same between two comparisons


def test_slow_steps_are_compared_more_often(clock: list[float]) -> None:
    def ends(rank: Rank) -> list[bool]:
        limit = TimeLimit(100.0, rank, val_rows=1)  # type: ignore[arg-type]
        limit._start, limit._epoch_start, limit._next_step = 100.0, (100.0, 0), 0
        found = []
        for step in range(1, 12):
            rank.all_reduce(torch.zeros(1))  # the ranks' steps are synchronous
            if rank.rank == 0:
                clock[0] = 100.0 + 10 * step
            rank.all_reduce(torch.zeros(1))
            found.append(limit.ends(step, 10_000 * step))
        return found

    # A step takes 10 s. The run ends after the tenth, not after the sixteenth.
    assert World(2).run(ends) == [[False] * 9 + [True] * 2] * 2


def test_the_schedule_follows_the_time_and_the_run_ends_in_an_epoch(
    dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = iter(range(1, 1000))
    monkeypatch.setattr(TimeLimit, "seconds", property(lambda limit: 1.0 * next(reads)))
    found = run_training(config(dataset, tmp_path, minutes=1))
    rows = history(tmp_path)
    # An epoch has 7 steps. The clock is read about 9 times in each: after each step, and around it.
    assert found.epochs_run == len(rows) in (6, 7, 8) and not found.stopped_early
    assert float(rows[-1]["lr"]) < 0.02 * 0.003
    state = read_state(Path(found.run) / found.last_checkpoint)
    assert state["position"] is not None and state["seconds"] > 0
    assert (Path(found.run) / found.last_checkpoint).name == f"epoch-{found.epochs_run:04d}"


def test_a_real_run_trains_for_its_time_and_more_time_continues_it(
    dataset: PackedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(dataset, tmp_path, minutes=0.05)
    first = run_training(settings)
    assert first.epochs_run > 4 and not first.stopped_early  # the number of epochs does not end it
    assert float(history(tmp_path)[-1]["lr"]) < float(history(tmp_path)[0]["lr"])
    assert run_training(dataclasses.replace(settings, resume=True)).finished_before
    longer = run_training(dataclasses.replace(settings, resume=True, minutes=0.1))
    assert longer.epochs_run > first.epochs_run and not longer.finished_before
    capsys.readouterr()
    recorded = recorded_config(locate(longer.run))
    assert recorded is not None
    status = run_status(locate(longer.run), recorded)
    assert f"{longer.epochs_run} epochs in 0.1 minutes" in capsys.readouterr().out and status["epochs"] is None


def test_a_terminated_run_has_its_remaining_time(
    dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(dataset, tmp_path, hours=1.0)
    add = Recorder.add

    def terminate(recorder: Recorder, metrics: dict[str, float]) -> None:
        add(recorder, metrics)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "add", terminate)
    with pytest.raises(Stopped, match="terminated; saved as checkpoints/epoch-0001"):
        run_training(settings)
    monkeypatch.setattr(Recorder, "add", add)
    loaded: list[float] = []
    load = TimeLimit.load

    def with_little_left(limit: TimeLimit, seconds: float) -> None:
        loaded.append(seconds)
        load(limit, 3599.0)

    monkeypatch.setattr(TimeLimit, "load", with_little_left)
    found = run_training(dataclasses.replace(settings, resume=True))
    assert 0 < loaded[0] < 3600 and found.epochs_run >= 1


def test_early_stopping_also_ends_a_run_with_a_time_limit(dataset: PackedDataset, tmp_path: Path) -> None:
    settings = config(
        dataset,
        tmp_path,
        hours=1.0,
        optimizer=OptimizerConfig(name="sgd", lr=1e-12),
        early_stopping=EarlyStoppingConfig(patience=2),
    )
    found = run_training(settings)
    assert found.stopped_early and found.epochs_run == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 5.0, "hours": 1.0}, "minutes and hours are both set; remove one"),
        ({"minutes": 0.0}, "minutes is 0.0; expected above 0"),
        ({"hours": 1.0, "resizing": ResizingConfig(start_size=16)}, "resizing.start_size needs a number of epochs"),
        (
            {
                "minutes": 1.0,
                "epochs": 1,
                "model": ModelConfig(backbone=BACKBONE, weights="w.pt", freeze_backbone=True),
                "probe": ProbeConfig(head="ridge"),
            },
            "minutes is set, but with model.freeze_backbone the probe is the whole run",
        ),
    ],
)
def test_what_excludes_a_time_limit_is_named(dataset: PackedDataset, tmp_path: Path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(dataset, tmp_path, **changes)


def test_epochs_and_a_time_limit_exclude_each_other(dataset: PackedDataset, tmp_path: Path) -> None:
    parser = COMMANDS["train"].parser()
    place = dataset.location.uri
    with pytest.raises(UserError, match="--epochs and --minutes are both given, but a time limit replaces the epochs"):
        parser.parse([place, "--recipe", "modern", "--epochs", "3", "--minutes", "5"])
    with pytest.raises(UserError, match="epochs and hours are both given"):
        landmark.train(place, epochs=3, hours=1, output=tmp_path)
    run_training(config(dataset, tmp_path, minutes=0.01))
    resumed = ["--output", str(tmp_path), "--resume"]
    assert parser.parse([place, *resumed]).minutes == 0.01
    assert parser.parse([place, *resumed, "--epochs", "3"]).minutes is None
    longer = parser.parse([place, *resumed, "--hours", "2"])
    assert (longer.minutes, longer.hours, longer.limit_s) == (None, 2.0, 7200.0)


def test_auto_is_the_recipe_that_fits_the_dataset_with_a_time_limit(dataset: PackedDataset, capsys) -> None:
    parser, place = COMMANDS["train"].parser(), dataset.location.uri
    found = parser.parse([place, "--recipe", "auto"])
    assert found == dataclasses.replace(parser.parse([place, "--recipe", "finetune"]), minutes=10.0)
    assert "recipe: finetune (97 training images, and start weights are installed)" in capsys.readouterr().err
    assert parser.parse([place, "--recipe", "auto", "--hours", "8"]).limit_s == 8 * 3600
    assert parser.parse([place, "--recipe", "auto", "--epochs", "3"]).limit_s is None
    scratch = parser.parse([place, "--recipe", "auto", "--model", "resnet18"])
    assert scratch == dataclasses.replace(
        parser.parse([place, "--recipe", "modern", "--model", "resnet18"]), minutes=10.0
    )


def finetuned(dataset: PackedDataset, weights: str, folder: Path, **changes) -> TrainConfig:
    return config(
        dataset,
        folder,
        model=ModelConfig(backbone=BACKBONE, weights=weights),
        loader=LoaderConfig(image_size=32, batch_size=16, decode_threads=1),
        probe=ProbeConfig(head="logistic"),
        **changes,
    )


def test_fine_tuning_ends_with_the_probe_if_it_is_better(dataset: PackedDataset, weights: str, tmp_path: Path) -> None:
    """An absurd learning rate destroys the model. The probe is epoch 0, and the best checkpoint."""
    settings = finetuned(dataset, weights, tmp_path, optimizer=OptimizerConfig(name="sgd", lr=3.0, nonfinite="skip"))
    found = run_training(dataclasses.replace(settings, epochs=1))
    rows = history(tmp_path)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert found.best["epoch"] == 0 and Path(found.best_checkpoint).name == "epoch-0000"
    assert found.probe["val_top1"] == pytest.approx(float(rows[0]["val_top1"]))
    assert found.best["val_top1"] > float(rows[1]["val_top1"])
    evaluated = landmark.evaluate(found.run, split="val", options={"bootstrap": 20})
    assert evaluated.metrics["top1"] == pytest.approx(found.best["val_top1"])


def test_a_run_that_ends_after_the_probe_resumes_with_it(
    dataset: PackedDataset, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = finetuned(dataset, weights, tmp_path, hours=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(TimeLimit, "fits_epoch", lambda limit: False)
        found = run_training(settings)
    assert found.epochs_run == 0 and found.best["epoch"] == 0 and not found.stopped_early
    fitted: list[bool] = []
    monkeypatch.setattr("landmark.training.probe.start.fit_probe", lambda *_: fitted.append(True))
    again = run_training(dataclasses.replace(settings, resume=True, hours=None, minutes=None, epochs=1))
    assert again.epochs_run == 1 and not fitted


def test_trials_do_not_report_the_probe(dataset: PackedDataset, weights: str, tmp_path: Path) -> None:
    """Schedulers count a trial's reports as epochs, which start at 1."""
    assert TuneSession.reports_probe is False
    settings = finetuned(dataset, weights, tmp_path, epochs=1)

    def reports(rank: Rank) -> list[float]:
        from landmark.training.loop.fit import _start_at_probe
        from landmark.training.loop.loaders import training_loader

        found: list[float] = []
        rank.heartbeat = lambda phase: None  # type: ignore[attr-defined]
        rank.checkpoint_requested = lambda: False  # type: ignore[attr-defined]
        rank.report = lambda metrics, snapshot: found.append(metrics["epoch"])  # type: ignore[attr-defined]
        for rank.reports_probe in (False, True):
            run = RunState(settings, dataset, rank)  # type: ignore[arg-type]
            _start_at_probe(run, training_loader(settings, dataset, 1), None)
        return found

    assert World(1).run(reports) == [[0]]
