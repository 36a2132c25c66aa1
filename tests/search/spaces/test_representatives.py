"""Tests representative trials: all of a small space, or enough of a large one to cover every value. Also tests
warnings about them."""

import pytest
import tyro

from landmark.cli.defaults import tune as defaults
from landmark.config import TuneConfig
from landmark.search.spaces.domains import covering_points
from landmark.search.spaces.representatives import different_schedules, most_demanding, representative_specs
from landmark.search.spaces.samplers import build_sampler
from landmark.search.spaces.space import Space, space_names

MANY = """
searcher: {name: optuna}
samples: 20
recipe: {model: {backbone: reference_mlp}, loader: {image_size: 32}, schedule: {name: constant}}
parameters:
  epochs: {choice: [3, 5, 9, 11]}
  loader.image_size: {choice: [16, 24, 32, 48]}
  loader.batch_size: {choice: [8, 16, 32, 64]}
  loader.readers: {choice: [1, 2, 3, 4]}
  loader.prefetch_batches: {choice: [1, 2, 3, 4]}
  model.neck: {by: loader.image_size, 48: {choice: [16, 32]}, default: {choice: [8, 64]}}
  loader.decode_threads: {choice: [1, 2, 3, 4]}
  ema.decay: {choice: [null, 0.9, 0.99, 0.999]}
"""


def space_of(tmp_path, text: str) -> Space:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return Space.load(str(file))


def test_few_of_thousands_of_combinations_cover_every_value(tmp_path, monkeypatch):
    space = space_of(tmp_path, MANY)
    recipe = space.recipe()
    planned = []
    plan = Space.plan
    monkeypatch.setattr(Space, "plan", lambda self, *values: planned.append(values) or plan(self, *values))
    representatives = representative_specs(space, recipe, build_sampler(space, recipe))
    assert len(planned) < 1000
    for key, parameter in space.parameters.items():
        values = {value for domain in parameter.domains() for value in domain.values}
        assert values <= {spec.point.get(key) for spec in representatives}, key
    assert all(
        spec.point["model.neck"] in (16, 32) for spec in representatives if spec.point["loader.image_size"] == 48
    )
    few = space_of(tmp_path, MANY.replace("[8, 16, 32, 64]", "[8]").replace("[1, 2, 3, 4]", "[1]"))
    assert len(covering_points(few.parameters, few.keys)) == 4 * 4 * 4 * 2


def test_the_maximum_is_found_key_by_key(tmp_path):
    space = space_of(tmp_path, MANY)
    found = most_demanding(space, space.recipe(), lambda recipe: recipe.loader.batch_size * recipe.loader.image_size**2)
    assert (found.loader.batch_size, found.loader.image_size) == (64, 48)
    neck = most_demanding(space, space.recipe(), lambda recipe: -(recipe.model.neck or 0))
    assert neck.model.neck == 8


@pytest.mark.parametrize("name", space_names())
def test_no_shipped_space_compares_schedules_of_different_lengths(name):
    config = defaults(None, ["--space", name])
    assert isinstance(config, TuneConfig) and config.dataset is tyro.MISSING
    space = Space.load(name)
    representatives = [
        space.plan(number, point, config.recipe)
        for number, point in enumerate(covering_points(space.parameters, space.keys) or space.points, 1)
    ]
    assert different_schedules(space, representatives) is None


def test_schedules_of_different_lengths_cause_a_warning(tmp_path):
    text = "recipe: {schedule: {name: SCHEDULE}}\nparameters: {epochs: {grid: [4, 12]}}\nscheduler: {name: RULE}\n"

    def warning(schedule: str, rule: str) -> str | None:
        space = space_of(tmp_path, text.replace("SCHEDULE", schedule).replace("RULE", rule))
        return different_schedules(space, space.trials(space.recipe()))

    assert "trials of 4, 12 epochs have the schedule cosine, and asha compares them" in str(warning("cosine", "asha"))
    assert "one_cycle" in str(warning("one_cycle", "median_stopping"))
    assert warning("constant", "asha") is None and warning("cosine", "none") is None
