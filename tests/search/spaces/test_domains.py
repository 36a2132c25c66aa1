"""Tests domains and cases: the points of a space, their order, and errors that name the key."""

import random

import pytest

from landmark.config import UserError
from landmark.search.spaces import domains
from landmark.search.spaces.domains import read_parameters

BY_OPTIMIZER = {
    "optimizer.name": {"grid": ["sgd", "adam", "rmsprop"]},
    "optimizer.lr": {"by": "optimizer.name", "sgd": {"grid": [0.1, 0.01]}, "adam": {"uniform": [0.001, 0.002]}},
}


def sample_points(values: dict, seed: int = 0) -> list[dict]:
    return list(domains.sampled_points(read_parameters(values, "space.yaml"), random.Random(seed)))


def test_a_grid_in_a_case_is_crossed_only_for_that_case():
    points = sample_points(BY_OPTIMIZER)
    assert [point["optimizer.name"] for point in points] == ["sgd", "sgd", "adam", "rmsprop"]
    assert [point.get("optimizer.lr") for point in points[:2]] == [0.1, 0.01]
    assert 0.001 <= points[2]["optimizer.lr"] <= 0.002
    assert "optimizer.lr" not in points[3]


def test_default_case_and_constant_values():
    points = sample_points(
        {
            "model.backbone": {"grid": ["resnet18", "inception_v3", "vgg11"]},
            "loader.image_size": {"by": "model.backbone", "inception_v3": 299, "default": 224},
        }
    )
    assert [point["loader.image_size"] for point in points] == [224, 299, 224]


def test_chained_cases_do_not_depend_on_their_order_in_the_file():
    points = sample_points(
        {
            "loader.batch_size": {"by": "loader.image_size", 299: 32, "default": 64},
            "loader.image_size": {"by": "model.backbone", "inception_v3": 299, "vgg11": {"grid": [64, 96]}},
            "model.backbone": {"choice": ["inception_v3", "vgg11"]},
        },
        seed=3,
    )
    for point in points:
        assert list(point) == ["loader.batch_size", "loader.image_size", "model.backbone"]
        assert (point["loader.batch_size"] == 32) == (point["model.backbone"] == "inception_v3")
    assert len(points) == (1 if points[0]["model.backbone"] == "inception_v3" else 2)


def test_each_combination_of_listed_values_has_its_own_samples():
    values = {**BY_OPTIMIZER, "optimizer.momentum": {"uniform": [0.0, 0.9]}}
    points = sample_points(values)
    assert len(points) == 4 and len({point["optimizer.momentum"] for point in points}) == 4


def test_integer_ranges_include_both_bounds():
    found = {sample_points({"epochs": {"int": [2, 4]}}, seed)[0]["epochs"] for seed in range(40)}
    assert found == {2, 3, 4}


def test_the_number_of_points_is_counted_up_to_a_limit():
    parameters = read_parameters({**BY_OPTIMIZER, "epochs": {"int": [1, 5]}}, "space.yaml")
    assert domains.count(parameters, 1000) == 1000, "a uniform case is unlimited"
    listed = {"a": {"grid": [1, 2]}, "b": {"by": "a", 1: {"int": [1, 10]}}}
    assert domains.count(read_parameters(listed, "space.yaml"), 1000) == 11
    assert domains.count(read_parameters(listed, "space.yaml"), 5) == 5


def test_every_listed_value_is_probed_in_its_case():
    probed = list(domains.probes(read_parameters({**BY_OPTIMIZER, "epochs": {"int": [2, 9]}}, "space.yaml")))
    single = [(domain.where, points[0]) for domain, points in probed]
    assert single[3:] == [
        ("parameters.optimizer.lr.sgd.grid", {"optimizer.name": "sgd", "optimizer.lr": 0.1}),
        ("parameters.optimizer.lr.sgd.grid", {"optimizer.name": "sgd", "optimizer.lr": 0.01}),
        ("parameters.optimizer.lr.adam.uniform", {"optimizer.name": "adam", "optimizer.lr": 0.001}),
        ("parameters.optimizer.lr.adam.uniform", {"optimizer.name": "adam", "optimizer.lr": 0.002}),
        ("parameters.epochs.int", {"epochs": 2}),
        ("parameters.epochs.int", {"epochs": 9}),
    ]
    assert probed[2][1][1:] == [{"optimizer.name": "rmsprop", "epochs": epochs} for epochs in (2, 9)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": {"by": "b", 1: 2}}, "parameters.a.by is 'b', which is not searched"),
        (
            {"optimizer.name": {"grid": ["sgd"]}, "lr": {"by": "optimizer.nam", "sgd": 1}},
            "which is not searched; did you mean 'optimizer.name'",
        ),
        ({"a": {"by": "b", 1: 2}, "b": {"by": "a", 2: 1}}, "parameters.a.by: a by b by a is a cycle"),
        ({"a": {"grid": [1]}, "b": {"by": "a"}}, "parameters.b has no case"),
        ({"a": {"grid": ["sgd"]}, "b": {"by": "a", "sdg": 1}}, "a is never 'sdg'; did you mean 'sgd'"),
        ({"a": {"uniform": [0, 1]}, "b": {"by": "a", 1: 1}}, "parameters.a.uniform is a continuous range"),
        ({"a": {"grid": [1]}, "b": {"by": "a", 1: {"grid": []}}}, "parameters.b.1.grid is empty"),
        ({"a": {"int": [1.5, 3]}}, "expected two integers"),
        ({"a": {"int": [3, 3]}}, "expected two numbers, the lower first"),
        ({"a": {"int": [1, 3]}, "b": {"by": "a", 4: 1}}, "a is never 4"),
    ],
)
def test_an_error_names_the_key(values, message):
    with pytest.raises(UserError) as error:
        read_parameters(values, "space.yaml")
    assert message in str(error.value) and str(error.value).startswith("space.yaml: ")
