"""Tests population-based training: which settings are explored, and which weights a trial continues from."""

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
from landmark.search.pbt import Population, changeable, explore
from landmark.search.spaces.domains import sample_point
from landmark.search.spaces.space import Space
from landmark.search.state.state import NOT_TAKEN, REPORTED, TAKEN, StudyState, TrialState
from landmark.search.trials.trial import copy_weights, exploit_values
from landmark.storage import locate
from landmark.training.observe.run_names import TRIALS

TEXT = """
metric: val_top1
recipe: {epochs: 6, model: {backbone: reference_mlp}}
parameters:
  model.backbone: {grid: [reference_mlp]}
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


def test_settings_that_weights_and_data_depend_on_do_not_change(tmp_path):
    assert changeable(load(tmp_path)) == ["optimizer.lr", "augment.randaugment_ops", "loss.label_smoothing"]
    fixed = TEXT[: TEXT.index("  optimizer.lr")] + "samples: 4\nscheduler: {name: pbt}\n"
    with pytest.raises(UserError, match="scheduler pbt changes settings of optimizer, schedule, loss, augment"):
        changeable(load(tmp_path, fixed))


@pytest.mark.parametrize("resample", [0.0, 0.5, 1.0])
def test_changes_stay_within_the_domains_of_their_case(tmp_path, resample):
    space, rng = load(tmp_path), random.Random(0)
    sgd = {"model.backbone": "reference_mlp", "optimizer.name": "sgd", "optimizer.lr": 0.02}
    sgd |= {"augment.randaugment_ops": 0, "loss.label_smoothing": 0.1}
    adam = {**sgd, "optimizer.name": "adam", "optimizer.lr": 0.001}
    seen = [explore(space, sgd, resample, rng) for _ in range(200)]
    assert all(0.01 <= point["optimizer.lr"] <= 0.1 for point in seen)
    assert {point["optimizer.name"] for point in seen} == {"sgd"}
    assert {point["optimizer.lr"] for point in (explore(space, adam, resample, rng) for _ in range(20))} == {0.001}
    if resample == 0:
        assert {point["augment.randaugment_ops"] for point in seen} == {1}  # its only neighbor
        assert {point["loss.label_smoothing"] for point in seen} == {0.0, 0.2}
        assert {round(point["optimizer.lr"], 6) for point in seen} == {0.016, 0.025}


CONDITIONAL = """
metric: val_top1
recipe: {epochs: 6, model: {backbone: reference_mlp}}
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
    """Return whether a point is in a space: each active key has a value of its domain, and no other key is set."""
    domains = {key: parameter.domain(point) for key, parameter in space.parameters.items()}
    return set(point) == {key for key, domain in domains.items() if domain is not None} and all(
        domain.contains(point[key]) for key, domain in domains.items() if domain is not None
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), resample=st.sampled_from([0.0, 0.25, 1.0]))
def test_exploring_stays_within_conditional_domains(tmp_path, seed, resample):
    space, rng = load(tmp_path, CONDITIONAL), random.Random(seed)
    point = sample_point(space.parameters, rng)
    for _ in range(8):
        before, point = point, json.loads(json.dumps(explore(space, point, resample, rng)))
        assert inside(space, point)
        # Settings that weights depend on do not change, and neither does the setting that selects their case.
        assert all(point[key] == before[key] for key in ("epochs", "model.dropout", "schedule.warmup_epochs"))


def test_every_value_of_a_conditional_space_is_explored(tmp_path):
    space, rng = load(tmp_path, CONDITIONAL), random.Random(0)
    point, seen = sample_point(space.parameters, rng), []
    for _ in range(300):
        point = explore(space, point, 0.25, rng)
        seen.append(point)
    assert {point["optimizer.momentum"] for point in seen} == {0.0, 0.5, 0.9}
    assert {point.get("augment.randaugment_ops") for point in seen} == {None, 0, 1, 2, 3}
    assert {point.get("augment.flip") for point in seen} == {None, True, False}


def test_a_point_that_is_no_valid_recipe_is_rejected(tmp_path):
    text = TEXT.replace("epochs: 6", "epochs: 3").replace(
        "samples", "  schedule.warmup_epochs: {choice: [0.0, 5.0]}\nsamples"
    )
    space, record = load(tmp_path, text), StudyState()
    base = {
        "model.backbone": "reference_mlp",
        "optimizer.name": "adam",
        "optimizer.lr": 0.001,
        "schedule.warmup_epochs": 0.0,
    }
    base |= {"augment.randaugment_ops": 1, "loss.label_smoothing": 0.1}
    one, two = (record.propose(space.plan(number, base, space.recipe())) for number in (1, 2))
    for draw in range(20):
        Population(space, space.recipe(), record).exploit(one, two, random.Random(draw))
        assert one.planned.plan.recipe.schedule.warmup_epochs == 0.0
        assert one.planned.plan.name == one.plan.name


def test_an_exploit_replaces_the_weights_and_the_point_of_a_trial(tmp_path):
    space, record = load(tmp_path), StudyState()
    plans = space.trials(space.recipe())[:2]
    trials = [record.propose(plan) for plan in plans]
    for plan, value in zip(plans, (0.0, 7.0), strict=True):
        save(tmp_path, plan.name, 2, value)
    trials[0].rows[2] = trials[1].rows[2] = {"epoch": 2.0, "val_top1": 0.5}
    Population(space, space.recipe(), record).exploit(*trials, random.Random(0))
    planned = trials[0].planned
    assert trials[0].plan == plans[0] and not record.exploits  # until the trial reports that it has the weights
    values, taken = copy_weights(submitted(tmp_path, trials[0]))
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
    assert trials[0].planned is None and submitted(tmp_path, trials[0]).keys() == {"name", "recipe", "folder"}
    folder = tmp_path / "fetched"
    folder.mkdir()
    store = store_of(tmp_path, plans[0].name)
    assert store.fetch_last(folder)
    assert (folder / "model.safetensors").read_bytes() == (
        tmp_path / TRIALS / plans[1].name / "checkpoints" / "epoch-0002" / "model.safetensors"
    ).read_bytes()
    assert store.path("best") is None and len(store.root.names()) == 2


@pytest.mark.parametrize("source", ["none", "deleted", "ended", "behind"])
def test_an_unusable_source_is_not_exploited(source, tmp_path):
    space, record = load(tmp_path), StudyState()
    plans = space.trials(space.recipe())[:2]
    trials = [record.propose(plan) for plan in plans]
    save(tmp_path, plans[0].name, 2, 0.0)
    trials[0].rows[2] = {"epoch": 2.0, "val_top1": 0.5}
    if source != "none":
        save(tmp_path, plans[1].name, {"deleted": 2, "ended": 6, "behind": 1}[source], 7.0)
    if source == "deleted":
        (tmp_path / TRIALS / plans[1].name / "checkpoints" / "epoch-0002" / "state.pt").unlink()
    Population(space, space.recipe(), record).exploit(*trials, random.Random(0))
    trial = submitted(tmp_path, trials[0])
    values, taken = copy_weights(trial)
    assert taken == {TAKEN: NOT_TAKEN} and values["recipe"] == to_mapping(plans[0].recipe)
    assert store_of(tmp_path, plans[0].name).path("best") == "checkpoints/epoch-0002"
    record.add(trials[0], {"epoch": 3, "val_top1": 0.6, REPORTED: 1.0, **taken})
    assert not record.exploits and trials[0].planned is None and trials[0].plan == plans[0]


def test_a_restarted_trial_does_not_take_the_weights_twice(tmp_path):
    own, source = store_of(tmp_path, "own"), store_of(tmp_path, "source")
    save(tmp_path, "own", 2, 0.0)
    save(tmp_path, "source", 2, 7.0)
    assert own.adopt(source, range(2, 6), "source-2") == 2
    save(tmp_path, "source", 3, 8.0)
    save(tmp_path, "own", 3, 9.0)
    reopened = store_of(tmp_path, "own")
    assert reopened.adopt(source, range(2, 6), "source-2") == 2 and reopened.index["kept"] == ["epoch-0003"]
    assert reopened.adopt(source, range(2, 6), "source-4") == 3  # another exploit


def store_of(folder: Path, name: str) -> CheckpointStore:
    return CheckpointStore(locate(folder / TRIALS / name), "val_top1", "max", CheckpointConfig(keep=1))


def save(folder: Path, name: str, epoch: int, value: float) -> None:
    meta = CheckpointMeta(
        backbone="reference_mlp",
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


def submitted(folder: Path, trial: TrialState) -> dict:
    """Return the values for the trial's next process, without its dataset."""

    def values(plan) -> dict:
        recipe, uri = to_mapping(plan.recipe), locate(folder / TRIALS / trial.plan.name).uri
        return {"name": trial.plan.name, "recipe": recipe, "folder": uri}

    result = values(trial.plan)
    if trial.planned is not None:
        result["exploit"] = exploit_values(trial.planned.exploit, values(trial.planned.plan), locate(folder))
    return result
