"""Tests thousands of classes with one or two images each, end to end, without tensors as large as images x classes."""

import collections
import json
from pathlib import Path

import pyarrow.csv as pacsv
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landmark.cli import main
from landmark.data.dataset import PackedDataset
from landmark.data.loading.progress import EpochProgress
from landmark.models import chunked_cross_entropy

CLASSES, IMAGES, WIDTH, BATCH = 2000, 2400, 16, 64
PAGE_BYTES = 600_000
"""More than the page without its class table (0.3 MB), and less than with a line of HTML per class."""


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that torch creates in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)}
        return output

    def dense(self) -> list[tuple[int, ...]]:
        """Return the shapes that have all classes as one dimension and more values than the class weights."""
        return [
            shape for shape in self.seen if CLASSES in shape and torch.Size(shape).numel() > CLASSES * max(WIDTH, 2)
        ]


@pytest.fixture(scope="module")
def packed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    output = str(tmp_path_factory.mktemp("labels") / "dataset")
    options = [
        "--source",
        "synthetic",
        "--synthetic.classes",
        str(CLASSES),
        "--synthetic.images",
        str(IMAGES),
        "--synthetic.image-size",
        "16",
    ]
    assert main(["prepare", "--output", output, *options]) == 0
    return PackedDataset.open(output)


def test_train_has_every_class_and_the_other_splits_have_images(packed):
    assert packed.num_classes == CLASSES
    assert (packed.label_counts("train") > 0).all()
    assert sum(packed.split(name).rows for name in ("train", "val", "test")) == IMAGES
    assert min(packed.split(name).rows for name in ("val", "test")) > 20


def test_an_epoch_with_a_sampled_head_is_evaluated_and_reported(packed, tmp_path: Path, monkeypatch, capsys):
    visit_counts: collections.Counter[int] = collections.Counter()
    advance = EpochProgress.advance
    monkeypatch.setattr(
        EpochProgress, "advance", lambda self, visits: (visit_counts.update(visits.tolist()), advance(self, visits))[1]
    )
    # Chunks are smaller than the logits of all classes by the same factor as with 203,094 classes.
    monkeypatch.setattr(chunked_cross_entropy, "CHUNK_LOGITS", BATCH * CLASSES // 20)
    run = ["--dataset", packed.uri, "--output", str(tmp_path), "--name", "run", "--epochs", "1"]
    head = ["--model.head.name", "subcenter", "--model.head.subcenters", "1", "--model.head.min-margin", "0.05"]
    model = ["--model.backbone", "reference_mlp", "--model.neck", str(WIDTH), *head, "--model.head.sample", "0.1"]
    loader = ["--loader.image-size", "16", "--loader.batch-size", str(BATCH)]
    with Shapes() as shapes:
        assert main(["train", *run, *model, *loader]) == 0
        assert main(["evaluate", "--run", str(tmp_path / "run"), "--bootstrap", "50"]) == 0
    assert main(["report", "--run", str(tmp_path / "run")]) == 0
    assert visit_counts == collections.Counter(range(packed.split("train").rows))
    assert (CLASSES, WIDTH) in shapes.seen or (CLASSES, 1, WIDTH) in shapes.seen
    assert not shapes.dense()
    rows = packed.split("test").rows
    folder = tmp_path / "run" / "evaluation-test"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["rows"], metrics["classes"]) == (rows, CLASSES)
    assert metrics["classes_present"] == int((packed.label_counts("test") > 0).sum())
    assert sum(band["rows"] for band in metrics["bands"]) == rows
    confusion = pacsv.read_csv(folder / "confusion.csv")
    assert len(confusion) <= rows and sum(confusion["count"].to_pylist()) == rows
    assert len(pacsv.read_csv(folder / "per_class.csv")) == CLASSES
    page = tmp_path / "run" / "report" / "index.html"
    assert page.stat().st_size < PAGE_BYTES
    assert len(capsys.readouterr().out.splitlines()) < 60
