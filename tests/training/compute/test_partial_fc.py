"""Tests Partial FC: equal to the full loss if all classes are sampled, independent of ranks, and resumable."""

import copy
import dataclasses
import itertools
import os
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.nn import functional

from landmark.config import (
    AugmentConfig,
    ComputeConfig,
    HeadConfig,
    LoaderConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
)
from landmark.data.loading.loader import Batch
from landmark.models import build_margin, build_model, chunked_cross_entropy, embedding_classifier, model_info
from landmark.models.chunked_cross_entropy import ChunkedCrossEntropy, Targets, ranking, ranking_of
from landmark.models.heads import Classifier
from landmark.training.compute.optim import Schedule
from landmark.training.compute.partial_fc import PartialFC, sample_classes
from landmark.training.compute.row_optimizer import RowOptimizer
from landmark.training.distributed.backends import Ddp
from landmark.training.loop.step import TrainStep
from landmark.training.loop.validation import validate

CLASSES = 50
HEADS = ["linear", "cosface", "arcface", "subcenter"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class SingleRank:
    rank, world_size, device = 0, 1, torch.device("cpu")

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        return model

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        return values


class GlooRank(SingleRank):
    """One of two ranks over Gloo, with gradients averaged by DDP."""

    world_size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.parallel.DistributedDataParallel(model)

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        return Ddp().all_reduce(values)

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        return Ddp().all_gather(values)

    def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
        return Ddp().reduce_scatter(values)


def recipe(name: str = "arcface", sample: float | None = 0.3, **changes: Any) -> Recipe:
    head = HeadConfig(name=name, sample=sample, **({} if name == "linear" else {"scale": 16.0, "min_margin": 0.1}))
    base = Recipe(
        model=ModelConfig(backbone="reference_mlp", head=head),
        optimizer=OptimizerConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=1e-2),
        schedule=ScheduleConfig(name="constant"),
        compute=ComputeConfig(amp="off"),
        loader=LoaderConfig(batch_size=8, image_size=16),
    )
    return dataclasses.replace(base, **changes)


def step_of(run: Recipe, session: Any = None, seed: int = 0) -> tuple[TrainStep, Schedule]:
    torch.manual_seed(seed)
    # `sample` is set so that linear heads also get an embedding classifier.
    sampled = dataclasses.replace(run.model, head=dataclasses.replace(run.model.head, sample=0.5))
    model = build_model(sampled, classes=CLASSES, image_size=16)
    step = TrainStep(model, run, model_info("reference_mlp"), session or SingleRank(), np.arange(1, CLASSES + 1))
    return step, Schedule(
        step.optimizer, run.schedule, optimizer_config=run.optimizer, steps_per_epoch=10, epochs=10, mode="max"
    )


def batch_of(number: int, part: slice = slice(None), weight: float = 1.0) -> Batch:
    random = np.random.default_rng(number)
    labels = random.integers(0, CLASSES, 8)
    images = (random.integers(0, 128, (8, 16, 16, 3)) + labels[:, None, None, None] * 2).astype(np.uint8)
    samples, flip = np.arange(8) + 8 * number, np.zeros(8, dtype=bool)
    values = {"images": images, "labels": labels, "samples": samples, "visits": samples, "flip": flip}
    return Batch(**{name: value[part] for name, value in values.items()}, weight=weight, epoch=1)


def trained(run: Recipe, steps: int = 4, **options: Any) -> TrainStep:
    step, schedule = step_of(run, **options)
    for number in range(steps):
        step.run(batch_of(number), schedule, number, 8)
    return step


def assert_same(one: torch.nn.Module, two: torch.nn.Module, **tolerance: float) -> None:
    for (name, local), (_, other) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        torch.testing.assert_close(local, other, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


VARIED: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed, weighted, clipped": {
        "loss": LossConfig(label_smoothing=0.2, class_weights="sqrt"),
        "optimizer": OptimizerConfig(name="sgd", lr=0.05, weight_decay=1e-2, clip_norm=0.5, nonfinite="skip"),
    },
    "mixed": {"augment": AugmentConfig(mixup=0.8, cutmix=1.0, mix_prob=0.7)},
    "no momentum": {"optimizer": OptimizerConfig(name="sgd", lr=0.05, momentum=0.0)},
    "rmsprop": {"optimizer": OptimizerConfig(name="rmsprop", lr=1e-3, weight_decay=1e-2)},
    "adam": {"optimizer": OptimizerConfig(name="adam", lr=1e-3, weight_decay=1e-2)},
    "adamw": {"optimizer": OptimizerConfig(name="adamw", lr=1e-3, weight_decay=1e-2)},
    "fp16": {"compute": ComputeConfig(amp="fp16")},
}


@pytest.mark.parametrize("variation", VARIED)
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [1 << 22, 300])
def test_sampling_all_classes_equals_the_full_loss(name, variation, chunk, monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "CHUNK_LOGITS", chunk)
    full, all_sampled = (trained(recipe(name, sample, **VARIED[variation])) for sample in (None, 1.0))
    # Adam and RMSprop amplify rounding differences of tiny gradients.
    tolerance = {"fp16": 1e-3, "adam": 3e-4, "rmsprop": 3e-4}.get(variation, 2e-5)
    assert_same(full.model, all_sampled.model, rtol=1e-3, atol=tolerance)
    start, _ = step_of(recipe(name))
    before = embedding_classifier(start.model).weight
    assert (embedding_classifier(full.model).weight - before).abs().max() > 1e-3
    totals, others = full.take_totals(), all_sampled.take_totals()
    assert totals.loss == pytest.approx(others.loss, rel=1e-3)
    assert totals.rows == others.rows == 32 - 8 * totals.skipped
    assert totals.skipped == others.skipped


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [1 << 22, 40])
def test_loss_and_gradient_equal_a_softmax_over_the_sampled_classes(name, chunk, monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "CHUNK_LOGITS", chunk)
    torch.manual_seed(0)
    config = HeadConfig(name=name, scale=16.0)
    classifier, margin = Classifier(config, 6, CLASSES), build_margin(config, None, torch.device("cpu"))
    embeddings, labels, weights = torch.randn(8, 6), torch.randint(0, CLASSES, (8,)), torch.rand(8)
    ids = torch.unique(torch.cat([labels, torch.randint(0, CLASSES, (15,))]))
    targets = Targets(labels=labels, weights=weights)
    options = {"margin": margin, "label_smoothing": 0.1, "classes": len(ids), "combine": lambda partial: partial}
    found = ChunkedCrossEntropy(classifier, embeddings, ids, targets, **options)
    inputs = embeddings.clone().requires_grad_()
    cosines = classifier(inputs)[:, ids]
    places = torch.searchsorted(ids, labels)
    logits = cosines if margin is None else margin.on_all(cosines, places)
    losses = functional.cross_entropy(logits, places, label_smoothing=0.1, reduction="none")
    (losses * weights).sum().backward()
    torch.testing.assert_close(found.losses(), losses.detach())
    assert found.hits().tolist() == (cosines.argmax(1) == places).tolist()
    parts: list[chunked_cross_entropy.RowGradient] = []
    of_embeddings = found.gradient(parts.append)
    assert (len(parts) > 1) == (chunk == 40)
    torch.testing.assert_close(of_embeddings, inputs.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([part.ids for part in parts]), ids)
    for key in ("weight", "bias") if name == "linear" else ("weight",):
        gradient = torch.cat([part.tensors()[key] for part in parts])
        torch.testing.assert_close(gradient, getattr(classifier, key).grad[ids], rtol=1e-4, atol=1e-5)


def test_sampled_classes_depend_only_on_seed_and_step():
    samples = [sample_classes(3, step, 2000, 0.1) for step in range(300)]
    assert all(np.array_equal(found, sample_classes(3, step, 2000, 0.1)) for step, found in enumerate(samples))
    assert not np.array_equal(samples[0], samples[1]) and not np.array_equal(
        samples[0], sample_classes(4, 0, 2000, 0.1)
    )
    assert all((np.diff(found) > 0).all() for found in samples)
    assert np.mean([len(found) for found in samples]) == pytest.approx(200, rel=0.01)
    counts = np.bincount(np.concatenate(samples), minlength=2000)
    # A binomial distribution with n=300 and p=0.1 has mean 30 and standard deviation 5.2.
    assert counts.std() == pytest.approx(5.2, rel=0.1) and counts.min() > 5 and counts.max() < 60
    assert sample_classes(0, 0, 5, 1.0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw"])
def test_unsampled_rows_keep_weights_and_state_bitwise(name, optimizer):
    run = recipe(name, optimizer=OptimizerConfig(name=optimizer, lr=0.01, weight_decay=0.1))
    step, schedule = step_of(run)
    partial_fc = step.partial_fc
    step.run(batch_of(0), schedule, 0, 8)
    before = copy.deepcopy(partial_fc.state()), copy.deepcopy(partial_fc.classifier.state_dict())
    batch = batch_of(1)
    step.run(batch, schedule, 1, 8)
    sampled_ids = set(sample_classes(0, 2, CLASSES, 0.3).tolist()) | set(batch.labels.tolist())
    assert 8 < len(sampled_ids) < CLASSES
    others = [name for name in range(CLASSES) if name not in sampled_ids]
    for key, value in partial_fc.classifier.state_dict().items():
        assert torch.equal(value[others], before[1][key][others])
        changed = (value != before[1][key]).reshape(CLASSES, -1).any(1)
        assert set(torch.nonzero(changed)[:, 0].tolist()) == sampled_ids
    for key, tensors in partial_fc.state().items():
        assert all(torch.equal(tensor[others], before[0][key][other][others]) for other, tensor in tensors.items())


@pytest.mark.parametrize(
    ("config", "dense"),
    [
        (OptimizerConfig(name="sgd", weight_decay=0.1), {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (OptimizerConfig(name="sgd", momentum=0.0), {}),
        (OptimizerConfig(name="rmsprop", weight_decay=0.1), {"alpha": 0.9, "eps": 1e-7, "weight_decay": 0.1}),
        (OptimizerConfig(name="adam", weight_decay=0.1), {"weight_decay": 0.1}),
        (OptimizerConfig(name="adamw", weight_decay=0.1), {"weight_decay": 0.1}),
    ],
)
def test_rows_updated_in_every_step_match_the_torch_optimizer(config, dense):
    torch.manual_seed(0)
    actual, expected = torch.randn(9000, 3), None
    expected = torch.nn.Parameter(actual.clone())
    optimizers = {
        "sgd": torch.optim.SGD,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    reference = optimizers[config.name]([expected], lr=0.01, **dense)
    rows = RowOptimizer(actual, config, first=0, rows=9000)
    for _ in range(4):
        expected.grad = torch.randn(9000, 3)
        rows.update(torch.arange(9000), expected.grad * 2, 0.01, factor=0.5)
        reference.step()
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw"])
def test_a_resumed_run_continues_bitwise(optimizer, tmp_path):
    run = recipe(optimizer=OptimizerConfig(name=optimizer, lr=0.01, weight_decay=0.1, clip_norm=1.0))
    uninterrupted, schedule = step_of(run)
    for number in range(3):
        uninterrupted.run(batch_of(number), schedule, number, 8)
    torch.save((uninterrupted.model.state_dict(), uninterrupted.state()), tmp_path / "state.pt")
    resumed, again = step_of(run, seed=1)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.model.load_state_dict(weights)
    resumed.load_state(state)
    for number in range(3, 6):
        uninterrupted.run(batch_of(number), schedule, number, 8)
        resumed.run(batch_of(number), again, number, 8)
    assert_same(uninterrupted.model, resumed.model, rtol=0, atol=0)


DISTRIBUTED = {
    "sampled": recipe(
        "subcenter", 0.3, optimizer=OptimizerConfig(name="sgd", lr=0.05, clip_norm=0.5, weight_decay=0.01)
    ),
    "smoothed": recipe(
        "linear",
        0.3,
        loss=LossConfig(label_smoothing=0.2, class_weights="sqrt"),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, nonfinite="skip"),
    ),
    "all": recipe("arcface", 1.0),
    "few": recipe("cosface", 0.01),
}


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    rows, part = [(5, slice(0, 5)), (3, slice(5, 8))][rank]
    for name, run in DISTRIBUTED.items():
        step, schedule = step_of(run, GlooRank(rank))
        for number in range(6):
            if number == 3:
                # Save and restore as a checkpoint does, on two ranks again.
                step.partial_fc.gather()
                kept = [copy.deepcopy((step.model.state_dict(), step.state())) if rank == 0 else None]
                torch.distributed.broadcast_object_list(kept)
                if rank == 0:
                    torch.save(kept[0], f"{folder}/{name}-half.pt")
                step, schedule = step_of(run, GlooRank(rank), seed=9)
                step.model.load_state_dict(kept[0][0])
                step.load_state(kept[0][1])
            step.run(batch_of(number, part, rows * 2 / 8), schedule, number, 8)
        step.partial_fc.gather()
        totals = dataclasses.asdict(step.take_totals())
        torch.save((step.model.state_dict(), totals), f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(folder)), nprocs=2)
    return str(folder)


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_two_ranks_equal_one_and_their_checkpoint_resumes_on_one(name, two_ranks):
    (weights, totals), (rank_1_weights, _) = (torch.load(f"{two_ranks}/{name}-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, rank_1_weights[key]) for key, value in weights.items())
    one_rank = trained(DISTRIBUTED[name], steps=6)
    half_weights, half_state = torch.load(f"{two_ranks}/{name}-half.pt", weights_only=True)
    resumed, schedule = step_of(DISTRIBUTED[name], seed=9)
    resumed.model.load_state_dict(half_weights)
    resumed.load_state(half_state)
    for number in range(3, 6):
        resumed.run(batch_of(number), schedule, number, 8)
    for key, value in weights.items():
        torch.testing.assert_close(one_rank.model.state_dict()[key], value, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(resumed.model.state_dict()[key], value, rtol=1e-3, atol=2e-5)
    assert one_rank.take_totals().rows == 48 and totals["rows"] == 15


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [1 << 22, 60])
def test_chunked_ranking_equals_ranking_of_all_logits(name, chunk, monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "CHUNK_LOGITS", chunk)
    torch.manual_seed(0)
    classifier = Classifier(HeadConfig(name=name), 6, CLASSES)
    embeddings, labels = torch.randn(9, 6), torch.tensor([-1, 0, 1, 49, 7, 8, -1, 3, 4])
    with torch.no_grad():
        found = ranking(classifier, embeddings, labels, 5)
        dense = ranking_of(classifier(embeddings), labels, 5)
    for field in dataclasses.fields(found):
        torch.testing.assert_close(getattr(found, field.name), getattr(dense, field.name), rtol=1e-4, atol=1e-5)
    known = labels >= 0
    losses = functional.cross_entropy(classifier(embeddings)[known], labels[known], reduction="none")
    torch.testing.assert_close((found.log_sum - found.own)[known], losses.detach(), rtol=1e-4, atol=1e-5)


def test_chunked_validation_equals_validation_on_all_logits(monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "CHUNK_LOGITS", 100)
    step = trained(recipe("subcenter"))
    batches = [batch_of(number) for number in range(5)]
    chunked = validate(step.evaluated, batches, step.preprocess, SingleRank(), CLASSES)
    embedding_classifier(step.model).gives_embeddings = False
    dense = validate(step.evaluated, batches, step.preprocess, SingleRank(), CLASSES)
    assert (chunked.pop("temperature"), dense.pop("temperature") == 1) == (1, False)  # fitted only to stored logits
    assert chunked["val_calibrated_loss"] == chunked["val_loss"]
    dense["val_calibrated_loss"] = dense["val_loss"]
    assert dense == pytest.approx(chunked, rel=1e-5)


def test_logits_of_all_classes_are_never_materialized(monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "CHUNK_LOGITS", 80)
    shapes = []
    logits = Classifier.logits

    def recorded(self: Classifier, *inputs: Any) -> torch.Tensor:
        shapes.append(logits(self, *inputs).shape)
        return logits(self, *inputs)

    monkeypatch.setattr(Classifier, "logits", recorded)
    step, schedule = step_of(recipe(sample=1.0))
    shapes.clear()  # those of the check that the model accepts images of this size
    step.run(batch_of(0), schedule, 0, 8)
    validate(step.evaluated, [batch_of(0)], step.preprocess, SingleRank(), CLASSES)
    assert len(shapes) > 10 and all(rows * classes <= 80 for rows, classes in shapes)


def test_a_class_is_owned_by_one_rank():
    for classes, ranks in itertools.product([1, 3, 50], [1, 2, 7]):
        owned = []
        for rank in range(ranks):
            session = SingleRank()
            session.rank, session.world_size = rank, ranks
            partial_fc = PartialFC(Classifier(HeadConfig(), 2, classes), recipe(), session, None)
            owned += range(partial_fc.first, partial_fc.stop)
        assert owned == list(range(classes))
