"""Population-based training: which settings change, to what, and whose weights a trial goes on from."""

import random

import pytest
import torch

from landmark.config import CheckpointConfig, Recipe, UserError
from landmark.search.population import Population, changeable, explored
from landmark.search.record import StudyRecord
from landmark.search.space import Space
from landmark.storage import locate
from landmark.training.checkpoints import CheckpointMeta, Snapshot
from landmark.training.store import CheckpointStore

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


def test_a_trial_takes_weights_and_point_and_forgets_its_own(tmp_path):
    space, record = load(tmp_path), StudyRecord()
    recipe = space.recipe()
    plans = space.trials(recipe)[:2]
    trials = [record.propose(plan) for plan in plans]

    def store_of(plan) -> CheckpointStore:
        return CheckpointStore(locate(tmp_path / plan.name), "val_top1", "max", CheckpointConfig(keep=1))

    population = Population(space, recipe, record, store_of)
    assert not population.take_over(*trials, random.Random(0))  # the other one has no checkpoint yet
    for plan, value in zip(plans, (0.0, 7.0), strict=True):
        meta = CheckpointMeta(
            backbone="deck_mlp",
            classes=["a"],
            image_size=16,
            mean=(0, 0, 0),
            std=(1, 1, 1),
            dataset="d",
            epoch=2,
            metrics={},
        )
        weights = {"w": torch.full((2,), value)}
        store = store_of(plan)
        store.save(
            Snapshot(name="epoch-0002", weights=weights, state={}, meta=meta, recipe=Recipe()), {"val_top1": 0.5}
        )
        store.close()
    assert population.take_over(*trials, random.Random(0))
    (exploit,) = record.exploits
    assert (exploit.trial, exploit.source, exploit.epoch) == (plans[0].name, plans[1].name, 2)
    for key, values in (("changed", plans[0].parameters), ("explored", plans[1].parameters)):
        after = trials[0].plan.parameters
        assert getattr(exploit, key) == {k: [values[k], after[k]] for k in after if after[k] != values[k]}
    assert exploit.explored
    assert trials[0].plan.name == plans[0].name and trials[0].plan.point == exploit.point
    folder = tmp_path / "fetched"
    folder.mkdir()
    store = store_of(plans[0])
    assert store.fetch_last(folder)
    assert (folder / "model.safetensors").read_bytes() == (
        tmp_path / plans[1].name / "checkpoints" / "epoch-0002" / "model.safetensors"
    ).read_bytes()
    assert store.path("best") is None and len(store.root.names()) == 2
