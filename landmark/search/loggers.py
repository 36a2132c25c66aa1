"""Experiment trackers of a study: Ray's callbacks for TensorBoard, MLflow and Weights & Biases, each in its own thread."""

import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback, TBXLoggerCallback

from landmark.config import TuneConfig, UserError, mask_credentials
from landmark.config.extras import install_command
from landmark.storage import Location
from landmark.tracking import background
from landmark.tracking.background import Background, Say
from landmark.tracking.tensorboard import EventFile

DATABASE = "mlflow.db"
"""Name of the SQLite database in a folder that MLflow logs to: current MLflow releases reject plain files."""
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
BUSY = (401, 403, 408, 429)
"""HTTP status codes below 500 that are worth a retry."""
MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Defaults for the environment of MLflow's client: it gives up within seconds and prints nothing."""
WANDB_TIMEOUT_S = 30
BATCH = 100
"""Maximum number of parameters that MLflow accepts per request."""


def check_loggers(config: TuneConfig) -> None:
    """Raise UserError if a package that a flag needs is missing, or MLflow does not support the --mlflow location."""
    for flag, wanted in (("mlflow", config.mlflow), ("wandb", config.wandb)):
        if wanted is not None and importlib.util.find_spec(flag) is None:
            raise UserError(f"--{flag}: the package {flag} is not installed; {install_command(flag)}")
    if config.mlflow is None:
        return
    uri = tracking_uri(config.mlflow)
    if not uri.startswith(DATABASES):
        return
    for package in ("sqlalchemy", "alembic"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--mlflow: a database needs the package {package}, which is not installed; {install_command('mlflow')}"
            )
    folder = mlflow_folder(config.mlflow)
    if folder is not None and not config.dry_run:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--mlflow {folder}: {error.strerror}; choose a writable folder") from None


def tracking_uri(value: str) -> str:
    """Return MLflow's tracking URI for the value of --mlflow; a folder gets a SQLite database.

    Raises UserError for a scheme that MLflow does not support.
    """
    folder = mlflow_folder(value)
    if folder is not None:
        return f"sqlite:///{folder / DATABASE}"
    scheme = urlsplit(value).scheme or value
    plugins = {point.name for point in importlib.metadata.entry_points(group="mlflow.tracking_store")}
    if scheme.split("+")[0] not in {*DATABASES, *SERVERS, *plugins}:
        raise UserError(
            f"--mlflow {mask_credentials(value)}: MLflow does not support this URI; expected a folder on this machine, "
            f"http(s)://server, or a database URI of {', '.join(DATABASES)}"
        )
    return value


def mlflow_folder(value: str) -> Path | None:
    """Return the folder that --mlflow names; None for a server, a database or a plug-in's URI."""
    parts = urlsplit(value)
    if parts.scheme == "file":
        return Path(parts.path)
    if "://" in value or value.split(":")[0] in SERVERS:
        return None
    return Path(value).expanduser().absolute()


def logger_callbacks(config: TuneConfig, folder: Location, say: Say) -> list[Callback]:
    """Return the callbacks of the enabled trackers. A trial that pauses and resumes is two runs to them.

    folder: parent of the TensorBoard folders, one per trial. say: prints a warning of one line.
    """
    callbacks: list[Callback] = []
    if config.tensorboard:
        callbacks.append(Tracker("TensorBoard", lambda: _TensorBoard(folder), say=say))
    if config.mlflow is not None:
        uri = tracking_uri(config.mlflow)
        name = f"MLflow at {mask_credentials(config.mlflow)}"
        callbacks.append(Tracker(name, lambda: mlflow_callback(uri, config.name), say=say, passes=_mlflow_passes))
    if config.wandb is not None:
        project = config.wandb
        callbacks.append(Tracker("Weights & Biases", lambda: _wandb_callback(project, config.name, say), say=say))
    return callbacks


class Tracker(Callback):
    """Runs one of Ray's logger callbacks in a thread, so that Ray Tune's calls neither raise nor block."""

    def __init__(
        self,
        name: str,
        make: Callable[[], LoggerCallback],
        *,
        say: Say,
        passes: Callable[[Exception], bool] = background.passes,
    ) -> None:
        """make: builds the callback; called in the thread, because clients are slow to import."""
        self.name = name
        self.make = make
        self.say = say
        self.passes = passes
        self.callback: LoggerCallback | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune stores its callbacks with the study, which must not contain credentials."""
        return {}

    def _do(self, method: str, *values: Any, essential: bool = True) -> None:
        self.background.add(lambda: getattr(self.callback, method)(*values), essential=essential)

    def setup(self, *values: Any, **info: Any) -> None:
        """Build the callback and connect it to the tracker."""

        def begin() -> None:
            callback = self.make()
            callback.setup()
            self.callback = callback

        self.background = Background(self.name, say=self.say, passes=self.passes)
        self.background.add(begin, essential=True)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Start a run for the trial."""
        self._do("log_trial_start", trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Log an epoch."""
        self._do("log_trial_result", iteration, trial, dict(result), essential=False)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """End the trial's run."""
        self._do("log_trial_end", trial, False)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """End the trial's run as failed."""
        self._do("log_trial_end", trial, True)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Write the queued events if the tracker is available, then close it."""
        self._do("on_experiment_end", [])
        self.background.close()


class _TensorBoard(TBXLoggerCallback):
    """Ray's callback, which writes to the study's folder while trials run."""

    def __init__(self, folder: Location) -> None:
        super().__init__()
        self.folder = folder

    def log_trial_start(self, trial: Trial) -> None:
        """Open the trial's event file."""
        if trial not in self._trial_writer:
            self._trial_writer[trial] = EventFile(self.folder / trial.config["trial"]["name"])
            self._trial_result[trial] = {}


def mlflow_callback(uri: str, experiment: str) -> LoggerCallback:
    """Return Ray's callback for MLflow, which fails within seconds if the server does not answer."""
    for key, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(key, value)
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    callback = MLflowLoggerCallback(
        tracking_uri=uri, experiment_name=experiment, tags={"study": experiment}, save_artifact=False
    )
    callback.mlflow_util = _batched(callback.mlflow_util)
    return callback


def _batched(util: Any) -> Any:
    """Patch Ray's MLflow client to send an epoch or a trial's parameters in one request and to raise server errors.

    Ray's client sends one request per value. It also mistakes an unavailable server for a missing run, and then logs to
    another run.
    """
    from mlflow.entities import Metric, Param
    from mlflow.utils.time import get_current_time_millis
    from ray._private.dict import flatten_dict

    def log_params(params_to_log: Mapping[str, Any], run_id: str) -> None:
        found = flatten_dict(dict(params_to_log))
        params = [Param(str(key), mask_credentials(str(value))) for key, value in found.items()]
        for first in range(0, len(params), BATCH):
            util._get_client().log_batch(run_id, params=params[first : first + BATCH])

    def log_metrics(step: int, metrics_to_log: Mapping[str, Any], run_id: str) -> None:
        values, now = util._parse_dict(flatten_dict(dict(metrics_to_log))), get_current_time_millis()
        util._get_client().log_batch(run_id, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def run_exists(run_id: str) -> bool:
        return True

    util.log_params, util.log_metrics, util._run_exists = log_params, log_metrics, run_exists
    return util


def _mlflow_passes(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status >= 500 or status in BUSY
    return background.passes(error)


def _wandb_callback(project: str, group: str, say: Say) -> LoggerCallback:
    import ray
    from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor

    class Logging(_WandbLoggingActor):
        """Logs to files in the trial's folder if the server is unreachable; returns whether it did."""

        def run(self) -> bool:
            """Log until the trial ends."""
            try:
                super().run()
            except Exception as error:
                if type(error).__module__.split(".")[0] != "wandb":
                    raise
                self.kwargs["mode"] = "offline"
                super().run()
                return True
            return False

    class Callback(WandbLoggerCallback):
        """Prints one warning if the server did not log all trials."""

        _logger_actor_cls = Logging
        said = False

        def _cleanup_logging_actors(self, timeout: int = 0, kill_on_timeout: bool = False) -> None:
            futures = list(self._trial_logging_futures.values())
            done = ray.wait(futures, num_returns=len(futures), timeout=timeout)[0] if futures else []
            for future in done:
                try:
                    reason = "the server did not answer; trials were logged to files" if ray.get(future) else ""
                except ray.exceptions.RayError as error:
                    reason = background.describe_error(error)
                if reason and not self.said:
                    self.said = True
                    say(f"warning: Weights & Biases: {reason}; `wandb sync FOLDER/wandb/offline-run-*` uploads them")
            super()._cleanup_logging_actors(0, kill_on_timeout)

    return Callback(project=project, group=group, upload_timeout=WANDB_TIMEOUT_S)
