"""Tests searchers of Ray Tune by import path: suggestions, restoration from the journal, and one-line errors."""

import json
import math
import random
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from landmark.config import SearcherConfig, UserError
from landmark.search.spaces.ray_sampler import RaySampler
from landmark.search.spaces.samplers import build_sampler, preview
from landmark.search.spaces.space import Space, TrialSpec

TEXT = """
parameters:
  model.backbone: {grid: [reference_mlp, resnet18]}
  optimizer.name: {choice: [sgd, adamw]}
  optimizer.lr: {by: optimizer.name, sgd: {loguniform: [0.01, 0.3]}, adamw: {loguniform: [1.0e-4, 3.0e-3]}}
  optimizer.momentum: {by: optimizer.name, sgd: 0.8}
  epochs: {int: [2, 4]}
samples: 30
"""
OPTUNA = "searcher: {name: 'ray.tune.search.optuna:OptunaSearch', options: {seed: 3}}\n"


class RandomSearch(Searcher):
    """Suggests at random with Python's global generator, and counts what it is told."""

    def __init__(self, metric=None, mode=None, most: int = 100) -> None:
        super().__init__(metric, mode)
        self.most = most
        self.told: list[tuple[str, float | None]] = []

    def set_search_properties(self, metric, mode, config, **spec) -> bool:
        self.space = config
        return True

    def suggest(self, trial_id: str):
        self.most -= 1
        if self.most < 0:
            return Searcher.FINISHED
        values = {}
        for name, domain in self.space.items():
            listed = hasattr(domain, "categories")
            values[name] = random.choice(domain.categories) if listed else random.uniform(domain.lower, domain.upper)
        return values

    def on_trial_complete(self, trial_id: str, result=None, error: bool = False) -> None:
        self.told.append((trial_id, None if error else result["val_top1"]))


class Waiting(RandomSearch):
    def suggest(self, trial_id: str):
        return None


def make_sampler(text: str, tmp_path: Path, limit: int | None = None) -> RaySampler:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    read = Space.load(str(file))
    sampler = build_sampler(read, read.recipe(), limit)
    assert isinstance(sampler, RaySampler)
    return sampler


def own(name: str, **options) -> str:
    return f"searcher: {{name: '{__name__}:{name}', options: {json.dumps(options)}}}\n"


def metrics(plan: TrialSpec) -> dict[str, float] | None:
    if plan.number % 7 == 3:
        return None
    value = math.nan if plan.number % 7 == 5 else 1 / (1 + abs(math.log10(plan.recipe.optimizer.lr / 0.001)))
    return {"val_top1": value, "images_per_s": 1.0, "parameters": 1.0}


@pytest.mark.parametrize("searcher", [OPTUNA, own("RandomSearch")], ids=["optuna", "random"])
def test_a_restored_searcher_continues_like_an_uninterrupted_one(searcher, tmp_path):
    """Three trials run at a time. A restore gets the journal's trials and results in their order."""
    uninterrupted, history = make_sampler(TEXT + searcher, tmp_path), []
    proposed: list[TrialSpec] = []
    while (plan := uninterrupted.next()) is not None:
        proposed.append(plan)
        history.append(("trial", plan))
        low, high = (0.01, 0.3) if plan.recipe.optimizer.name == "sgd" else (1e-4, 3e-3)
        assert low <= plan.recipe.optimizer.lr <= high and 2 <= plan.recipe.epochs <= 4
        assert ("optimizer.momentum" in plan.point) == (plan.recipe.optimizer.name == "sgd")
        if len(proposed) > 3:
            ended = proposed[len(proposed) - random.Random(plan.number).choice([3, 4])]
            uninterrupted.tell(ended, metrics(ended))
            history.append(("ended", ended))
    assert len(proposed) == 30
    restored = make_sampler(TEXT + searcher, tmp_path)
    for kind, plan in history[:30]:
        if kind == "trial":
            restored.restore(plan)
        else:
            restored.tell(plan, metrics(plan))
    rest = history[30:]
    for kind, plan in rest:
        if kind == "trial":
            assert restored.next() == plan
        else:
            restored.tell(plan, metrics(plan))
    assert rest and restored.next() is None


def test_another_suggestion_than_the_journals_is_refused(tmp_path):
    """Without a seed, OptunaSearch takes its seed from the operating system."""
    text = TEXT + OPTUNA.replace(", options: {seed: 3}", "")
    plan = make_sampler(text, tmp_path).next()
    with pytest.raises(
        UserError, match=r"the journal has trial .*, but searcher .* suggests \{.*set its seed"
    ) as error:
        make_sampler(text, tmp_path).restore(plan)
    assert "\n" not in str(error.value)


def test_a_searcher_gets_each_first_result_and_invalid_recipes_as_errors(tmp_path):
    text = TEXT.replace("parameters:", "parameters:\n  schedule.warmup_epochs: {choice: [0.0, 3.0]}")
    sampler = make_sampler(text + own("RandomSearch"), tmp_path, 20)
    plans = preview(sampler)
    assert all(plan.recipe.schedule.warmup_epochs < plan.recipe.epochs for plan in plans) and len(plans) == 20
    told = sampler._searcher.told
    assert told and all(value is None for _, value in told)
    before = len(told)
    for plan in (plans[0], plans[0]):
        sampler.tell(plan, {"val_top1": 0.5})
    assert [value for _, value in told[before:]] == [0.5]


def test_a_searcher_can_finish_early(tmp_path):
    assert len(preview(make_sampler(TEXT + own("RandomSearch", most=4), tmp_path))) == 4


@pytest.mark.parametrize(
    ("searcher", "message"),
    [
        (own("Missing"), "searcher.name is .*, but the module has no Missing"),
        (own("make_sampler"), "expected a subclass of ray.tune.search.searcher.Searcher"),
        (own("RandomSearch", least=4), "searcher.options.least: RandomSearch has no such argument"),
        (own("RandomSearch", mode="min"), "searcher.options.mode is set, but landmark sets it from the space's metric"),
        ("searcher: {name: optuna, options: {seed: 3}}\n", "searcher.options is set, but searcher.name is optuna"),
        (
            own("RandomSearch").replace("options", "startup: 3, options"),
            "searcher.startup is set, but searcher.name is",
        ),
    ],
)
def test_a_wrong_searcher_is_a_one_line_error(searcher, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        make_sampler(TEXT + searcher, tmp_path)
    assert "\n" not in str(error.value)


def test_a_searcher_without_a_suggestion_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has no suggestion for trial 1 now; remove its limit .* --max-concurrent"):
        make_sampler(TEXT + own("Waiting"), tmp_path).next()


def test_objectives_need_optuna():
    with pytest.raises(ValueError, match="searcher.objectives requires the searcher optuna"):
        SearcherConfig(name="a:B", objectives=["val_top1", "parameters"])
