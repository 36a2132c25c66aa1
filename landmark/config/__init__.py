"""Typed configuration: one dataclass per component, used by YAML files and the command line."""

from landmark.config.commands.cleaning import CleanConfig, DuplicatesConfig, NoiseConfig, QualityConfig
from landmark.config.commands.cluster import CheckConfig, StatusConfig
from landmark.config.commands.evaluation import NEIGHBORS, EvaluateConfig, IndexConfig, InferenceConfig, PredictConfig
from landmark.config.commands.information import (
    DoctorConfig,
    FetchConfig,
    ModelsConfig,
    RecipesConfig,
    ShowConfig,
    SpacesConfig,
)
from landmark.config.commands.prepare import (
    ClusterConfig,
    FoldersConfig,
    PackingConfig,
    PrepareConfig,
    RepackConfig,
    SplitConfig,
    SyntheticConfig,
)
from landmark.config.commands.report import ReportConfig
from landmark.config.commands.soup import SoupConfig
from landmark.config.commands.training import (
    CheckpointConfig,
    TrainConfig,
    TuneConfig,
    WorkersConfig,
)
from landmark.config.distill import DistillConfig
from landmark.config.errors import STOPPED, Stopped, UserError, nearest
from landmark.config.files import (
    from_mapping,
    load_yaml,
    parse_mapping,
    parse_yaml,
    to_mapping,
    to_stored_yaml,
    to_yaml,
)
from landmark.config.head import HeadConfig
from landmark.config.input import CROP_PCT, AugmentConfig, CacheOptions, LoaderConfig, ResizingConfig, SamplingConfig
from landmark.config.optimization import ComputeConfig, EmaConfig, LossConfig, OptimizerConfig, ScheduleConfig
from landmark.config.probe import ProbeConfig
from landmark.config.recipe import MAX_EPOCHS, EarlyStoppingConfig, ModelConfig, Recipe, last_epoch
from landmark.config.secrets import mask_credentials
from landmark.config.space import BudgetConfig, SchedulerConfig, SearcherConfig, SpaceConfig
from landmark.config.subset import (
    Gldv2Config,
    SubsetConfig,
    recorded_subset,
    resumed_subset,
    with_recorded_subset,
)

__all__ = [
    "CROP_PCT",
    "MAX_EPOCHS",
    "NEIGHBORS",
    "STOPPED",
    "AugmentConfig",
    "BudgetConfig",
    "CacheOptions",
    "CheckConfig",
    "CheckpointConfig",
    "CleanConfig",
    "ClusterConfig",
    "ComputeConfig",
    "DistillConfig",
    "DoctorConfig",
    "DuplicatesConfig",
    "EarlyStoppingConfig",
    "EmaConfig",
    "EvaluateConfig",
    "FetchConfig",
    "FoldersConfig",
    "Gldv2Config",
    "HeadConfig",
    "IndexConfig",
    "InferenceConfig",
    "LoaderConfig",
    "LossConfig",
    "ModelConfig",
    "ModelsConfig",
    "NoiseConfig",
    "OptimizerConfig",
    "PackingConfig",
    "PredictConfig",
    "PrepareConfig",
    "ProbeConfig",
    "QualityConfig",
    "Recipe",
    "RecipesConfig",
    "RepackConfig",
    "ReportConfig",
    "ResizingConfig",
    "SamplingConfig",
    "ScheduleConfig",
    "SchedulerConfig",
    "SearcherConfig",
    "ShowConfig",
    "SoupConfig",
    "SpaceConfig",
    "SpacesConfig",
    "SplitConfig",
    "StatusConfig",
    "Stopped",
    "SubsetConfig",
    "SyntheticConfig",
    "TrainConfig",
    "TuneConfig",
    "UserError",
    "WorkersConfig",
    "from_mapping",
    "last_epoch",
    "load_yaml",
    "mask_credentials",
    "nearest",
    "parse_mapping",
    "parse_yaml",
    "recorded_subset",
    "resumed_subset",
    "to_mapping",
    "to_stored_yaml",
    "to_yaml",
    "with_recorded_subset",
]
