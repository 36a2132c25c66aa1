"""Models by name: the reference study's models, all torchvision classifiers, and timm's (optional extra)."""

from landmark.models.averaging import Ensemble, FlipAveraged
from landmark.models.calibration import fit_temperature, with_temperature
from landmark.models.embeddings import Embedder, FeatureModel
from landmark.models.heads import Classifier, Margin, build_margin, embedding_classifier
from landmark.models.lora import has_lora, plain_state
from landmark.models.losses import (
    MixedLabels,
    Targets,
    class_weights,
    classification_loss,
    distillation_loss,
    logit_adjustment,
    logits_of,
)
from landmark.models.pretrained import with_hub_model
from landmark.models.registry import (
    ModelInfo,
    ParameterCounts,
    build_model,
    build_skeleton,
    check_images,
    check_name,
    check_start_size,
    count_parameters,
    make_trainable,
    model_info,
    model_names,
    needs_two_images,
    train_mode,
)
from landmark.models.stages import Stage, rate_scales, stages

__all__ = [
    "Classifier",
    "Embedder",
    "Ensemble",
    "FeatureModel",
    "FlipAveraged",
    "Margin",
    "MixedLabels",
    "ModelInfo",
    "ParameterCounts",
    "Stage",
    "Targets",
    "build_margin",
    "build_model",
    "build_skeleton",
    "check_images",
    "check_name",
    "check_start_size",
    "class_weights",
    "classification_loss",
    "count_parameters",
    "distillation_loss",
    "embedding_classifier",
    "fit_temperature",
    "has_lora",
    "logit_adjustment",
    "logits_of",
    "make_trainable",
    "model_info",
    "model_names",
    "needs_two_images",
    "plain_state",
    "rate_scales",
    "stages",
    "train_mode",
    "with_hub_model",
    "with_temperature",
]
