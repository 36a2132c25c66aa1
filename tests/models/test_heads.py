"""Heads match the formulas of their papers; pooling, neck and start weights work for each kind of backbone."""

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.config import HeadConfig, ModelConfig, Recipe, UserError, from_mapping
from landmark.models import (
    Embedder,
    MixedLabels,
    build_margin,
    build_model,
    classification_loss,
    count_parameters,
    embedding_classifier,
    train_mode,
)
from landmark.models.heads import Classifier, GeM, margins_by_size
from landmark.models.registry import head_tensors, stages_of

WIDTH, CLASSES, ROWS = 6, 5, 40


def classifier_of(config: HeadConfig) -> Classifier:
    torch.manual_seed(1)
    return Classifier(config, WIDTH, CLASSES).double()


def compute_logits(config: HeadConfig, counts: np.ndarray | None = None):
    """Return embeddings, labels, logits without the margin and logits with the margin, all from the module."""
    head = classifier_of(config)
    random = torch.Generator().manual_seed(2)
    embeddings = torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=random)
    # Some images are opposite to their own prototype: there, angle plus margin exceeds pi.
    prototype = head.weight.detach().reshape(CLASSES, -1, WIDTH)[:, 0]
    embeddings[:4] = -prototype[labels[:4]] + 0.01 * embeddings[:4]
    plain = head.logits(embeddings, head.weight, head.bias).detach()
    margin = build_margin(config, counts, torch.device("cpu"))
    return embeddings.numpy(), labels, plain, plain if margin is None else margin.on_all(plain, labels)


def cosines_by_numpy(embeddings: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return cosines (n, classes, k), computed one by one."""
    weight = weight.reshape(CLASSES, -1, WIDTH)
    cosines = np.empty((len(embeddings), CLASSES, weight.shape[1]))
    for image, row in enumerate(embeddings):
        for label in range(CLASSES):
            for index in range(weight.shape[1]):
                prototype = weight[label, index]
                cosines[image, label, index] = row @ prototype / (np.sqrt(row @ row) * np.sqrt(prototype @ prototype))
    return cosines


@pytest.mark.parametrize("name", ["cosface", "arcface", "subcenter"])
@pytest.mark.parametrize("min_margin", [None, 0.1])
def test_a_head_matches_the_formula_of_its_paper(name, min_margin):
    config = HeadConfig(name=name, scale=16.0, margin=0.4, min_margin=min_margin)
    counts = np.array([1, 3, 20, 100, 900])
    embeddings, labels, plain, with_margin = compute_logits(config, counts)
    weight = classifier_of(config).weight.detach().numpy()
    cosines = cosines_by_numpy(embeddings, weight).max(axis=2)
    np.testing.assert_allclose(plain.numpy(), 16 * cosines, atol=1e-6)
    margins = np.full(CLASSES, 0.4)
    if min_margin is not None:
        powers = 1 / counts**0.25
        a = (0.4 - 0.1) / (powers[0] - powers[-1])
        margins = a * powers + (0.1 - a * powers[-1])
        assert margins[0] == pytest.approx(0.4) and margins[-1] == pytest.approx(0.1)
    expected, beyond_pi = 16 * cosines, 0
    for image, label in enumerate(labels.tolist()):
        cosine, margin = cosines[image, label], margins[label]
        if name == "cosface":
            cosine_with_margin = cosine - margin
        elif np.arccos(cosine) + margin <= np.pi:
            cosine_with_margin = np.cos(np.arccos(cosine) + margin)
        else:
            cosine_with_margin, beyond_pi = cosine - margin * np.sin(margin), beyond_pi + 1
        expected[image, label] = 16 * cosine_with_margin
    np.testing.assert_allclose(with_margin.numpy(), expected, atol=1e-4)
    assert name != "arcface" or beyond_pi >= 2


def test_a_linear_head_has_weights_and_biases_and_no_margin():
    embeddings, _, plain, with_margin = compute_logits(HeadConfig())
    head = classifier_of(HeadConfig())
    np.testing.assert_allclose(plain.numpy(), embeddings @ head.weight.detach().numpy().T + head.bias.detach().numpy())
    assert plain is with_margin and head.bias.shape == (CLASSES,)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=40), st.floats(0.1, 1.0))
def test_dynamic_margins_decrease_with_class_size_within_bounds(counts, power):
    config = HeadConfig(name="arcface", margin=0.5, min_margin=0.05, margin_power=power)
    margins = margins_by_size(np.array(counts), config)
    order = np.argsort(counts, kind="stable")
    assert (np.diff(margins[order]) <= 1e-6).all()
    assert margins.max() == pytest.approx(0.5, abs=1e-5)
    if len({max(count, 1) for count in counts}) > 1:
        assert margins.min() == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize("name", ["cosface", "arcface", "subcenter"])
def test_the_loss_of_a_mixed_image_weights_both_labels(name):
    config = HeadConfig(name=name, scale=8.0)
    _, labels, plain, _ = compute_logits(config)
    margin = build_margin(config, None, torch.device("cpu"))
    second = labels.roll(1)
    found = classification_loss(plain, labels, 0.1, mixed=MixedLabels(labels=second, weight=0.3), margin=margin)
    one, two = (classification_loss(plain, each, 0.1, margin=margin) for each in (labels, second))
    assert found.item() == pytest.approx((0.3 * one + 0.7 * two).item())
    expected = torch.nn.functional.cross_entropy(margin.on_all(plain, labels).float(), labels, label_smoothing=0.1)
    assert one.item() == pytest.approx(expected.item())
    assert one > classification_loss(plain, labels, 0.1)


def test_gradients_stay_finite_if_image_and_prototype_coincide():
    own = torch.tensor([30.0, -30.0, 29.999999], requires_grad=True)
    margin = build_margin(HeadConfig(name="arcface"), None, torch.device("cpu"))
    margin(own, torch.zeros(3, dtype=torch.int64)).sum().backward()
    assert torch.isfinite(own.grad).all()


def test_gem_is_the_generalized_mean():
    pool, maps = GeM(), torch.rand(2, 3, 4, 5) + 0.1
    assert pool(maps).shape == (2, 3, 1, 1)
    for power in (1.0, 3.0, 4.5):
        pool.power.data.fill_(power)
        expected = (maps.numpy().astype(np.float64) ** power).mean(axis=(2, 3)) ** (1 / power)
        np.testing.assert_allclose(pool(maps).detach().numpy()[:, :, 0, 0], expected, rtol=1e-5)
    pool(torch.zeros(1, 1, 2, 2)).backward()
    assert torch.isfinite(pool.power.grad).all()


BACKBONES = {
    "resnet18": (64, True),
    "inception_v3": (75, True),
    "googlenet": (64, True),
    "mobilenet_v3_small": (64, True),
    "vgg11": (64, False),
    "densenet121": (64, False),
    "reference_mlp": (16, False),
    "timm/resnet10t": (64, True),
    "timm/tf_efficientnet_lite0": (64, True),
    "timm/vit_tiny_patch16_224": (224, False),
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_kind_of_backbone_becomes_an_embedding_model(backbone):
    size, has_pooling = BACKBONES[backbone]
    config = ModelConfig(backbone=backbone, neck=24, head=HeadConfig(name="subcenter", subcenters=2))
    model = build_model(config, classes=7, image_size=size)
    train_mode(model)
    model(torch.randn(2, 3, size, size)).logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    embeddings, logits = Embedder(model).with_logits(torch.randn(2, 3, size, size))
    prototypes = torch.nn.functional.normalize(embedding_classifier(model).weight, dim=2)
    torch.testing.assert_close(logits, 30 * torch.einsum("nd,ckd->nck", embeddings, prototypes).amax(2))
    assert embeddings.shape == (2, 24)
    *_, neck, last = stages_of(config, classes=7, image_size=size)
    assert last[1] == 7 * 2 * 24 and "neck" in neck[0].name
    with_gem = ModelConfig(backbone=backbone, pooling="gem")
    if has_pooling:
        pools = [
            module for module in build_model(with_gem, classes=3, image_size=size).modules() if isinstance(module, GeM)
        ]
        assert len(pools) == 1
    else:
        with pytest.raises(UserError, match=f"{backbone} has no global average pooling layer"):
            build_model(with_gem, classes=3, image_size=size)


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "timm/deit_tiny_distilled_patch16_224"])
def test_a_model_without_a_single_linear_last_layer_is_refused(backbone):
    with pytest.raises(UserError, match="whose classifier ends in one linear layer"):
        build_model(ModelConfig(backbone=backbone, neck=8), classes=3, image_size=224)


def test_freezing_the_backbone_still_trains_pooling_neck_and_classifier():
    config = ModelConfig(
        backbone="resnet18", pooling="gem", neck=16, freeze_backbone=True, head=HeadConfig(name="arcface")
    )
    model = build_model(config, classes=3, image_size=64)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        "avgpool.power",
        "fc.neck.0.weight",
        "fc.neck.1.weight",
        "fc.neck.1.bias",
        "fc.classifier.weight",
    }
    assert count_parameters(config, classes=3, image_size=64).trainable == 1 + 512 * 16 + 32 + 3 * 16


def test_an_embedding_model_starts_from_plain_or_embedding_weights(tmp_path):
    plain = build_model(ModelConfig(backbone="resnet18"), classes=10, image_size=64)
    safetensors.torch.save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    shape = {"backbone": "resnet18", "neck": 16, "head": HeadConfig(name="arcface")}
    first = build_model(ModelConfig(**shape, weights=str(tmp_path / "plain.safetensors")), classes=4, image_size=64)
    assert torch.equal(first.layer4[1].conv2.weight, plain.layer4[1].conv2.weight)
    safetensors.torch.save_file(first.state_dict(), tmp_path / "embedding.safetensors")
    second = build_model(
        ModelConfig(**shape, weights=str(tmp_path / "embedding.safetensors")), classes=6, image_size=64
    )
    assert torch.equal(second.fc.neck[0].weight, first.fc.neck[0].weight)
    assert second.fc.classifier.weight.shape == (6, 16)
    with pytest.raises(UserError, match="fc.neck"):
        build_model(
            ModelConfig(backbone="resnet18", weights=str(tmp_path / "embedding.safetensors")), classes=4, image_size=64
        )


def test_a_neck_uses_running_statistics_for_a_single_image():
    model = build_model(ModelConfig(backbone="reference_mlp", neck=8), classes=3, image_size=16)
    train_mode(model)
    assert torch.isfinite(model(torch.randn(1, 3, 16, 16))).all()
    assert model[5].neck[1].num_batches_tracked == 0


def test_the_default_model_has_no_embedding_head():
    assert not ModelConfig().is_embedding()
    assert head_tensors(ModelConfig(), 3, 64) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"head": {"margin": 0.3}}}, "a linear head has no margin"),
        ({"model": {"head": {"name": "arcface", "margin": 1.0}}}, "margin is 1.0; expected 0 to below 1"),
        ({"model": {"head": {"name": "arcface", "min_margin": 0.6}}}, "expected 0 to margin"),
        ({"model": {"head": {"sample": 0}}}, "sample is 0.0; expected above 0"),
        ({"model": {"head": {"scale": 0}}}, "scale is 0.0; expected above 0"),
        ({"model": {"neck": -1}}, "neck is -1"),
        ({"model": {"freeze_backbone": True, "head": {"sample": 0.1}}}, "set model.neck"),
        (
            {"model": {"head": {"sample": 0.1}}, "ema": {"decay": 0.9}},
            "ema.decay is set, which model.head.sample does not support",
        ),
        ({"model": {"head": {"sample": 0.1}}, "compute": {"accumulate": 2}}, "compute.accumulate is set"),
    ],
)
def test_an_invalid_setting_is_a_one_line_error(values, message):
    with pytest.raises(UserError, match=message) as error:
        from_mapping(Recipe, values, "recipe.yaml")
    assert "\n" not in str(error.value)
