"""Stages: each parameter is in one stage, the classifier is the last stage, and frozen stages do not change."""

import pytest
import torch
from torch import nn

from landmark.commands.models import models
from landmark.config import ModelConfig, ModelsConfig, UserError
from landmark.models import build_model, classification_loss, count_parameters, model_info, rate_scales, train_mode
from landmark.models.registry import head_tensors, skeleton, stages_of
from landmark.models.stages import stages

EXPECTED = {
    "reference_cnn_max": ["0", "3", "6", "10", "12", "15", "17"],
    "resnet50": ["conv1 + bn1", "layer1", "layer2", "layer3", "layer4", "fc"],
    "regnet_y_400mf": ["stem", *(f"trunk_output.block{n}" for n in (1, 2, 3, 4)), "fc"],
    "convnext_tiny": [*(f"features.{n}" for n in range(7)), "features.7 + classifier.0", "classifier.2"],
    "swin_t": [*(f"features.{n}" for n in range(7)), "features.7 + norm", "head"],
    "timm/tf_efficientnet_lite0": [
        "conv_stem + bn1",
        *(f"blocks.{n}" for n in range(7)),
        "conv_head + bn2",
        "classifier",
    ],
    "timm/vit_tiny_patch16_224": ["patch_embed", *(f"blocks.{n}" for n in range(11)), "blocks.11 + norm", "head"],
    "timm/deit_tiny_distilled_patch16_224": [
        "patch_embed",
        *(f"blocks.{n}" for n in range(11)),
        "blocks.11 + norm",
        "head + head_dist",
    ],
}
OTHERS = [
    "alexnet",
    "densenet121",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "vgg11_bn",
    "vit_b_16",
]


@pytest.mark.parametrize("name", [*EXPECTED, *OTHERS])
def test_every_parameter_is_in_one_stage_and_the_classifier_is_the_last(name):
    config, size = ModelConfig(backbone=name), model_info(name).image_size
    model = skeleton(config, 7, size)
    found = stages(model)
    names = [name for name, _ in model.named_parameters()]
    assert sorted(parameter for stage in found for parameter in stage.parameters) == sorted(names)
    assert head_tensors(config, 7, size) & set(names) <= set(found[-1].parameters)
    if name in EXPECTED:
        assert [stage.name for stage in found] == EXPECTED[name]
    totals = [total for _, total in stages_of(config, classes=7, image_size=size)]
    assert sum(totals) == count_parameters(config, classes=7, image_size=size).total


def test_a_module_without_children_is_one_stage():
    assert [stage.parameters for stage in stages(nn.Linear(2, 2))] == [("weight", "bias")]


def test_learning_rates_decrease_stage_by_stage():
    scales = rate_scales(build_model(ModelConfig(backbone="resnet18"), classes=3, image_size=32), 0.5)
    assert scales["fc.weight"] == 1.0 and scales["layer4.1.bn2.bias"] == 0.5 and scales["conv1.weight"] == 0.5**5


def test_frozen_stages_keep_weights_and_statistics():
    config = ModelConfig(backbone="resnet18", freeze_stages=3)
    model = build_model(config, classes=3, image_size=64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    train_mode(model)
    classification_loss(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    changed = {
        name.partition(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"layer3", "layer4", "fc"}
    assert count_parameters(config, classes=3, image_size=64).trainable == sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )


def test_freezing_too_many_stages_is_a_one_line_error():
    assert build_model(ModelConfig(backbone="reference_mlp", freeze_stages=2), classes=3, image_size=16)
    with pytest.raises(UserError) as error:
        build_model(ModelConfig(backbone="reference_mlp", freeze_stages=3), classes=3, image_size=16)
    assert str(error.value) == (
        "model.freeze_stages is 3, but reference_mlp has 2 stages before its classifier; "
        "`landmark models reference_mlp --stages` lists them"
    )


def test_stages_are_listed(capsys):
    models(ModelsConfig(name="resnet18", stages=True, classes=3))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[1].split() == ["1", "9,536", "conv1", "+", "bn1"]
    assert lines[6].split() == ["6", "1,539", "fc", "(the", "classifier)"]
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        models(ModelsConfig(name="resnt18", stages=True))
