"""Configs of the commands cluster check and cluster status."""

from dataclasses import dataclass, field

from landmark.config.commands.prepare import ClusterConfig
from landmark.config.commands.training import WorkersConfig
from landmark.config.errors import require
from landmark.config.input import LoaderConfig


@dataclass(kw_only=True, frozen=True)
class CheckConfig:
    """Inspect every node of a Ray cluster, and report problems and what the cluster can run."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    dataset: str | None = None
    """Folder or URI of a packed dataset that every node must be able to read. Each node uses its own credentials.
    [default: none]"""
    output: str | None = None
    """Folder or URI that every node must be able to write to. [default: none]"""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """Resources that one run, or one trial of a study, requires."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """How the run reads its data. Readers and decoders require resources too."""
    timeout_s: float = 60.0
    """Seconds that a node may take to answer."""

    def __post_init__(self) -> None:
        require(self.timeout_s > 0, f"timeout_s is {self.timeout_s}; expected above 0")


@dataclass(kw_only=True, frozen=True)
class StatusConfig:
    """Show the nodes, jobs, runs and studies of a Ray cluster."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    timeout_s: float = 60.0
    """Seconds that a node may take to answer."""

    def __post_init__(self) -> None:
        require(self.timeout_s > 0, f"timeout_s is {self.timeout_s}; expected above 0")
