"""Effects of hyperparameters: comparable trials, groups by value and by quantile, explained variance."""

import math

import numpy as np
import pandas as pd
import pytest

from landmark.reporting.study.effects import comparable_trials, effect_of, importance, is_continuous, labels_of
from tests.reporting.studies import study_of


def board(key: str, values: list, metric: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"trial": [f"t{n}" for n in range(len(values))], key: values, "val_top1": metric})


def test_eta_squared_is_the_fraction_of_variance_between_groups():
    trials = board("optimizer.name", ["sgd", "sgd", "adam", "adam"], [0.2, 0.4, 0.6, 0.8])
    effect = effect_of(trials, "optimizer.name", "val_top1")
    assert [(group.label, len(group.values)) for group in effect.groups] == [("adam", 2), ("sgd", 2)]
    assert [group.mean for group in effect.groups] == pytest.approx([0.7, 0.3])
    # Between groups: 4 x 0.2^2 = 0.16. Total: 2 x (0.3^2 + 0.1^2) = 0.2.
    assert effect.explained == pytest.approx(0.8)
    assert effect.expected_by_chance == pytest.approx(1 / 3)


def test_parameter_without_effect_explains_what_is_expected_by_chance():
    rng = np.random.default_rng(0)
    explained = []
    for _ in range(300):
        trials = board("loader.image_size", [64, 96, 128] * 4, list(rng.normal(0.5, 0.1, 12)))
        effect = effect_of(trials, "loader.image_size", "val_top1")
        explained.append(effect.explained)
    assert np.mean(explained) == pytest.approx(effect.expected_by_chance, abs=0.03)


def test_binning_of_a_continuous_parameter_is_independent_of_scale():
    learning_rates = np.geomspace(1e-5, 1, 25)
    metric = 0.5 + 0.1 * np.sin(np.arange(25) / 4)
    by_value = effect_of(board("optimizer.lr", list(learning_rates), list(metric)), "optimizer.lr", "val_top1")
    by_log = effect_of(board("optimizer.lr", list(np.log(learning_rates)), list(metric)), "optimizer.lr", "val_top1")
    assert by_value.x is not None and [len(group.values) for group in by_value.groups] == [5] * 5
    assert by_value.explained == pytest.approx(by_log.explained) and by_value.explained > 0.85
    assert by_value.groups[0].label == "1e-05 … 6.81e-05"


def test_unset_values_are_excluded_and_equal_values_share_a_bin():
    values = [0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, None]
    effect = effect_of(board("loss.label_smoothing", values, [0.5] * 11), "loss.label_smoothing", "val_top1")
    assert len(effect.y) == 10 and effect.x is not None
    assert sum(len(group.values) for group in effect.groups) == 10
    assert effect.groups[0].label.startswith("0.1 … ") and len(effect.groups[0].values) >= 4
    assert math.isnan(effect.explained)


@pytest.mark.parametrize(
    ("values", "continuous"),
    [
        ([0.1, 0.2, 0.3], True),
        ([4, 12], False),
        ([64, 96, 64, 96], False),
        (list(range(7)) * 2, True),
        (["a", "b", "c"], False),
        ([True, False, True], False),
        ([1.0, None, None], False),
    ],
)
def test_numeric_parameters_with_few_values_are_not_continuous(values, continuous):
    assert is_continuous(pd.Series(values)) is continuous


def test_labels_are_ordered_by_value_and_unset_is_last():
    labels, order = labels_of(pd.Series([224.0, np.nan, 64.0, 1024.0]))
    assert order == ["64", "224", "1024", "none"]
    assert labels.tolist() == ["224", "none", "64", "1024"]
    assert labels_of(pd.Series(["b", "A", None], name="dataset"))[1] == ["A", "b", "study dataset"]


def test_explained_variance_is_undefined_for_few_trials_or_equal_metrics():
    few = effect_of(board("optimizer.name", ["a", "b", "b"], [0.1, 0.2, 0.3]), "optimizer.name", "val_top1")
    distinct = effect_of(board("optimizer.name", list("abcd"), [0.1, 0.2, 0.3, 0.4]), "optimizer.name", "val_top1")
    equal = effect_of(board("optimizer.name", list("aabb"), [0.5] * 4), "optimizer.name", "val_top1")
    assert all(math.isnan(effect.explained) for effect in (few, distinct, equal))
    table = importance([few, distinct], "max")
    assert table["explained"].isna().all() and table["best"].tolist() == ["b", "d"]


def test_importance_selects_the_best_value_by_mode():
    trials = board("optimizer.name", ["sgd", "sgd", "adam", "adam"], [0.2, 0.4, 0.6, 0.8])
    trials["epochs"] = [4, 8, 4, 8]
    effects = [effect_of(trials, key, "val_top1") for key in ("epochs", "optimizer.name")]
    table = importance(effects, "max")
    assert table["parameter"].tolist() == ["optimizer.name", "epochs"]
    assert table["explained"].tolist() == pytest.approx([0.8, 0.2])
    assert table["best"].tolist() == ["adam", "8"] and importance(effects, "min")["best"].tolist() == ["sgd", "4"]


def trial(name: str, status: str, top1: float | None, **values) -> dict:
    return {"trial": name, "status": status, "val_top1": top1, **values}


def test_finished_trials_are_compared_if_they_are_the_majority(tmp_path):
    trials = [
        trial("a", "finished", 0.9, epochs=4),
        trial("b", "finished", 0.5, epochs=8),
        trial("c", "stopped early", 0.1, epochs=4),
        trial("d", "failed", None, epochs=8),
    ]
    study = study_of(tmp_path, trials, {"a": [0.9], "b": [0.5], "c": [0.1]}, parameters=["epochs", "optimizer.name"])
    comparable = comparable_trials(study)
    assert comparable.trials["trial"].tolist() == ["a", "b"] and comparable.keys == ["epochs"]
    assert comparable.description.startswith("Based on the 2 trials that ran all of their epochs. Excluded trials: 2.")


def test_if_most_trials_stopped_early_all_are_compared_at_the_epoch_that_half_reached(tmp_path):
    trials = [
        trial("a", "finished", 0.9, epochs=8, **{"optimizer.name": "sgd"}),
        trial("b", "stopped early", 0.45, **{"optimizer.name": "sgd"}),
        trial("c", "stopped early", 0.4, **{"optimizer.name": "adam"}),
        trial("d", "stopped early", 0.1, **{"optimizer.name": "adam"}),
    ]
    history = {"a": [0.1, 0.3, 0.2, 0.9], "b": [0.4, 0.45], "c": [0.2, 0.4], "d": [0.1]}
    study = study_of(tmp_path, trials, history, parameters=["optimizer.name", "epochs"])
    comparable = comparable_trials(study)
    assert dict(zip(comparable.trials["trial"], comparable.trials["val_top1"], strict=True)) == {
        "a": 0.3,
        "b": 0.45,
        "c": 0.4,
    }
    assert comparable.keys == ["optimizer.name"]
    assert comparable.epoch == 2 and "number of epochs is not analyzed" in comparable.description
    assert (
        "compared by their best value up to epoch 2" in comparable.description
        and "the 3 trials that reached this epoch. Excluded trials: 1." in comparable.description
    )


def test_losses_are_compared_by_their_minimum(tmp_path):
    trials = [trial(name, "stopped early", None, val_loss=1.0) for name in "ab"]
    study = study_of(tmp_path, trials, {"a": [2.0, 1.0, 3.0], "b": [4.0, 5.0]}, metric="val_loss", mode="min")
    comparable = comparable_trials(study)
    assert comparable.trials["val_loss"].tolist() == [1.0]
    assert "compared by their best value up to epoch 3" in comparable.description
