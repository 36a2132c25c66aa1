"""`landmark evaluate`: evaluates a model on a split against trivial baselines, or compares two models."""

from typing import Any

from landmark.checkpoints.format import read_meta, resolve_checkpoint
from landmark.config import NEIGHBORS, EvaluateConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import open_dataset
from landmark.evaluation.comparison import compare
from landmark.evaluation.io import write_comparison
from landmark.inference.evaluation import Evaluation, Settings, evaluate_checkpoint, write_evaluation
from landmark.inference.job import find_replicas
from landmark.reporting.evaluation.text import print_comparison, print_summary
from landmark.retrieval.gallery import GALLERY
from landmark.storage import Location, check_writable, locate


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a model, write the results and print them; returns the metrics."""
    checkpoint = resolve_checkpoint(config.run)
    meta = read_meta(checkpoint)
    if config.dataset is None and not (locate(meta.dataset) / "manifest.json").exists():
        raise UserError(
            f"{meta.dataset}: the dataset that the model was trained on was not found; if it has moved, give its location with --dataset"
        )
    dataset = open_dataset(config.dataset or meta.dataset, meta.subset, meta.subset_seed)
    output = output_of(config)
    check_writable(output)
    gallery = locate(config.gallery) if config.gallery else locate(config.run) / GALLERY
    found = _evaluate(config, checkpoint, dataset, output, gallery)
    print_summary(found.summary)
    if config.against is not None:
        other = resolve_checkpoint(config.against)
        if read_meta(other).classes != meta.classes:
            raise UserError(f"{config.against}: trained on other classes than {config.run}; expected the same classes")
        print(f"compared with {config.against}:")
        against = _evaluate(config, other, dataset, output / "against", locate(config.against) / GALLERY)
        print_summary(against.summary)
        if against.classes != found.classes:
            raise UserError(
                f"{config.against}: its gallery has other classes than that of {config.run}; add the same classes to both"
            )
        compared = compare(
            found.predictions,
            against.predictions,
            found.accumulator.topk,
            samples=config.bootstrap or 1000,
            groups=found.groups,
        )
        write_comparison(output, compared, found.classes, (config.run, config.against))
        print_comparison(compared)
    print(f"evaluation: {output}  next: landmark report {config.run}")
    return found.summary


def output_of(config: EvaluateConfig) -> Location:
    """Return the output folder of an evaluation."""
    name = f"evaluation-{config.split}" + ("-knn" if config.by == "knn" else "")
    return locate(config.output) if config.output else locate(config.run) / name


def _evaluate(
    config: EvaluateConfig, checkpoint: Location, dataset: PackedDataset, output: Location, gallery: Location
) -> Evaluation:
    settings = Settings(
        topk=config.topk,
        batch_size=config.batch_size,
        by=config.by,
        flips=config.tta == "flip",
        neighbors=config.neighbors or NEIGHBORS,
        gallery=gallery,
        distractors=locate(config.distractors) if config.distractors else None,
        max_megapixels=config.max_megapixels,
        samples=config.bootstrap,
        corrupt=config.corrupt,
        cache=config.cache_options(),
        replicas=find_replicas(config),
    )
    found = evaluate_checkpoint(checkpoint, dataset, config.split, settings, output=output)
    write_evaluation(found, output)
    return found
