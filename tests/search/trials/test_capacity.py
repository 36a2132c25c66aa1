"""Tests the capacity for trials: CPUs, memory, and the resources that each trial reserves."""

import pytest
import ray

from landmark.config import LoaderConfig, Recipe, UserError, WorkersConfig
from landmark.search.state.state import StudyState
from landmark.search.trials import capacity
from landmark.search.trials.capacity import Slots, find_capacity
from landmark.search.waiting import WaitingNotice
from landmark.training.distributed.capacity import resource_request
from tests.search.state.test_journal import plan_of


@pytest.fixture
def recipe(ray_cluster: None) -> Recipe:
    return Recipe(loader=LoaderConfig(image_size=32, batch_size=8))


@pytest.fixture
def study_record() -> StudyState:
    record = StudyState()
    record.propose(plan_of(1, {}))
    return record


def test_slots_are_limited_by_cpus_trials_and_max_concurrent(recipe):
    cpus = int(ray.cluster_resources()["CPU"])
    found = find_capacity(WorkersConfig(), [recipe], 10, total=100, max_concurrent=None)
    assert found.slots() == cpus
    assert [dict(bundle) for bundle in found.placement.bundles] == [{"CPU": 1.0}]
    assert find_capacity(WorkersConfig(), [recipe], 10, total=2, max_concurrent=None).slots() == 2
    limited = find_capacity(WorkersConfig(), [recipe], 10, total=100, max_concurrent=3)
    assert limited.slots() == 3  # the searcher submits no more; nothing is reserved that another study needs
    assert [dict(bundle) for bundle in limited.placement.bundles] == [{"CPU": 1.0}]


def test_slots_follow_the_nodes(recipe, monkeypatch):
    nodes = [(2.0, 0.0)]
    monkeypatch.setattr(capacity, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(capacity, "REFRESH_S", 0.0)
    need = resource_request(WorkersConfig(cpus=1), recipe.loader)
    slots = Slots([need], 3, 0)
    assert slots() == 2
    nodes.append((2.0, 0.0))
    assert slots() == 3  # at most three
    nodes.clear()
    assert slots() == 1


def test_slots_are_limited_by_memory(recipe, monkeypatch):
    available = sum(node["Resources"]["memory"] for node in ray.nodes() if node["Alive"])
    monkeypatch.setattr(capacity, "trial_memory", lambda *_, **__: int(available * 0.9 / 2.5))
    assert find_capacity(WorkersConfig(), [recipe], 10, total=100, max_concurrent=None).slots() == 2
    monkeypatch.setattr(capacity, "trial_memory", lambda *_, **__: int(2 * available))
    assert find_capacity(WorkersConfig(), [recipe], 10, total=100, max_concurrent=None).slots() == 1


def test_too_few_resources_for_one_trial_are_an_error(recipe):
    with pytest.raises(UserError, match="not enough resources for a trial: it requires 1 x 64 CPUs"):
        find_capacity(WorkersConfig(cpus=64), [recipe], 10, total=4, max_concurrent=None)


def test_coordinators_of_two_studies_start_at_once_on_any_node(recipe):
    """Each study fills its own slots. Coordinators reserve only memory, and no study takes all of it."""
    found = find_capacity(WorkersConfig(count=2), [recipe], 10, total=2, max_concurrent=2)
    (bundle,) = found.placement.bundles
    assert set(bundle) <= {"CPU", "memory"}
    groups = [ray.util.placement_group([{"memory": 1 << 20}]) for _ in range(2 * found.slots())]
    groups += [ray.util.placement_group([dict(bundle)]) for _ in range(2)]
    try:
        ray.get([group.ready() for group in groups], timeout=120)
    finally:
        for group in groups:
            ray.util.remove_placement_group(group)


def test_memory_of_busy_gpus_is_assumed_and_reported(ray_cluster, monkeypatch, capsys):
    """No task gets a GPU, because this Ray has none."""
    nodes = [{**node, "Resources": {**node["Resources"], "GPU": 2.0}} for node in ray.nodes()]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0, "accelerator_type:A100": 1.0, "CPU": 4.0})
    assert capacity.gpu_bytes(timeout_s=0.5) == 39 << 30
    assert "39 GiB (A100) assumed" in capsys.readouterr().err
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0})
    assert capacity.gpu_bytes(timeout_s=0.5) == 0
    assert "each trial takes a whole GPU" in capsys.readouterr().err


def test_a_waiting_study_reports_the_resources_it_waits_for(ray_cluster, study_record):
    messages: list[str] = []
    waiting = WaitingNotice(study_record, "1 CPUs", in_process=True, say=messages.append, after_s=0.0)
    (trial,) = study_record.trials.values()
    trial.state = "running"
    waiting.on_step_end(1, [])
    assert not messages
    trial.state = "waiting"
    waiting.on_step_end(2, [])
    waiting.on_step_end(3, [])
    (line,) = messages
    assert "waiting for resources: a trial requires 1 CPUs; free: " in line and " CPUs" in line
    group = ray.util.placement_group([{"CPU": 1000.0}])
    try:
        several = WaitingNotice(study_record, "2 x (1 CPUs)", in_process=False, say=messages.append, after_s=0.0)
        trial.state = "running"
        several.on_step_end(1, [])
        assert len(messages) == 2
    finally:
        ray.util.remove_placement_group(group)
    several = WaitingNotice(study_record, "2 x (1 CPUs)", in_process=False, say=messages.append, after_s=0.0)
    several.on_step_end(1, [])
    assert len(messages) == 2
