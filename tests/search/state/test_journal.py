"""Tests the state of a study: the journal, its restoration, failed trials, and budgets over all driver processes."""

import dataclasses

import pytest

from landmark.config import BudgetConfig, Recipe, UserError
from landmark.search.budget import BudgetStopper
from landmark.search.spaces.space import TrialSpec
from landmark.search.state.journal import SEGMENT_EVENTS, Journal
from landmark.search.state.state import ERROR, FIRST_STEP, REPORTED, TAKEN, WEIGHTS, Exploit, StudyState
from landmark.storage import Location, TransientStorageError, locate


def plan_of(number: int, point: dict) -> TrialSpec:
    recipe = Recipe(epochs=4)
    return TrialSpec(
        number=number, name=f"{number:03d}", point=point, parameters=dict(point), recipe=recipe, dataset=None
    )


def result(epoch: int, value: float, at: float) -> dict:
    times = {FIRST_STEP: 5.0, REPORTED: at, WEIGHTS: 123, "pid": 7, "hostname": "h"}
    return {"epoch": epoch, "val_top1": value, "epoch_seconds": 1.0, **times}


def test_events_are_read_in_order_from_files_of_bounded_size(tmp_path):
    for driver in range(3):
        journal = Journal(locate(tmp_path))
        for number in range(SEGMENT_EVENTS + 10):
            journal.add("e", driver=driver, number=number)
        journal.flush()
    events = list(Journal(locate(tmp_path)).read())
    assert [(e["driver"], e["number"]) for e in events] == [
        (driver, number) for driver in range(3) for number in range(SEGMENT_EVENTS + 10)
    ]
    sizes = [len(path.read_text().splitlines()) for path in (tmp_path / "journal").iterdir()]
    assert len(sizes) == 6 and max(sizes) == SEGMENT_EVENTS


def test_events_are_kept_while_storage_is_unavailable(tmp_path, monkeypatch, capsys):
    journal = Journal(locate(tmp_path))
    writes = Location.write_text

    def unavailable(self: Location, text: str) -> None:
        raise TransientStorageError(f"{self}: no answer")

    monkeypatch.setattr(Location, "write_text", unavailable)
    for number in range(SEGMENT_EVENTS + 10):
        journal.add("e", number=number)
    journal.flush()
    assert "no answer; the study keeps its events" in capsys.readouterr().err
    with pytest.raises(TransientStorageError):
        journal.flush(final=True)
    monkeypatch.setattr(Location, "write_text", writes)
    journal.add("e", number=SEGMENT_EVENTS + 10)
    journal.flush(final=True)
    assert [event["number"] for event in Journal(locate(tmp_path)).read()] == list(range(SEGMENT_EVENTS + 11))


def test_a_corrupt_line_is_reported(tmp_path):
    journal = Journal(locate(tmp_path))
    journal.add("a")
    journal.flush()
    (tmp_path / "journal" / "00001.jsonl").write_text('{"event": "a"}\n{"eve')
    with pytest.raises(UserError, match="00001.jsonl: line 2 is not valid JSON"):
        list(Journal(locate(tmp_path)).read())


def test_failed_trials_are_retried_on_request(tmp_path):
    record = StudyState(Journal(locate(tmp_path)))
    record.begin(2)
    one, two = (record.propose(plan_of(number, {"optimizer.lr": 0.1 * number})) for number in (1, 2))
    record.add(one, result(1, 0.2, 11.0))
    record.add(one, {ERROR: "s3://b/x: cannot reach the object storage", REPORTED: 12.0})
    for epoch in range(1, 5):
        record.add(two, result(epoch, 0.2, 20.0 + epoch))
    record.end(two)

    def restored() -> StudyState:
        found = StudyState(Journal(locate(tmp_path)))
        found.restore(found.journal.read(), plan_of)
        return found

    again = restored()
    assert again.trials["001"].status() == "failed" and again.trials["001"].state == "ended"
    assert again.retry_failed() == [again.trials["001"]]
    again.flush()
    for record in (again, restored()):
        trial, other = record.trials["001"], record.trials["002"]
        assert trial.state == "waiting" and trial.error is None and trial.epochs_run == 1
        assert other.state == "ended" and other.status() == "finished"
    assert restored().retry_failed() == []


def test_the_state_of_a_study_is_restored(tmp_path):
    journal = Journal(locate(tmp_path))
    record = StudyState(journal)
    record.begin(3)
    one, two, three = (record.propose(plan_of(number, {"optimizer.lr": 0.1 * number})) for number in (1, 2, 3))
    for epoch in (1, 2):
        assert record.add(one, result(epoch, 0.2 * epoch, 10.0 + epoch))
    assert not record.add(one, result(2, 0.4, 12.0))  # reported again when the trial ends
    record.add(two, {ERROR: "the loss became nan", REPORTED: 13.0})
    exploit = Exploit(
        trial="003",
        source="001",
        epoch=2,
        point={"optimizer.lr": 0.5},
        changed={"optimizer.lr": [0.3, 0.5]},
        explored={"optimizer.lr": [0.1, 0.5]},
    )
    record.plan_exploit(dataclasses.replace(exploit, epoch=1), plan_of(3, exploit.point))
    assert three.plan.point == {"optimizer.lr": 0.1 * 3} and not record.exploits  # until the trial has the weights
    record.add(three, {**result(3, 0.6, 14.0), TAKEN: 2})
    record.end(one)
    record.flush()

    again = StudyState(Journal(locate(tmp_path)))
    again.restore(again.journal.read(), plan_of)
    assert again.trials["001"] == one
    assert (again.trials["002"].state, again.trials["002"].error) == ("ended", "the loss became nan")
    assert again.trials["003"].plan.point == {"optimizer.lr": 0.5} and again.trials["003"].state == "waiting"
    assert again.exploits == [exploit] and again.drivers == 1
    assert [(e.trial.plan.name, e.failed, e.epochs) for e in again.ended] == [("002", True, 0), ("001", False, 2)]
    assert again.trials["001"].weights == 123 and again.epochs_run == 3
    # The checkpoint of epoch 2 was lost with its process. The repeated epoch is counted and reported.
    again.begin(3)
    again.add(again.trials["001"], result(2, 0.5, 99.0))
    assert (again.epochs_run, again.epochs_repeated) == (4, 1)
    assert three.plan.name == "003"


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [
        (2, '"number": 1', '"numbr": 1'),
        (2, '"number": 1', '"number": "one"'),
        (2, '"point": {"optimizer.lr": 0.1}', '"point": 7'),
        (3, '"trial": "001"', '"trial": "009"'),
        (3, '"row": {', '"row": {"epoch": "first", "was": {'),
        (3, '"val_top1": 0.2', '"val_top1": "much"'),
        (3, '"val_top1": 0.2', '"val_top1": null'),
        (3, '"at": ', '"at": "noon", "was": '),
        (3, '"event": "report"', '"evnt": "report"'),
        (3, '{"event"', '["event"'),
        (4, '"decision": "continue"', '"decision": "maybe"'),
        (5, '"point": {', '"points": {'),
        (6, '{"event"', "7 # {"),
        (6, '{"event": "failed"', '7\n{"event": "failed"'),
        (6, '"trial"', '\udcff"trial"'),
    ],
)
def test_an_invalid_line_is_a_one_line_error(line, old, new, tmp_path):
    journal = Journal(locate(tmp_path))
    record = StudyState(journal)
    record.begin(1)
    one = record.propose(plan_of(1, {"optimizer.lr": 0.1}))
    record.add(one, result(1, 0.2, 11.0))
    record.decide(one, "continue")
    exploit = Exploit(trial="001", source="001", epoch=1, point={"optimizer.lr": 0.5}, changed={}, explored={})
    record.plan_exploit(exploit, plan_of(1, exploit.point))
    record.fail(one, "no memory")
    file = tmp_path / "journal" / "00001.jsonl"
    lines = file.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1) + ("}" if '"was": {' in new else "")
    file.write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=f"00001.jsonl: line {line} is not (valid JSON|an event)") as error:
        StudyState().restore(Journal(locate(tmp_path)).read(), plan_of)
    assert "\n" not in str(error.value) and "delete that line, or start a study with another --name" in str(error.value)


def test_budgets_count_the_usage_of_all_processes():
    record = StudyState()
    trial = record.propose(plan_of(1, {}))
    by_epochs = BudgetStopper(BudgetConfig(epochs=2), record, "val_top1", "max")
    by_time = BudgetStopper(BudgetConfig(seconds=100), record, "val_top1", "max")
    by_target = BudgetStopper(BudgetConfig(target=0.5), record, "val_top1", "max")
    by_loss = BudgetStopper(BudgetConfig(target=0.5), record, "val_loss", "min")
    for epoch, value in ((1, 0.4), (2, 0.5)):
        assert not any(stopper.stop_all() for stopper in (by_epochs, by_time, by_target, by_loss))
        record.add(trial, {**result(epoch, value, float(epoch)), "val_loss": 1 - value})
    assert "budget of 2 epochs" in by_epochs.reason()
    assert "target, val_top1 0.5" in by_target.reason()
    assert by_loss.stop_all()
    record.seconds_before = 100
    assert by_time.stop_all()
    assert not BudgetStopper(BudgetConfig(), record, "val_top1", "max").stop_all()
