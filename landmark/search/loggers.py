"""What else may follow a study: TensorBoard, MLflow and Weights & Biases, by Ray's own callbacks."""

import importlib.util

from ray.tune import Callback
from ray.tune.logger import TBXLoggerCallback

from landmark.config import TuneConfig, UserError


def check_loggers(config: TuneConfig) -> None:
    """Raise UserError where a package that a flag asks for is missing."""
    for flag, wanted in (("mlflow", config.mlflow), ("wandb", config.wandb)):
        if wanted is not None and importlib.util.find_spec(flag) is None:
            raise UserError(f"--{flag}: the package {flag} is not installed; pip install 'landmark[{flag}]'")


def logger_callbacks(config: TuneConfig) -> list[Callback]:
    """Return the callbacks that the flags ask for. A trial that pauses and goes on is two runs to them."""
    callbacks: list[Callback] = [TBXLoggerCallback()] if config.tensorboard else []
    if config.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(
            MLflowLoggerCallback(
                tracking_uri=config.mlflow,
                experiment_name=config.name,
                tags={"study": config.name},
                save_artifact=False,
            )
        )
    if config.wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        callbacks.append(WandbLoggerCallback(project=config.wandb, group=config.name))
    return callbacks
