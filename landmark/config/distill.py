"""Config of distillation: a model is also trained with the outputs of trained models."""

from dataclasses import dataclass

from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class DistillConfig:
    """Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531): the model also learns the probabilities of trained models, the
    teachers. The teachers' features of each training image's center crop are computed once and stored."""

    teachers: tuple[str, ...] = ()
    """Runs, studies (their best model) or checkpoints of the same classes: folders or URIs. Several teachers are an ensemble, whose
    probabilities are averaged. [default: no distillation]"""
    weight: float = 0.5
    """Weight of the teachers' probabilities in the loss. The labels have the remaining weight."""
    temperature: float = 2.0
    """Factor by which the logits of teachers and model are divided for this loss."""
    features: str | None = None
    """Folder or URI of the stored features. Runs and trials share it. [default: features in the output folder]"""

    def __post_init__(self) -> None:
        require(0 < self.weight <= 1, f"distill.weight is {self.weight}; expected above 0, up to 1")
        require(self.temperature > 0, f"distill.temperature is {self.temperature}; expected above 0")
        for name, default in (("weight", 0.5), ("temperature", 2.0), ("features", None)):
            require(
                bool(self.teachers) or getattr(self, name) == default,
                f"distill.{name} is set, but distill.teachers is empty; set distill.teachers, or remove distill.{name}",
            )
