"""Tests a study's models on their test split, each once, in Ray tasks with the resources of a trial."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from landmark.config import (
    CacheOptions,
    ClusterConfig,
    LoaderConfig,
    SubsetConfig,
    UserError,
    WorkersConfig,
    from_mapping,
    mask_credentials,
    to_mapping,
)
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import open_dataset
from landmark.inference.evaluation import Settings, evaluate_checkpoint, write_evaluation
from landmark.inference.job import PARTS
from landmark.progress import Progress
from landmark.runtime import connect, is_local, own_error
from landmark.search.state.leaderboard import TESTED
from landmark.storage import Damaged, Location, NotFound, locate
from landmark.training.distributed.capacity import effective_workers
from landmark.training.distributed.ray_train import gpus_per_worker

DONE = "tested.json"
"""File with the metrics of a test, in the folder of its results; it is written last."""


@dataclass(kw_only=True, frozen=True)
class ModelTest:
    """One model to test, as plain values that another process can read."""

    checkpoint: str
    """URI of the checkpoint."""
    dataset: str
    subset: dict[str, Any]
    subset_seed: int
    batch_size: int
    corrupt: str
    cache: CacheOptions
    """Cache of JPEGs: test results do not depend on it."""
    folder: str
    """URI of the folder of the results; an interrupted test resumes from the shards in it."""
    whole: bool
    """Whether to write all files of an evaluation, or only its metrics."""

    @classmethod
    def of(
        cls, checkpoint: Location, dataset: PackedDataset, loader: Any, folder: Location, *, whole: bool
    ) -> "ModelTest":
        """Return the test of a checkpoint on its dataset."""
        return cls(
            checkpoint=checkpoint.uri,
            dataset=dataset.uri,
            subset=to_mapping(dataset.subset),
            subset_seed=dataset.subset_seed,
            batch_size=loader.batch_size,
            corrupt=loader.corrupt,
            cache=dataclasses.replace(loader.cache_options(), cache_format="jpeg"),
            folder=folder.uri,
            whole=whole,
        )

    def before(self) -> dict[str, Any] | None:
        """Return the metrics of an earlier test of this model; None if there was none."""
        try:
            found = json.loads((locate(self.folder) / DONE).read_text())
        except (NotFound, Damaged, json.JSONDecodeError):
            return None
        return found if found["checkpoint"] == mask_credentials(self.checkpoint) else None


def run_test(test: ModelTest, *, quiet: bool = True) -> dict[str, Any]:
    """Test a model; stores and returns its checkpoint, and top-k accuracies (k as text) of the model and the baselines."""
    folder = locate(test.folder)
    dataset = open_dataset(test.dataset, from_mapping(SubsetConfig, test.subset, "the test's subset"), test.subset_seed)
    settings = Settings(
        topk=TESTED,
        batch_size=test.batch_size,
        corrupt=test.corrupt,  # type: ignore[arg-type]
        cache=test.cache,
        quiet=quiet,
    )
    found = evaluate_checkpoint(locate(test.checkpoint), dataset, "test", settings, output=folder)
    if test.whole:
        write_evaluation(found, folder)
    else:
        (folder / PARTS).delete()
    topk = {str(k): accuracy for k, accuracy in found.topk.items()}
    values = {"checkpoint": mask_credentials(test.checkpoint), "topk": topk, "baselines": found.baselines}
    (folder / DONE).write_text(json.dumps(values, indent=1) + "\n")
    return values


def run_tests(tests: Sequence[ModelTest], workers: WorkersConfig, cluster: ClusterConfig) -> list[dict[str, Any]]:
    """Test the models that are not tested yet and return the results of all models, in order.

    Each test is a Ray task with the CPUs of a trial's process, and a GPU if trials have GPUs. A single test without a GPU
    and a cluster runs in this process, which avoids the start of another. Raises UserError after all tests if one failed.
    """
    results = [test.before() for test in tests]
    missing = [number for number, result in enumerate(results) if result is None]
    if missing:
        connect(cluster)
        gpus = min(1.0, gpus_per_worker(workers.gpus))
        if is_local(cluster) and not gpus and len(missing) == 1:
            results[missing[0]] = run_test(tests[missing[0]], quiet=False)
        else:
            cpus = effective_workers(workers, [LoaderConfig()]).reserved_cpus
            task = ray.remote(num_cpus=cpus, num_gpus=gpus)(_run_task)
            refs = {task.remote(tests[number], cpus): number for number in missing}
            for ref, result in _fetched(refs, tests):
                results[refs[ref]] = result
    return [result for result in results if result is not None]


def _fetched(refs: Mapping[Any, int], tests: Sequence[ModelTest]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield each task with its result when it finishes; raises the first failure at the end."""
    progress = Progress("testing", len(refs), "models")
    waiting, failed = list(refs), None
    while waiting:
        (ref,), waiting = ray.wait(waiting, num_returns=1)
        try:
            yield ref, result_of(ref, f"test of {tests[refs[ref]].checkpoint}")
        except UserError as error:
            failed = failed or error
        progress.update(1)
    progress.clear()
    if failed is not None:
        raise failed


def _run_task(test: ModelTest, cpus: float) -> dict[str, Any]:
    torch.set_num_threads(max(1, int(cpus)))
    return run_test(test)


def result_of(ref: Any, what: str) -> Any:
    """Return the result of a Ray task; raises UserError with one line if it failed or its process was lost."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if (own := own_error(error)) is not None:
            raise own from None
        reason = f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        reason = f"its process was lost: {type(error).__name__}: {error}"
    raise UserError(f"{what}: {' '.join(reason.split())[:300]}; run the same command with --resume to continue")
