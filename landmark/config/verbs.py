"""Configs of the verbs train and tune."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from landmark.config.dataset import ClusterConfig
from landmark.config.errors import require
from landmark.config.optimization import ComputeConfig
from landmark.config.recipe import Recipe
from landmark.config.subset import SubsetConfig


@dataclass(kw_only=True, frozen=True)
class WorkersConfig:
    """The processes that train one model together, how they do, and what each may use."""

    count: Annotated[int | str, tyro.conf.arg(aliases=["--workers"])] = 1
    """Training processes; 1 trains in this process, more train by Ray Train. 2:8 is elastic: as many of 2 to 8 as the cluster has
    room for, looked at every minute."""
    cpus: float | None = None
    """CPUs that a training process reserves, which are also the threads that decode its images; empty: with GPUs a node's CPUs
    divided by its GPUs, as far as data readers leave them, else 1."""
    gpus: float | None = None
    """GPUs that a training process reserves; empty: 1 where the cluster has GPUs, else 0. A fraction is for trials of one process
    that share a GPU: processes that train one model together need a GPU each."""
    max_failures: int = 2
    """Times that a run of several processes is restarted from its last checkpoint after one died."""
    stall_s: float = 600.0
    """Seconds without a step after which a process counts as hung: it is named, ended and replaced."""
    backend: Annotated[Literal["ddp", "horovod"], tyro.conf.arg(aliases=["--backend"])] = "ddp"
    """How several processes average gradients. ddp: PyTorch's DistributedDataParallel over Gloo or NCCL; horovod: Horovod, which
    scripts/install-horovod.sh installs (docs/horovod.md)."""

    def __post_init__(self) -> None:
        require(
            bool(re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", str(self.count))) and self.least <= self.most,
            f"workers.count is {self.count}; expected a number of 1 or more, or least:most such as 2:8",
        )
        require(self.stall_s > 0, f"workers.stall_s is {self.stall_s}; expected above 0")
        require(self.cpus is None or self.cpus > 0, f"workers.cpus is {self.cpus}; expected above 0")
        require(self.gpus is None or self.gpus >= 0, f"workers.gpus is {self.gpus}; expected 0 or more")
        whole = self.gpus is None or self.gpus == int(self.gpus)
        require(
            whole or (self.gpus or 0) < 1,
            f"workers.gpus is {self.gpus}; expected a whole number, or a fraction below 1 for trials that share a GPU",
        )
        require(
            whole or self.in_process,
            f"workers.gpus is {self.gpus} and workers.count is {self.count}; expected whole GPUs with several processes: "
            "NCCL refuses two of them on one GPU",
        )
        require(self.max_failures >= 0, f"workers.max_failures is {self.max_failures}; expected 0 or more")

    @property
    def least(self) -> int:
        """Fewest training processes."""
        return int(str(self.count).split(":")[0])

    @property
    def most(self) -> int:
        """Most training processes."""
        return int(str(self.count).split(":")[-1])

    @property
    def reserved_cpus(self) -> float:
        """CPUs that a training process reserves where no cluster has decided otherwise."""
        return 1.0 if self.cpus is None else self.cpus

    @property
    def in_process(self) -> bool:
        """Whether training runs in the process that asks for it."""
        return self.most == 1


@dataclass(kw_only=True, frozen=True)
class CheckpointConfig:
    """When a run saves, besides the end of every epoch; it is stored while training goes on."""

    steps: int | None = None
    """Steps between two checkpoints within an epoch; empty: by minutes alone."""
    minutes: float | None = 10.0
    """Minutes between two checkpoints; empty: by steps alone."""
    keep: int = 2
    """Checkpoints that are kept, the newest first, besides the best one: an older one serves where a newer one is damaged."""

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 1, f"checkpoint.steps is {self.steps}; expected 1 or more")
        require(self.minutes is None or self.minutes > 0, f"checkpoint.minutes is {self.minutes}; expected above 0")
        require(self.keep >= 1, f"checkpoint.keep is {self.keep}; expected 1 or more")


@dataclass(kw_only=True, frozen=True)
class TrainConfig(Recipe):
    """Train one model.

    --recipe NAME gives the defaults that all other flags override: modern (the way to begin, from scratch), finetune
    (pretrained weights), deck (as the deck trained), or a YAML file of a recipe's keys.
    """

    dataset: str
    """Folder or URI of a packed dataset, as `landmark prepare` writes it."""
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    subset_seed: int = 0
    """Seed of the subset's random choices, apart from the run's own."""
    output: str = "runs"
    """Folder or URI under which the run's folder lies."""
    name: str = "train"
    """Name of the run: its folder. A run of the same name and settings resumes from its last checkpoint."""
    resume: bool = False
    """Resume the run of this name although settings differ: more epochs, early stopping, workers, checkpoints, cluster, how images are
    read and steps are computed. Any other difference is refused, and without this flag each one is."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tensorboard: bool = True
    """Write TensorBoard events."""
    profile_steps: int = 0
    """Training steps that torch.profiler records, after five that it does not: profile/rank-N.json.gz in the run's folder, which
    ui.perfetto.dev shows; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name(self.name)
        require_exchange(self.compute, self.workers)
        require(self.profile_steps >= 0, f"profile_steps is {self.profile_steps}; expected 0 or more")
        require(
            self.loader.batch_size >= self.workers.most,
            f"loader.batch_size is {self.loader.batch_size}; expected at least one image a worker ({self.workers.most})",
        )


@dataclass(kw_only=True, frozen=True)
class TuneConfig:
    """Search for the best model: many trials, early stopping, a leaderboard.

    --recipe NAME is what all trials start from, before the space's own recipe: modern, finetune, deck, or a YAML file.
    """

    dataset: str
    """Folder or URI of a packed dataset, as `landmark prepare` writes it."""
    datasets: dict[str, str] = field(default_factory=dict)
    """Other datasets that the space's trials name: name, folder or URI, name, folder or URI …"""
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    subset_seed: int = 0
    """Seed of the subset's random choices, the same for all trials."""
    space: str = "demo"
    """Search space: a YAML file, or the name of one in tune_spaces/."""
    output: str = "runs"
    """Folder or URI under which the study's folder lies."""
    name: str = "tune"
    """Name of the study: its folder. A study of the same name goes on where it was left."""
    recipe: Recipe = field(default_factory=Recipe)
    """What every trial has in common; the space's parameters override it."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    max_concurrent: int | None = None
    """Trials at a time; empty: as many as the cluster has room for."""
    resize_once: bool = False
    """Write the images once at the size that the trials need, below the study, and train on those: where decoding limits."""
    best: Literal["kept", "retrained"] = "kept"
    """What becomes of the best trial: its checkpoint is taken as it is, or its recipe is trained anew, to its last epoch."""
    test: Literal["best", "all", "none"] = "best"
    """Which trials' models are evaluated on the test split at the end."""
    retry_failed: bool = False
    """Run the failed trials of an existing study again, each from its newest checkpoint."""
    dry_run: bool = False
    """Print the trials, what they need and what they may cost, and start nothing."""
    tensorboard: bool = True
    """Write TensorBoard events: tensorboard --logdir FOLDER-OF-THE-STUDY."""
    mlflow: str | None = None
    """MLflow server, database URI, or folder (which gets a SQLite database mlflow.db) that logs the trials
    (extra `mlflow`)."""
    wandb: str | None = None
    """Project of Weights & Biases that the trials are logged to (extra `wandb`)."""

    def __post_init__(self) -> None:
        require_name(self.name)
        require_exchange(self.recipe.compute, self.workers)
        require(
            self.max_concurrent is None or self.max_concurrent >= 1,
            f"max_concurrent is {self.max_concurrent}; expected 1 or more",
        )


def require_exchange(compute: ComputeConfig, workers: WorkersConfig) -> None:
    """Check that options of the exchange between workers have several workers, who exchange by DDP."""
    name = compute.exchanges()
    require(
        name is None or not workers.in_process,
        f"compute.{name} is set, but workers.count is {workers.count}; set it for several workers alone",
    )
    require(
        name is None or workers.backend == "ddp",
        f"compute.{name} is set, but workers.backend is {workers.backend}; set workers.backend to ddp, or leave compute.{name} out",
    )


def require_name(name: str) -> None:
    """Check that a run's name can be a folder's name."""
    require(
        bool(name) and not set(name) & set('/\\:*?"<>|') and not name.startswith("."),
        f"name is {name!r}; expected a folder's name without / \\ : * ? \" < > |",
    )
