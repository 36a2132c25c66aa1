"""The commands: what each is called, its config, the function that does it, and what its short help shows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from landmark.cli import defaults
from landmark.cli.parsing import Defaults, FromFile, Parser
from landmark.config import (
    CheckConfig,
    CleanConfig,
    DoctorConfig,
    EvaluateConfig,
    FetchConfig,
    IndexConfig,
    ModelsConfig,
    PredictConfig,
    PrepareConfig,
    RecipesConfig,
    ReportConfig,
    ShowConfig,
    SoupConfig,
    SpacesConfig,
    StatusConfig,
    TrainConfig,
    TuneConfig,
)

RECIPE = (
    "--epochs", "--lr", "--batch-size", "--model", "--weights", "--opt", "--sched", "--img-size", "--amp", "--seed",
)  # fmt: skip
"""Options that train and tune have in common."""


@dataclass(kw_only=True, frozen=True)
class Command:
    """One command."""

    name: str
    summary: str
    """What it does, for the list of commands."""
    config: type
    function: str
    """module:function that takes the config; imported when it is called."""
    positional: tuple[str, ...] = ()
    """Flags that may be left out, see Parser."""
    usage: str = ""
    """Positional arguments as help shows them."""
    examples: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    """Options in the short help."""
    default: Defaults | None = None
    from_file: FromFile | None = None
    rewrite: defaults.Rewrite | None = None
    shown: Callable[[], Any] | None = None
    """Makes the config whose values help shows as defaults; None: the config's own."""
    imports: tuple[str, ...] = ()
    """Modules that are imported while Ray starts; empty: the command does not begin with Ray."""

    def parser(self) -> Parser:
        """Return the parser of its arguments."""
        return Parser(
            kind=self.config,
            program=f"landmark {self.name}",
            positional=self.positional,
            default=self.default,
            from_file=self.from_file,
            rewrite=self.rewrite,
        )


TORCH = ("torch", "torchvision")

_ALL = (
    Command(
        name="prepare",
        summary="pack photographs and labels into a dataset",
        config=PrepareConfig,
        function="landmark.commands.prepare:prepare",
        positional=("--folders.path",),
        usage="PHOTOS -o DATASET",
        rewrite=defaults.prepare_source,
        examples=(
            "landmark prepare photos -o datasets/photos",
            "landmark prepare s3://bucket/gldv2 --source gldv2 --classes 100 -o s3://bucket/landmarks",
            "landmark prepare --source synthetic -o datasets/synthetic",
        ),
        common=(
            "--output", "--source", "--folders.groups", "--split.val", "--split.test", "--packing.short-side", "--classes",
            "--images", "--min-images", "--seed", "--verify", "--address",
        ),
    ),
    Command(
        name="clean",
        summary="find duplicates, label errors and distractors in a dataset, and leave them out",
        config=CleanConfig,
        function="landmark.commands.clean:clean",
        positional=("--dataset",),
        usage="DATASET -o CLEANED",
        examples=(
            "landmark clean datasets/photos -o datasets/photos-clean",
            "landmark clean datasets/photos -o datasets/photos-clean --weights runs/train",
            "landmark clean datasets/photos -o datasets/photos-clean --duplicates.no-near",
        ),
        common=(
            "--output", "--weights", "--splits", "--duplicates.near", "--noise.own", "--noise.relabel", "--min-images",
            "--max-drop-fraction", "--threads", "--seed",
        ),
    ),
    Command(
        name="train",
        summary="train one model",
        config=TrainConfig,
        function="landmark.commands.train:train",
        positional=("--dataset",),
        usage="DATASET",
        default=defaults.train,
        rewrite=defaults.batch_size,
        shown=lambda: defaults.shown_defaults("modern"),
        examples=(
            "landmark train datasets/photos",
            "landmark train datasets/photos --recipe finetune --epochs 10 --name tuned",
            "landmark train s3://bucket/landmarks --num-workers 8 --batch-size 1024 --address auto --resume",
        ),
        common=(*RECIPE, "--num-workers", "--address", "--output", "--name", "--resume", "--classes"),
    ),
    Command(
        name="tune",
        summary="search for the best model",
        config=TuneConfig,
        function="landmark.commands.tune:tune",
        positional=("--dataset",),
        usage="DATASET --space SPACE",
        default=defaults.tune,
        from_file=defaults.tune_from_file,
        imports=TORCH,
        examples=(
            "landmark tune datasets/photos --space small",
            "landmark tune datasets/photos --space space.yaml --scheduler asha --num-samples 20",
            "landmark tune s3://bucket/landmarks --space modern --num-workers 4 --address auto --resume",
        ),
        common=(
            "--space", *(flag for flag in RECIPE if flag != "--weights"), "--num-workers", "--max-concurrent", "--scheduler",
            "--searcher", "--num-samples", "--budget.seconds", "--address", "--output", "--name", "--resume", "--dry-run",
        ),
    ),
    Command(
        name="evaluate",
        summary="evaluate a model, compared with its trivial baselines",
        config=EvaluateConfig,
        function="landmark.commands.evaluate:evaluate",
        positional=("--run",),
        usage="RUN",
        examples=(
            "landmark evaluate runs/train",
            "landmark evaluate runs/train --against runs/tuned",
            "landmark evaluate runs/train --by knn --distractors photos-without-landmarks",
        ),
        common=(
            "--split", "--dataset", "--by", "--neighbors", "--against", "--distractors", "--output", "--batch-size",
            "--replicas", "--address",
        ),
    ),
    Command(
        name="index",
        summary="build or extend a k-NN gallery of a model",
        config=IndexConfig,
        function="landmark.commands.index:index",
        positional=("--run",),
        usage="RUN",
        examples=(
            "landmark index runs/train",
            "landmark index runs/train --add new-landmarks",
            "landmark index runs/train --dataset datasets/other --gallery galleries/other",
        ),
        common=("--add", "--dataset", "--gallery", "--batch-size", "--replicas", "--address"),
    ),
    Command(
        name="predict",
        summary="predict the landmarks of images",
        config=PredictConfig,
        function="landmark.commands.predict:predict",
        positional=("--run", "--images"),
        usage="RUN IMAGE...",
        examples=(
            "landmark predict runs/train photo.jpg",
            "landmark predict runs/train photos/ -o predictions",
            "landmark predict runs/train s3://bucket/photos -o s3://bucket/predictions --format csv",
        ),
        common=(
            "--output", "--top-k", "--by", "--neighbors", "--reject", "--format", "--embeddings", "--batch-size",
            "--replicas", "--address",
        ),
    ),
    Command(
        name="soup",
        summary="combine the models of a study, or several runs, into one",
        config=SoupConfig,
        function="landmark.commands.soup:soup",
        positional=("--runs",),
        usage="STUDY | RUN RUN …",
        examples=(
            "landmark soup runs/tune",
            "landmark soup runs/first runs/second runs/third --name soup",
        ),
        common=("--output", "--name", "--max-models", "--dataset", "--batch-size"),
    ),
    Command(
        name="report",
        summary="make a page and tables of a study or a run",
        config=ReportConfig,
        function="landmark.commands.report:report",
        positional=("--run",),
        usage="RUN",
        examples=(
            "landmark report runs/tune",
            "landmark report runs/tune -o report --price-per-hour 2.5",
            "landmark report s3://bucket/runs/tune -o report",
        ),
        common=("--output", "--cleaned", "--price-per-hour"),
    ),
    Command(
        name="status",
        summary="show how far a study or a run is",
        config=ShowConfig,
        function="landmark.commands.status:status",
        positional=("--run",),
        usage="RUN",
        examples=("landmark status runs/tune", "landmark status s3://bucket/runs/tune", "landmark status runs/tune --json"),
    ),
    Command(
        name="models",
        summary="list models, or show the stages of one",
        config=ModelsConfig,
        function="landmark.commands.models:models",
        positional=("--name",),
        usage="[NAME]",
        examples=("landmark models", "landmark models resnet --all", "landmark models resnet50 --stages"),
        common=("--all", "--timm", "--classes", "--image-size", "--stages"),
    ),
    Command(
        name="models fetch",
        summary="store the pretrained weights of a model in a folder or bucket",
        config=FetchConfig,
        function="landmark.commands.models:fetch",
        positional=("--name",),
        usage="NAME",
        examples=(
            "landmark models fetch resnet50 --to weights",
            "landmark models fetch timm/vit_small_patch14_dinov2.lvd142m --to s3://bucket/weights",
        ),
        common=("--to",),
    ),
    Command(
        name="recipes",
        summary="list recipes, or print one",
        config=RecipesConfig,
        function="landmark.commands.spaces:recipes",
        positional=("--name",),
        usage="[NAME]",
        examples=("landmark recipes", "landmark recipes finetune", "landmark recipes modern > mine.yaml"),
    ),
    Command(
        name="spaces",
        summary="list search spaces, or print one",
        config=SpacesConfig,
        function="landmark.commands.spaces:spaces",
        positional=("--name",),
        usage="[NAME]",
        examples=("landmark spaces", "landmark spaces small", "landmark spaces modern > space.yaml"),
    ),
    Command(
        name="doctor",
        summary="check this machine: Python, torch, CUDA, Ray, extras, disk, object storage",
        config=DoctorConfig,
        function="landmark.commands.doctor:doctor",
        examples=("landmark doctor", "landmark doctor --bucket s3://bucket/folder", "landmark doctor --json"),
        common=("--bucket",),
    ),
    Command(
        name="cluster check",
        summary="check what a Ray cluster can run",
        config=CheckConfig,
        function="landmark.commands.cluster:check",
        examples=(
            "landmark cluster check --address auto",
            "landmark cluster check --address auto --dataset s3://bucket/landmarks --output s3://bucket/runs",
            "landmark cluster check --address auto --num-workers 8",
        ),
        common=("--address", "--dataset", "--output", "--num-workers", "--timeout-s"),
    ),
    Command(
        name="cluster status",
        summary="show the nodes, jobs, runs and studies of a Ray cluster",
        config=StatusConfig,
        function="landmark.commands.cluster:status",
        examples=("landmark cluster status --address auto",),
        common=("--address", "--timeout-s"),
    ),
)  # fmt: skip
COMMANDS = {command.name: command for command in _ALL}
"""All commands by name; of two words where the first one groups several."""
