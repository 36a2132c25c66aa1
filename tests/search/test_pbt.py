"""Population-based training: which settings change, to what, and whose weights a trial goes on from."""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landmark.checkpoints.format import CheckpointMeta, Snapshot
from landmark.checkpoints.store import CheckpointStore
from landmark.config import CheckpointConfig, Recipe, UserError, to_mapping
from landmark.search.pbt import Population, changeable, explored
from landmark.search.spaces.domains import one_drawn
from landmark.search.spaces.space import Space
from landmark.search.state.state import NOT_TAKEN, REPORTED, TAKEN, StudyRecord, TrialRecord
from landmark.search.trials.trial import exploit_values, take_weights
from landmark.storage import locate
from landmark.training.observe.telemetry import TRIALS

TEXT = """
metric: val_top1
recipe: {epochs: 6, model: {backbone: deck_mlp}}
parameters:
  model.backbone: {grid: [deck_mlp]}
  optimizer.name: {choice: [sgd, adam]}
  optimizer.lr: {by: optimizer.name, sgd: {loguniform: [0.01, 0.1]}, adam: 0.001}
  augment.randaugment_ops: {int: [0, 3]}
  loss.label_smoothing: {choice: [0.0, 0.1, 0.2]}
samples: 4
scheduler: {name: pbt}
"""


def load(tmp_path, text: str = TEXT) -> Space:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return Space.load(str(file))


def test_what_weights_and_data_are_made_for_does_not_change(tmp_path):
    assert changeable(load(tmp_path)) == ["optimizer.lr", "augment.randaugment_ops", "loss.label_smoothing"]
    fixed = TEXT[: TEXT.index("  optimizer.lr")] + "samples: 4\nscheduler: {name: pbt}\n"
    with pytest.raises(UserError, match="scheduler pbt changes settings of optimizer, schedule, loss, augment"):
        changeable(load(tmp_path, fixed))


@pytest.mark.parametrize("resample", [0.0, 0.5, 1.0])
def test_changes_stay_within_the_domains_of_the_case(tmp_path, resample):
    space, draws = load(tmp_path), random.Random(0)
    sgd = {"model.backbone": "deck_mlp", "optimizer.name": "sgd", "optimizer.lr": 0.02}
    sgd |= {"augment.randaugment_ops": 0, "loss.label_smoothing": 0.1}
    adam = {**sgd, "optimizer.name": "adam", "optimizer.lr": 0.001}
    seen = [explored(space, sgd, resample, draws) for _ in range(200)]
    assert all(0.01 <= point["optimizer.lr"] <= 0.1 for point in seen)
    assert {point["optimizer.name"] for point in seen} == {"sgd"}
    assert {point["optimizer.lr"] for point in (explored(space, adam, resample, draws) for _ in range(20))} == {0.001}
    if resample == 0:
        assert {point["augment.randaugment_ops"] for point in seen} == {1}  # the one neighbour that there is
        assert {point["loss.label_smoothing"] for point in seen} == {0.0, 0.2}
        assert {round(point["optimizer.lr"], 6) for point in seen} == {0.016, 0.025}


CONDITIONAL = """
metric: val_top1
recipe: {epochs: 6, model: {backbone: deck_mlp}}
parameters:
  augment.flip: {by: optimizer.momentum, 0.9: {choice: [true, false]}}
  optimizer.momentum: {choice: [0.0, 0.5, 0.9]}
  optimizer.weight_decay: {by: optimizer.momentum, 0.0: {uniform: [0.001, 0.002]}, 0.5: {grid: [0.1, 0.2]}, default: 0.0}
  augment.randaugment_ops: {by: loss.label_smoothing, 0.0: {int: [0, 2]}, 0.1: {int: [2, 3]}}
  loss.label_smoothing: {choice: [0.0, 0.1, 0.2]}
  schedule.warmup_epochs: {choice: [0.0, 2.0, 4.0]}
  model.dropout: {by: schedule.warmup_epochs, 4.0: {uniform: [0.0, 0.2]}, default: {uniform: [0.5, 0.6]}}
  epochs: {choice: [3, 6]}
samples: 8
scheduler: {name: pbt}
"""


def inside(space: Space, point: dict) -> bool:
    """Return whether a space can have a point: each key has a value of the domain that holds for it, and no other is set."""
    domains = {key: parameter.domain(point) for key, parameter in space.parameters.items()}
    return set(point) == {key for key, domain in domains.items() if domain is not None} and all(
        domain.contains(point[key]) for key, domain in domains.items() if domain is not None
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), resample=st.sampled_from([0.0, 0.25, 1.0]))
def test_exploring_never_leaves_a_space_whose_domains_depend_on_each_other(tmp_path, seed, resample):
    space, draws = load(tmp_path, CONDITIONAL), random.Random(seed)
    point = one_drawn(space.parameters, draws)
    for _ in range(8):
        before, point = point, json.loads(json.dumps(explored(space, point, resample, draws)))
        assert inside(space, point)
        # What weights are made for stays, and so does the setting that decides about it.
        assert all(point[key] == before[key] for key in ("epochs", "model.dropout", "schedule.warmup_epochs"))


def test_every_value_of_a_conditional_space_is_explored(tmp_path):
    space, draws = load(tmp_path, CONDITIONAL), random.Random(0)
    point, seen = one_drawn(space.parameters, draws), []
    for _ in range(300):
        point = explored(space, point, 0.25, draws)
        seen.append(point)
    assert {point["optimizer.momentum"] for point in seen} == {0.0, 0.5, 0.9}
    assert {point.get("augment.randaugment_ops") for point in seen} == {None, 0, 1, 2, 3}
    assert {point.get("augment.flip") for point in seen} == {None, True, False}


def test_a_point_that_no_recipe_can_have_is_not_taken(tmp_path):
    text = TEXT.replace("epochs: 6", "epochs: 3").replace(
        "samples", "  schedule.warmup_epochs: {choice: [0.0, 5.0]}\nsamples"
    )
    space, record = load(tmp_path, text), StudyRecord()
    base = {
        "model.backbone": "deck_mlp",
        "optimizer.name": "adam",
        "optimizer.lr": 0.001,
        "schedule.warmup_epochs": 0.0,
    }
    base |= {"augment.randaugment_ops": 1, "loss.label_smoothing": 0.1}
    one, two = (record.propose(space.plan(number, base, space.recipe())) for number in (1, 2))
    for draw in range(20):
        Population(space, space.recipe(), record).take_over(one, two, random.Random(draw))
        assert one.planned.plan.recipe.schedule.warmup_epochs == 0.0
        assert one.planned.plan.name == one.plan.name


def test_a_trial_takes_weights_and_point_and_forgets_its_own(tmp_path):
    space, record = load(tmp_path), StudyRecord()
    plans = space.trials(space.recipe())[:2]
    trials = [record.propose(plan) for plan in plans]
    for plan, value in zip(plans, (0.0, 7.0), strict=True):
        save(tmp_path, plan.name, 2, value)
    trials[0].rows[2] = trials[1].rows[2] = {"epoch": 2.0, "val_top1": 0.5}
    Population(space, space.recipe(), record).take_over(*trials, random.Random(0))
    planned = trials[0].planned
    assert trials[0].plan == plans[0] and not record.exploits  # until the trial says that it has the weights
    values, taken = take_weights(handed(tmp_path, trials[0]))
    assert taken == {TAKEN: 2} and values == {"name": plans[0].name, "recipe": to_mapping(planned.plan.recipe)} | {
        "folder": locate(tmp_path / TRIALS / plans[0].name).uri
    }
    record.add(trials[0], {"epoch": 3, "val_top1": 0.6, REPORTED: 1.0, **taken})
    (exploit,) = record.exploits
    assert (exploit.trial, exploit.source, exploit.epoch) == (plans[0].name, plans[1].name, 2)
    for key, before in (("changed", plans[0].parameters), ("explored", plans[1].parameters)):
        after = trials[0].plan.parameters
        assert getattr(exploit, key) == {k: [before[k], after[k]] for k in after if after[k] != before[k]}
    assert exploit.explored
    assert trials[0].plan.name == plans[0].name and trials[0].plan.point == exploit.point
    assert trials[0].planned is None and handed(tmp_path, trials[0]).keys() == {"name", "recipe", "folder"}
    folder = tmp_path / "fetched"
    folder.mkdir()
    store = store_of(tmp_path, plans[0].name)
    assert store.fetch_last(folder)
    assert (folder / "model.safetensors").read_bytes() == (
        tmp_path / TRIALS / plans[1].name / "checkpoints" / "epoch-0002" / "model.safetensors"
    ).read_bytes()
    assert store.path("best") is None and len(store.root.names()) == 2


@pytest.mark.parametrize("source", ["none", "deleted", "ended", "behind"])
def test_a_source_that_is_gone_is_no_exploit(source, tmp_path):
    space, record = load(tmp_path), StudyRecord()
    plans = space.trials(space.recipe())[:2]
    trials = [record.propose(plan) for plan in plans]
    save(tmp_path, plans[0].name, 2, 0.0)
    trials[0].rows[2] = {"epoch": 2.0, "val_top1": 0.5}
    if source != "none":
        save(tmp_path, plans[1].name, {"deleted": 2, "ended": 6, "behind": 1}[source], 7.0)
    if source == "deleted":
        (tmp_path / TRIALS / plans[1].name / "checkpoints" / "epoch-0002" / "state.pt").unlink()
    Population(space, space.recipe(), record).take_over(*trials, random.Random(0))
    trial = handed(tmp_path, trials[0])
    values, taken = take_weights(trial)
    assert taken == {TAKEN: NOT_TAKEN} and values["recipe"] == to_mapping(plans[0].recipe)
    assert store_of(tmp_path, plans[0].name).path("best") == "checkpoints/epoch-0002"
    record.add(trials[0], {"epoch": 3, "val_top1": 0.6, REPORTED: 1.0, **taken})
    assert not record.exploits and trials[0].planned is None and trials[0].plan == plans[0]


def test_a_process_that_is_lost_after_it_took_the_weights_does_not_take_them_again(tmp_path):
    own, source = store_of(tmp_path, "own"), store_of(tmp_path, "source")
    save(tmp_path, "own", 2, 0.0)
    save(tmp_path, "source", 2, 7.0)
    assert own.adopt(source, range(2, 6), "source-2") == 2
    save(tmp_path, "source", 3, 8.0)
    save(tmp_path, "own", 3, 9.0)
    again = store_of(tmp_path, "own")
    assert again.adopt(source, range(2, 6), "source-2") == 2 and again.index["kept"] == ["epoch-0003"]
    assert again.adopt(source, range(2, 6), "source-4") == 3  # another exploit


def store_of(folder: Path, name: str) -> CheckpointStore:
    return CheckpointStore(locate(folder / TRIALS / name), "val_top1", "max", CheckpointConfig(keep=1))


def save(folder: Path, name: str, epoch: int, value: float) -> None:
    meta = CheckpointMeta(
        backbone="deck_mlp",
        classes=["a"],
        image_size=16,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        dataset="d",
        epoch=epoch,
        metrics={},
    )
    weights, store = {"w": torch.full((2,), value)}, store_of(folder, name)
    store.save(
        Snapshot(name=f"epoch-{epoch:04d}", weights=weights, state={}, meta=meta, recipe=Recipe()), {"val_top1": 0.5}
    )
    store.close()


def handed(folder: Path, trial: TrialRecord) -> dict:
    """What the trial's next process is given, without its dataset."""

    def values(plan) -> dict:
        recipe, place = to_mapping(plan.recipe), locate(folder / TRIALS / trial.plan.name).uri
        return {"name": trial.plan.name, "recipe": recipe, "folder": place}

    given = values(trial.plan)
    if trial.planned is not None:
        given["exploit"] = exploit_values(trial.planned.exploit, values(trial.planned.plan), locate(folder))
    return given
