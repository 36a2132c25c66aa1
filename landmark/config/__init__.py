"""Typed configuration: one dataclass a component, YAML in and out, command line by the same fields."""

from landmark.config.dataset import (
    ClusterConfig,
    FoldersConfig,
    PackingConfig,
    PrepareConfig,
    RepackConfig,
    SplitConfig,
    SyntheticConfig,
)
from landmark.config.errors import UserError, nearest
from landmark.config.files import from_mapping, load_yaml, parse_yaml, to_mapping, to_yaml
from landmark.config.recipe import (
    AugmentConfig,
    EarlyStoppingConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
)
from landmark.config.space import BudgetConfig, SchedulerConfig, SpaceConfig
from landmark.config.subset import Gldv2Config, SubsetConfig
from landmark.config.verbs import (
    EvaluateConfig,
    ReportConfig,
    TrainConfig,
    TuneConfig,
    WorkersConfig,
)

__all__ = [
    "AugmentConfig",
    "BudgetConfig",
    "ClusterConfig",
    "EarlyStoppingConfig",
    "EvaluateConfig",
    "FoldersConfig",
    "Gldv2Config",
    "LoaderConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PackingConfig",
    "PrepareConfig",
    "Recipe",
    "RepackConfig",
    "ReportConfig",
    "ScheduleConfig",
    "SchedulerConfig",
    "SpaceConfig",
    "SplitConfig",
    "SubsetConfig",
    "SyntheticConfig",
    "TrainConfig",
    "TuneConfig",
    "UserError",
    "WorkersConfig",
    "from_mapping",
    "load_yaml",
    "nearest",
    "parse_yaml",
    "to_mapping",
    "to_yaml",
]
