"""Configs of the verb cluster."""

from dataclasses import dataclass, field

from landmark.config.dataset import ClusterConfig
from landmark.config.errors import require
from landmark.config.input import LoaderConfig
from landmark.config.verbs import WorkersConfig


@dataclass(kw_only=True, frozen=True)
class CheckConfig:
    """Look at every node of a Ray cluster, and say what is wrong with it and what it can run."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    dataset: str | None = None
    """Folder or URI of a packed dataset that every node must be able to read, with the credentials that it has there."""
    output: str | None = None
    """Folder or URI that every node must be able to write to."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """What one run, or one trial of a study, is to have."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """How its data is read: readers and decoders need room, too."""
    timeout_s: float = 60.0
    """Seconds that a node may take to answer."""

    def __post_init__(self) -> None:
        require(self.timeout_s > 0, f"timeout_s is {self.timeout_s}; expected above 0")


@dataclass(kw_only=True, frozen=True)
class StatusConfig:
    """Show what a Ray cluster is at: its nodes, its jobs, the runs and studies on it."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    timeout_s: float = 60.0
    """Seconds that a node may take to answer."""

    def __post_init__(self) -> None:
        require(self.timeout_s > 0, f"timeout_s is {self.timeout_s}; expected above 0")
