"""Tests the classifiers of the probe against scikit-learn and direct solutions."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from landmark.config import LossConfig, ModelConfig, ProbeConfig, Recipe
from landmark.training.probe.heads import Examples, fit_head, logistic, ridge

CLASSES, WIDTH = 5, 12


def examples(rows: int, seed: int, spread: float = 1.0) -> Examples:
    """Return overlapping classes with features of very different scales."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    means = np.random.default_rng(0).normal(size=(CLASSES, WIDTH))
    features = (means[labels] + spread * rng.normal(size=(rows, WIDTH))) * np.logspace(-2, 2, WIDTH) + 3
    return Examples(features=torch.from_numpy(features).float(), labels=torch.from_numpy(labels))


def unit(data: Examples) -> Examples:
    features = data.features
    return Examples(features=(features - features.mean(0)) / features.std(0), labels=data.labels)


def recipe(head: str, **loss: str) -> Recipe:
    return Recipe(
        epochs=1,
        model=ModelConfig(weights="DEFAULT", freeze_backbone=True),
        probe=ProbeConfig(head=head),  # type: ignore[arg-type]
        loss=LossConfig(**loss),  # type: ignore[arg-type]
    )


def counts(data: Examples) -> np.ndarray:
    return np.bincount(data.labels.numpy(), minlength=CLASSES)


def equal(rows: int) -> torch.Tensor:
    return torch.full((rows,), 1 / rows)


@pytest.mark.parametrize("l2", [0.1, 0.001])
def test_logistic_regression_is_that_of_scikit_learn(l2: float) -> None:
    data = unit(examples(400, 1))
    (head,) = logistic(data, CLASSES, equal(400), (l2,), lambda: None)
    theirs = LogisticRegression(C=1 / (400 * l2), tol=1e-8, max_iter=10000)
    theirs.fit(data.features.double().numpy(), data.labels.numpy())
    ours = head.logits(data.features).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(data.features.double().numpy()), atol=2e-3)


def test_image_weights_are_those_of_scikit_learn() -> None:
    data = unit(examples(400, 1))
    weights = np.random.default_rng(3).uniform(0.1, 3, 400)
    given = torch.from_numpy(weights / weights.sum()).float()
    (head,) = logistic(data, CLASSES, given, (0.01,), lambda: None)
    theirs = LogisticRegression(C=1 / (weights.sum() * 0.01), tol=1e-8, max_iter=10000)
    theirs.fit(data.features.double().numpy(), data.labels.numpy(), sample_weight=weights)
    ours = head.logits(data.features).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(data.features.double().numpy()), atol=2e-3)
    (weighted,) = ridge(data, CLASSES, given, (0.3,))
    least = Ridge(alpha=0.3 * weights.sum())
    least.fit(data.features.double().numpy(), np.eye(CLASSES)[data.labels.numpy()], sample_weight=weights)
    np.testing.assert_allclose(weighted.weight.numpy(), least.coef_, atol=1e-5)
    np.testing.assert_allclose(weighted.bias.numpy(), least.intercept_, atol=1e-5)


def test_prototypes_predict_the_class_with_the_largest_cosine_of_centered_features() -> None:
    train, val = examples(200, 1), examples(300, 2)
    found, _ = fit_head(train, val, counts(train), recipe("prototypes"), lambda: None)
    mean = train.features.mean(0)
    directions = [torch.nn.functional.normalize(data.features - mean) for data in (train, val)]
    means = torch.stack([directions[0][train.labels == number].mean(0) for number in range(CLASSES)])
    cosines = directions[1] @ torch.nn.functional.normalize(means).T
    assert (found.logits(val.features).argmax(1) == cosines.argmax(1)).all()


@pytest.mark.parametrize("head", ["logistic", "ridge", "prototypes", "auto"])
def test_the_chosen_classifier_applies_to_features_as_they_are_and_is_calibrated(head: str) -> None:
    train, val = examples(400, 1), examples(300, 2)
    found, metrics = fit_head(train, val, counts(train), recipe(head), lambda: None)
    logits = found.logits(val.features)
    assert metrics["val_top1"] == pytest.approx(float((logits.argmax(1) == val.labels).double().mean()))
    loss = torch.nn.functional.cross_entropy
    assert metrics["val_loss"] == pytest.approx(float(loss(logits, val.labels)), rel=1e-4)
    for other in (0.8, 1.25):  # no other temperature has a lower loss
        assert float(loss(logits * other, val.labels)) > metrics["val_loss"]
    if head != "auto":
        assert found.method == head


def test_auto_is_the_one_with_the_lowest_validation_loss() -> None:
    train, val = examples(30, 1, spread=2.0), examples(300, 2, spread=2.0)
    each = {
        head: fit_head(train, val, counts(train), recipe(head), lambda: None)[1]["val_loss"]
        for head in ("logistic", "ridge", "prototypes", "auto")
    }
    assert each["auto"] == min(each.values())


def test_the_best_regularization_is_neither_end_of_the_grid_for_noisy_features() -> None:
    train, val = examples(60, 1, spread=2.0), examples(500, 2, spread=2.0)
    found, metrics = fit_head(train, val, counts(train), recipe("logistic"), lambda: None)
    assert found.l2 is not None and 1e-6 < found.l2 < 1
    (weak,) = logistic(unit(train), CLASSES, equal(60), (1e-6,), lambda: None)
    scaled = (val.features - train.features.mean(0)) / train.features.std(0)
    assert metrics["val_loss"] < float(torch.nn.functional.cross_entropy(weak.logits(scaled), val.labels))


@pytest.mark.parametrize("loss", [{"class_weights": "balanced"}, {"logit_adjustment": 1.0}])
def test_balancing_raises_the_recall_of_a_rare_class(loss: dict) -> None:
    train, val = examples(600, 1, spread=2.0), examples(600, 2, spread=2.0)
    kept = (train.labels != 0) | (torch.arange(600) % 10 == 0)
    train = Examples(features=train.features[kept], labels=train.labels[kept])

    def recall(**loss: str) -> float:
        head, _ = fit_head(train, val, counts(train), recipe("logistic", **loss), lambda: None)
        own = val.labels == 0
        return float((head.logits(val.features[own]).argmax(1) == 0).double().mean())

    assert recall(**loss) > recall() + 0.1


def test_logit_adjustment_is_logistic_regression_with_an_offset() -> None:
    data = unit(examples(400, 1))
    added = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    (plain,) = logistic(data, CLASSES, equal(400), (0.01,), lambda: None)
    (adjusted,) = logistic(data, CLASSES, equal(400), (0.01,), lambda: None, added)
    # Biases are not regularized, so that only they change.
    torch.testing.assert_close(adjusted.weight, plain.weight, atol=1e-3, rtol=0)
    difference = adjusted.bias + added - plain.bias
    torch.testing.assert_close(difference - difference.mean(), torch.zeros(CLASSES), atol=1e-3, rtol=0)
