"""Room for trials: by CPUs, by memory, and what each one reserves."""

import pytest
import ray

from landmark.config import LoaderConfig, Recipe, UserError, WorkersConfig
from landmark.search import room
from landmark.search.room import find_room


@pytest.fixture
def recipe(ray_cluster: None) -> Recipe:
    return Recipe(loader=LoaderConfig(image_size=32, batch_size=8))


def test_as_many_trials_run_as_cpus_and_trials_allow(recipe):
    cpus = int(ray.cluster_resources()["CPU"])
    found = find_room(WorkersConfig(), [recipe], 10, total=100, max_concurrent=None)
    assert found.slots == cpus
    assert [dict(bundle) for bundle in found.placement.bundles] == [{"CPU": 1.0}]
    assert find_room(WorkersConfig(), [recipe], 10, total=2, max_concurrent=None).slots == 2
    limited = find_room(WorkersConfig(), [recipe], 10, total=100, max_concurrent=3)
    assert limited.slots == 3
    share = [value for name, value in limited.placement.bundles[1].items() if name.startswith("node:")]
    assert 3 * share[0] <= 1 < 4 * share[0]  # three trials share the head's own resource out, a fourth finds none


def test_memory_limits_trials_where_it_is_what_lacks(recipe, monkeypatch):
    have = sum(node["Resources"]["memory"] for node in ray.nodes() if node["Alive"])
    monkeypatch.setattr(room, "trial_memory", lambda *_, **__: int(have * 0.9 / 2.5))
    assert find_room(WorkersConfig(), [recipe], 10, total=100, max_concurrent=None).slots == 2
    monkeypatch.setattr(room, "trial_memory", lambda *_, **__: int(2 * have))
    assert find_room(WorkersConfig(), [recipe], 10, total=100, max_concurrent=None).slots == 1


def test_no_room_for_one_trial_is_said(recipe):
    with pytest.raises(UserError, match="no room for a trial: it needs 1 x 64 CPUs"):
        find_room(WorkersConfig(cpus=64), [recipe], 10, total=4, max_concurrent=None)
