"""Configs of the commands train and tune."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from landmark.config.commands.prepare import ClusterConfig
from landmark.config.errors import require
from landmark.config.optimization import ComputeConfig
from landmark.config.recipe import Recipe
from landmark.config.space import SCHEDULERS, SEARCHERS, BudgetConfig, require_kind
from landmark.config.subset import SubsetConfig


@dataclass(kw_only=True, frozen=True)
class WorkersConfig:
    """The processes that train one model together, and their resources."""

    count: int | str = 1
    """Number of training processes, on all nodes together. 1 trains without Ray Train, more processes use Ray Train. A
    range such as 2:8 is elastic. It uses as many of 2 to 8 processes as the cluster has resources for, checked every
    minute."""
    cpus: float | None = None
    """CPUs that each training process reserves. They are also the number of threads that decode its images. [default:
    with GPUs, a node's CPUs per GPU less those of data readers; else 1]"""
    gpus: float | None = None
    """GPUs that each training process reserves. A fraction lets several single-process trials use one GPU. Processes
    that train one model together need whole GPUs. [default: 1 if the cluster has GPUs, else 0]"""
    max_failures: int = 2
    """Maximum number of restarts after a training process died. A restart resumes from the last checkpoint. It applies
    to runs of several processes."""
    stall_s: float = 600.0
    """Seconds without a training step, after which a process counts as hung. The watchdog reports the hung process,
    kills it and replaces it."""
    backend: Annotated[Literal["ddp", "horovod"], tyro.conf.arg(aliases=["--backend"])] = "ddp"
    """How several processes average gradients. ddp uses PyTorch's DistributedDataParallel over Gloo or NCCL. horovod
    uses Horovod, which scripts/install-horovod.sh installs (docs/how-to/horovod.md)."""

    def __post_init__(self) -> None:
        require(
            bool(re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", str(self.count))) and self.least <= self.most,
            f"workers.count is {self.count}; expected a number of 1 or more, or minimum:maximum such as 2:8",
        )
        require(self.stall_s > 0, f"workers.stall_s is {self.stall_s}; expected above 0")
        require(self.cpus is None or self.cpus > 0, f"workers.cpus is {self.cpus}; expected above 0")
        require(self.gpus is None or self.gpus >= 0, f"workers.gpus is {self.gpus}; expected 0 or more")
        whole = self.gpus is None or self.gpus == int(self.gpus)
        require(
            whole or (self.gpus or 0) < 1,
            f"workers.gpus is {self.gpus}; expected an integer, or a fraction below 1 for trials that share a GPU",
        )
        require(
            whole or self.in_process,
            f"workers.gpus is {self.gpus} and workers.count is {self.count}; expected an integer with several processes, because "
            "NCCL does not support two processes on one GPU",
        )
        require(self.max_failures >= 0, f"workers.max_failures is {self.max_failures}; expected 0 or more")

    @property
    def least(self) -> int:
        """Minimum number of training processes."""
        return int(str(self.count).split(":")[0])

    @property
    def most(self) -> int:
        """Maximum number of training processes."""
        return int(str(self.count).split(":")[-1])

    @property
    def reserved_cpus(self) -> float:
        """CPUs that a training process reserves unless the cluster determines them."""
        return 1.0 if self.cpus is None else self.cpus

    @property
    def in_process(self) -> bool:
        """Whether training runs in the calling process."""
        return self.most == 1


@dataclass(kw_only=True, frozen=True)
class CheckpointConfig:
    """When a run saves checkpoints, in addition to the end of every epoch. Training continues while a checkpoint is
    stored."""

    steps: int | None = None
    """Steps between two checkpoints within an epoch. [default: by minutes only]"""
    minutes: float | None = 10.0
    """Minutes between two checkpoints within an epoch. None saves by steps only."""
    keep: int = 2
    """Number of newest checkpoints to keep, in addition to the best one. If the newest one is corrupt, an older one is
    used."""

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 1, f"checkpoint.steps is {self.steps}; expected 1 or more")
        require(self.minutes is None or self.minutes > 0, f"checkpoint.minutes is {self.minutes}; expected above 0")
        require(self.keep >= 1, f"checkpoint.keep is {self.keep}; expected 1 or more")


@dataclass(kw_only=True, frozen=True)
class TrainConfig(Recipe):
    """Train one model.

    --recipe NAME sets the defaults that all other options override. NAME is modern (from scratch), finetune (pretrained
    weights), probe (only a classifier on pretrained weights), reference (as in the reference study), or a YAML file with the
    keys of a recipe. Without --recipe, the dataset
    and the start weights decide between modern and finetune. auto decides in the same way, and trains for 10 minutes unless
    --minutes, --hours or --epochs is given.
    """

    dataset: str
    """Folder or URI of a packed or cleaned dataset. `landmark prepare` and `landmark clean` write these."""
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    subset_seed: int = 0
    """Seed of the subset's random choices, independent of the run's seed."""
    output: str = "runs"
    """Folder or URI in which the run's folder is created."""
    name: str = "train"
    """Name of the run and of its folder. Using the name of an existing run again requires --resume."""
    resume: bool = False
    """Resume the run of this name from its last checkpoint, if there is one. You can change epochs, minutes, hours,
    early_stopping, workers, checkpoint, cluster, tensorboard, profile_steps, and most options of loader and compute."""
    minutes: float | None = None
    """Time limit of training, minutes, instead of epochs. It includes the features of a probe, the last validation and its
    checkpoint, not the start of processes. The schedule is fitted to it. [default: no limit]"""
    hours: float | None = None
    """The same in hours. [default: no limit]"""
    auto_batch_size: bool = False
    """Measure the largest power of two of images per step that fits into the memory of the GPUs and leaves ten steps per epoch, and
    use it instead of loader.batch_size. `--batch-size auto` sets it. The learning rate follows if optimizer.base_batch_size is set."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tensorboard: bool = True
    """Write TensorBoard events."""
    dry_run: bool = False
    """Print the steps of the run, and the size and the benefit of a cache in each format, then exit."""
    headroom: bool = False
    """Train for a minute in this process, print how much faster a loader without cost would be and what the bottleneck
    is, then exit."""
    lr_range_test: bool = False
    """Train about a hundred steps in this process with a rising learning rate, print the loss and a learning rate, then
    exit. Smith 2017 describes the method."""
    profile_steps: int = 0
    """Number of training steps that torch.profiler records, 0 for none. It skips the first five steps. The trace is
    profile/rank-N.json.gz in the run's folder. ui.perfetto.dev shows it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name(self.name)
        require_exchange(self.compute, self.workers)
        self._check_limit()
        require(self.profile_steps >= 0, f"profile_steps is {self.profile_steps}; expected 0 or more")
        measured = [name for name in ("dry_run", "headroom", "lr_range_test") if getattr(self, name)]
        require(len(measured) < 2, f"{' and '.join(measured)} are separate measurements; use one of them")
        require(
            not self.auto_batch_size or not measured,
            f"auto_batch_size measures the batch of a run, but {''.join(measured)} ends before; give --batch-size a number",
        )
        require(
            not self.auto_batch_size or not self.is_probe(),
            "auto_batch_size is set, but with model.freeze_backbone the probe is the whole run, which has no steps; remove it",
        )
        require(
            not self.auto_batch_size or self.model.head.sample is None,
            "auto_batch_size does not support model.head.sample; give --batch-size a number",
        )
        for name in ("headroom", "lr_range_test"):
            require(
                not getattr(self, name) or self.workers.in_process,
                f"{name} measures one worker in this process; remove --num-workers, and divide --batch-size by the workers",
            )
        require(
            not self.lr_range_test or not self.is_probe(),
            "lr_range_test is set, but with model.freeze_backbone the probe is the whole run, which has no learning rate",
        )
        require(
            self.loader.batch_size >= self.workers.most,
            f"loader.batch_size is {self.loader.batch_size}; expected at least one image per worker ({self.workers.most})",
        )

    @property
    def limit_s(self) -> float | None:
        """Time limit of training, seconds."""
        if self.hours is not None:
            return 3600 * self.hours
        return None if self.minutes is None else 60 * self.minutes

    @property
    def length(self) -> str:
        """The length of the run, as epochs or as time."""
        if self.hours is not None:
            return f"{self.hours:g} hours"
        return f"{self.epochs} epochs" if self.minutes is None else f"{self.minutes:g} minutes"

    def _check_limit(self) -> None:
        require(
            self.minutes is None or self.hours is None,
            "minutes and hours are both set; remove one of the two time limits",
        )
        for name, value in (("minutes", self.minutes), ("hours", self.hours)):
            require(value is None or value > 0, f"{name} is {value}; expected above 0")
            require(
                value is None or not self.is_probe(),
                f"{name} is set, but with model.freeze_backbone the probe is the whole run, which has no epochs; remove {name}",
            )
            require(
                value is None or self.resizing.start_size is None,
                f"{name} is set, but resizing.start_size needs a number of epochs; remove one of the two",
            )


@dataclass(kw_only=True, frozen=True)
class TuneConfig:
    """Search for the best model: many trials, early stopping, a leaderboard.

    --recipe NAME is the recipe that all trials start from. The space's own recipe overrides it. NAME is modern,
    finetune, reference, or a YAML file.
    """

    dataset: str
    """Folder or URI of a packed or cleaned dataset. `landmark prepare` and `landmark clean` write these."""
    datasets: dict[str, str] = field(default_factory=dict)
    """Other datasets that the space's trials use, as pairs of name and path. A path is a folder or URI. [default:
    none]"""
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    subset_seed: int = 0
    """Seed of the subset's random choices, the same for all trials."""
    space: str
    """Name of a search space, or a YAML file (path or URI). `landmark spaces` lists the names."""
    output: str = "runs"
    """Folder or URI in which the study's folder is created."""
    name: str = "tune"
    """Name of the study and of its folder. Using the name of an existing study again requires --resume."""
    resume: bool = False
    """Resume the study of this name, if there is one."""
    scheduler: str | None = None
    """Early-stopping scheduler: none, asha, hyperband, median_stopping, pbt, or a scheduler of Ray Tune as MODULE:CLASS.
    [default: the space's]"""
    searcher: str | None = None
    """How trials are chosen: listed, optuna, or a searcher of Ray Tune as MODULE:CLASS. listed runs the space's grid and
    random samples, the others propose trials. [default: the space's]"""
    num_samples: int | None = None
    """Number of random samples of the space. With Optuna, it is the number of trials. [default: the space's]"""
    search_seed: int | None = None
    """Seed of the random samples and proposals. [default: the space's]"""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """Limits of the study. Each limit that is set replaces the space's."""
    recipe: Recipe = field(default_factory=Recipe)
    """Options that all trials have in common. The space's parameters override them."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    max_concurrent: int | None = None
    """Maximum number of trials that run at the same time. The number follows the cluster's nodes up to it. [default: as
    many as the cluster has resources for]"""
    best: Literal["kept", "retrained"] = "kept"
    """How the best trial becomes the final model. kept uses its checkpoint. retrained trains its recipe again, to the
    last epoch."""
    test: Literal["best", "all", "none"] = "best"
    """Trials whose models are evaluated on the test split at the end."""
    retry_failed: bool = False
    """Run the failed trials of an existing study again. Each resumes from its newest checkpoint."""
    dry_run: bool = False
    """Print the trials, their required resources and estimated cost, then exit."""
    tensorboard: bool = True
    """Write TensorBoard events. Run tensorboard --logdir with the study's folder to view them."""
    mlflow: str | None = None
    """MLflow server, database URI or folder that logs the trials. In a folder, it creates a SQLite database mlflow.db.
    Requires the extra mlflow. [default: none]"""
    wandb: str | None = None
    """Weights & Biases project that logs the trials. Requires the extra wandb. [default: none]"""

    def __post_init__(self) -> None:
        require_name(self.name)
        require_exchange(self.recipe.compute, self.workers)
        if self.scheduler is not None:
            require_kind("scheduler", self.scheduler, SCHEDULERS, {})
        if self.searcher is not None:
            require_kind("searcher", self.searcher, SEARCHERS, {})
        require(
            self.max_concurrent is None or self.max_concurrent >= 1,
            f"max_concurrent is {self.max_concurrent}; expected 1 or more",
        )
        require(
            self.num_samples is None or self.num_samples >= 1, f"num_samples is {self.num_samples}; expected 1 or more"
        )

    def space_changes(self) -> dict[str, Any]:
        """Return the command line's changes to the search space, as keys of its file."""
        budget = {name: value for name, value in dataclasses.asdict(self.budget).items() if value is not None}
        changes: dict[str, Any] = {
            "scheduler": {"name": self.scheduler} if self.scheduler is not None else None,
            "searcher": {"name": self.searcher} if self.searcher is not None else None,
            "samples": self.num_samples,
            "seed": self.search_seed,
            "budget": budget or None,
        }
        return {key: value for key, value in changes.items() if value is not None}


def require_exchange(compute: ComputeConfig, workers: WorkersConfig) -> None:
    """Check that options of the gradient exchange are only set with several workers and the backend ddp."""
    name = compute.exchanges()
    require(
        name is None or not workers.in_process,
        f"compute.{name} is set, but workers.count is {workers.count}; remove it, or use several workers",
    )
    require(
        name is None or workers.backend == "ddp",
        f"compute.{name} is set, but workers.backend is {workers.backend}; set workers.backend to ddp, or remove compute.{name}",
    )


def require_name(name: str) -> None:
    """Check that a run's name can be a folder's name."""
    require(
        bool(name) and not set(name) & set('/\\:*?"<>|') and not name.startswith("."),
        f'name is {name!r}; expected a folder name without / \\ : * ? " < > |',
    )
