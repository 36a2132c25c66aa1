"""The registry: parameter counts of the reference study, heads of the right size, and clear errors."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark.config import LoaderConfig, ModelConfig, OptimizerConfig, TrainConfig, UserError
from landmark.models import (
    build_model,
    build_skeleton,
    classification_loss,
    count_parameters,
    logits_of,
    model_info,
    model_names,
    train_mode,
)
from landmark.models.reference import feature_side
from landmark.models.registry import head_tensors
from landmark.training.run import run_training
from tests.support.packed import write_packed

FAMILIES = [
    "reference_mlp",
    "resnet18",
    "densenet121",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "vgg11",
    "squeezenet1_0",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "vit_b_16",
    "googlenet",
    "timm/resnet10t",
    "timm/vit_tiny_patch16_224",
]


@pytest.mark.parametrize("name", ["reference_cnn_max", "reference_cnn_avg"])
def test_the_reference_cnns_have_the_parameter_counts_of_the_study(name):
    counts = count_parameters(ModelConfig(backbone=name), classes=100, image_size=299)
    assert (counts.total, counts.trainable, counts.frozen) == (12_463_400, 12_460_600, 2_800)


@pytest.mark.parametrize(("name", "kind"), [("reference_cnn_max", "MaxPool2d"), ("reference_cnn_avg", "AvgPool2d")])
def test_the_reference_cnns_have_the_layers_of_the_study(name, kind):
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=name), classes=100, image_size=299)
        shapes, x = [], torch.empty(1, 3, 299, 299)
        for layer in model:
            x = layer(x)
            layer_name = type(layer).__name__
            if layer_name not in ("ReLU", "Dropout"):
                parameters = sum(parameter.numel() for parameter in layer.parameters())
                shapes.append((layer_name, tuple(x.shape[1:]), parameters))
    assert shapes == [
        ("Conv2d", (100, 297, 297), 2_800),
        (kind, (100, 148, 148), 0),
        ("Conv2d", (100, 146, 146), 90_100),
        (kind, (100, 73, 73), 0),
        ("Conv2d", (100, 71, 71), 90_100),
        (kind, (100, 35, 35), 0),
        ("Flatten", (122_500,), 0),
        ("Linear", (100,), 12_250_100),
        ("Linear", (100,), 10_100),
        ("Linear", (100,), 10_100),
        ("Linear", (100,), 10_100),
    ]


@given(st.integers(22, 400))
@settings(max_examples=20)
def test_the_reference_cnn_accepts_any_image_size(size):
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone="reference_cnn_max"), classes=3, image_size=size)
        assert model(torch.empty(1, 3, size, size)).shape == (1, 3)
    assert feature_side(299) == 35


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_every_family_return_one_logit_per_class(name):
    size = 224 if "vit" in name or "swin" in name else 64
    model = build_model(ModelConfig(backbone=name), classes=7, image_size=size)
    train_mode(model)
    output = model(torch.randn(2, 3, size, size))
    assert logits_of(output).shape == (2, 7)
    loss = classification_loss(output, torch.tensor([0, 6]), 0.1)
    loss.backward()
    assert torch.isfinite(loss)
    model.eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, size, size)).shape == (1, 7)


def test_inception_uses_its_auxiliary_head_only_at_its_default_size():
    model = build_model(ModelConfig(backbone="inception_v3"), classes=5, image_size=299)
    train_mode(model)
    output = model(torch.randn(2, 3, 299, 299))
    labels = torch.tensor([1, 2])
    both = classification_loss(output, labels)
    main = torch.nn.functional.cross_entropy(output.logits, labels)
    auxiliary = torch.nn.functional.cross_entropy(output.aux_logits, labels)
    assert torch.allclose(both, main + 0.4 * auxiliary)
    small = build_model(ModelConfig(backbone="inception_v3"), classes=5, image_size=96)
    train_mode(small)
    assert small(torch.randn(2, 3, 96, 96)).shape == (2, 5)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        build_model(ModelConfig(backbone="resnt50"), classes=3, image_size=64)
    with pytest.raises(UserError, match="did you mean 'timm/resnet18'"):
        model_info("timm/resnet18_")


def test_an_image_that_is_too_small_is_refused_with_the_default_size():
    with pytest.raises(UserError, match=r"loader\.image_size is 16: vgg11 does not accept .* 224"):
        build_model(ModelConfig(backbone="vgg11"), classes=3, image_size=16)


def test_dropout_is_set_or_refused():
    model = build_model(ModelConfig(backbone="efficientnet_b0", dropout=0.7), classes=3, image_size=64)
    assert model.classifier[0].p == 0.7
    with pytest.raises(UserError, match="resnet18 has no dropout"):
        build_model(ModelConfig(backbone="resnet18", dropout=0.7), classes=3, image_size=64)


def test_a_frozen_backbone_does_not_change():
    model = build_model(ModelConfig(backbone="resnet18", freeze_backbone=True), classes=3, image_size=64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    train_mode(model)
    classification_loss(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
    counts = count_parameters(ModelConfig(backbone="resnet18", freeze_backbone=True), classes=3, image_size=64)
    assert counts.trainable == 3 * 513


def test_normalization_and_image_size_are_those_of_the_model():
    assert model_info("inception_v3").image_size == 299
    assert model_info("resnet50").mean == (0.485, 0.456, 0.406)
    assert model_info("timm/tf_efficientnet_lite0").mean == (0.5, 0.5, 0.5)
    assert model_info("reference_cnn_max").image_size == 299
    assert len(model_names()) > 80


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_tiny", "timm/vit_tiny_patch16_224"])
def test_norm_and_bias_tuning_trains_only_vectors_and_the_classifier(backbone: str):
    config = ModelConfig(backbone=backbone, tuning="norm_bias")
    model = build_skeleton(config, classes=3, image_size=224)
    head = head_tensors(config, 3, 224)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert head <= trained.keys()
    norms = [module for module in model.modules() if "Norm" in type(module).__name__ and not list(module.children())]
    assert norms and all(weight.requires_grad for norm in norms for weight in norm.parameters())
    others = [weight for name, weight in model.named_parameters() if name not in trained]
    assert others and all(weight.ndim >= 2 for weight in others)
    body = sum(weight.numel() for name, weight in trained.items() if name not in head)
    assert 0 < body < 0.01 * sum(weight.numel() for weight in others)


def test_a_run_with_norm_and_bias_tuning_changes_nothing_else(tmp_path):
    dataset = write_packed(tmp_path / "dataset", {"train": [24], "val": [8]}, classes=3)
    source = build_model(ModelConfig(backbone="shufflenet_v2_x0_5"), classes=3, image_size=32)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "start.safetensors")
    run = run_training(
        TrainConfig(
            dataset=dataset.location.uri,
            output=str(tmp_path / "runs"),
            epochs=1,
            model=ModelConfig(
                backbone="shufflenet_v2_x0_5", weights=str(tmp_path / "start.safetensors"), tuning="norm_bias"
            ),
            optimizer=OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1),
            loader=LoaderConfig(image_size=32, batch_size=8, decode_threads=1),
            tensorboard=False,
        )
    )
    tensors = safetensors.torch.load_file(Path(run.run) / run.last_checkpoint / "model.safetensors")
    changed = {name for name, value in source.named_parameters() if not torch.equal(value, tensors[name])}
    vectors = {name for name, value in source.named_parameters() if value.ndim == 1}
    assert changed == vectors | {"fc.weight"}
    with pytest.raises(ValueError, match="model.tuning is norm_bias, but model.freeze_backbone trains only"):
        ModelConfig(tuning="norm_bias", freeze_backbone=True)
