"""Tests that the Python API exports the documented names and returns the same results as the commands."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import landmark
from landmark.cli import main
from landmark.data.dataset import PackedDataset
from landmark.training.run import run_training
from tests.support.packed import picture, write_packed
from tests.training.test_run import config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("api")
    dataset = write_packed(folder / "dataset", {"train": [50, 47], "val": [21], "test": [23]}, classes=4)
    return run_training(config(dataset, folder, epochs=6)).run


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(picture(2, 900, 40))
    return path


def test_public_names_import_without_torch_or_ray():
    code = (
        "import sys, landmark\n"
        "assert set(landmark.__all__) <= set(dir(landmark)) and 10 <= len(landmark.__all__) <= 14\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'pyarrow', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    for name in landmark.__all__:
        assert getattr(landmark, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        landmark.trian  # noqa: B018
    assert (ROOT / "landmark" / "py.typed").exists()


def test_predictions_are_the_same_for_paths_bytes_and_arrays(run, photo):
    model = landmark.load(run)
    assert (model.classes, model.meta.image_size) == (["c0", "c1", "c2", "c3"], 16)
    assert "4 classes" in repr(model)
    best = model.predict(str(photo))
    assert [type(each) for each in best] == [landmark.Prediction] * 4  # top_k is 5, there are 4 classes
    assert best[0].name == "c2" and best[0].label == 2
    assert [each.score for each in best] == sorted((each.score for each in best), reverse=True)
    assert sum(each.score for each in best) == pytest.approx(1, abs=1e-4)
    opened = Image.open(photo)
    forms = [photo, photo.read_bytes(), opened, np.asarray(opened)]
    for form in forms:
        found = model.predict(form, top_k=2)
        assert [each.name for each in found] == [each.name for each in best[:2]]
        assert found[0].score == pytest.approx(best[0].score, abs=0.02)  # pixels are re-encoded as JPEG
    batch = model.predict([photo, photo.read_bytes()], top_k=1)
    assert [[each.name for each in row] for row in batch] == [["c2"], ["c2"]]
    assert model.predict([]) == []


def test_predictions_equal_those_of_the_predict_command(run, photo, tmp_path):
    import pyarrow.parquet as pq

    assert main(["predict", run, str(photo), "-o", str(tmp_path / "out")]) == 0
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()[0]
    best = landmark.load(run).predict(photo)
    assert (table["name"], table["name_2"]) == (best[0].name, best[1].name)
    assert table["score"] == pytest.approx(best[0].score, abs=1e-5)


def test_module_and_preprocess_give_the_same_logits(run, photo):
    model = landmark.load(run, device="cpu")
    inputs = model.preprocess(photo)
    assert inputs.shape == (3, 16, 16) and inputs.dtype == torch.float32
    with torch.no_grad():
        scores = model.module(inputs[None]).softmax(1)[0]
    assert scores.max().item() == pytest.approx(model.predict(photo)[0].score, abs=1e-5)


def test_embeddings_and_neighbors(run, photo):
    model = landmark.load(run)
    one, many = model.embed(photo), model.embed([photo, photo])
    assert one.shape == many.shape[1:] and np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(many[0], one, atol=1e-6)
    with pytest.raises(landmark.UserError, match=f"no gallery; build one with: landmark index {run}"):
        model.neighbors(photo)
    assert main(["index", run]) == 0
    nearest = landmark.load(run).neighbors(photo, top_k=3)
    assert [type(each) for each in nearest] == [landmark.Neighbor] * 3 and nearest[0].name == "c2"
    assert nearest[0].similarity >= nearest[1].similarity >= nearest[2].similarity


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nothing.jpg", "nothing.jpg: no such image file"),
        (b"text", "the image: not an image"),
        (b"", "the image: empty file"),
        (np.zeros((4, 4, 3), np.float32), r"array of float32 \(4, 4, 3\); expected uint8"),
        (np.zeros((4, 4, 5), np.uint8), "expected uint8"),
    ],
)
def test_an_unreadable_image_is_a_one_line_error(run, image, message):
    with pytest.raises(landmark.UserError, match=message) as error:
        landmark.load(run).predict(image)
    assert "\n" not in str(error.value)


def test_a_dataset_converts_to_a_table_ray_and_torch(run, ray_cluster):
    dataset = landmark.Dataset(Path(run).parent / "dataset")
    packed = PackedDataset.open(dataset.uri)
    assert dataset.classes == ["c0", "c1", "c2", "c3"]
    assert dataset.splits == {"train": 97, "val": 21, "test": 23}
    table = dataset.catalog()
    assert len(table) == 141 and set(table["split"]) == {"train", "val", "test"}
    assert len(dataset.catalog("val")) == 21
    rows = dataset.to_ray("test").take_all()
    test = dataset.catalog("test")
    assert {row["image_id"]: row["label"] for row in rows} == dict(zip(test["image_id"], test["label"], strict=True))
    assert all(row["image"][:2] == b"\xff\xd8" for row in rows)
    images = dataset.to_torch("train")
    image, label = images[5]
    assert len(images) == 97 and image.dtype == torch.uint8 and image.shape[0] == 3
    assert label == packed.sample_labels("train")[5]
    loader = torch.utils.data.DataLoader(
        dataset.to_torch("train", transform=lambda opened: torch.tensor(opened.size)), batch_size=16, num_workers=2
    )
    assert sum(len(batch[1]) for batch in loader) == 97
    with pytest.raises(landmark.UserError, match="no split 'tset'; did you mean 'test'"):
        dataset.to_ray("tset")


def test_a_subset_has_the_same_rows_and_labels_in_every_format(run, ray_cluster):
    from landmark.config import SubsetConfig

    dataset = landmark.Dataset(Path(run).parent / "dataset", SubsetConfig(classes=2))
    table = dataset.catalog("train")
    rows = dataset.to_ray("train").take_all()
    expected = dict(zip(table["image_id"], table["label"], strict=True))
    assert {row["image_id"]: row["label"] for row in rows} == expected
    assert set(expected.values()) == {0, 1}
    assert sorted(label for _, label in dataset.to_torch("train")) == sorted(expected.values())


def test_the_commands_as_functions(ray_cluster, tmp_path):
    prepared = landmark.prepare(
        source="synthetic",
        output=tmp_path / "dataset",
        options={"synthetic": {"classes": 3, "images": 90, "image_size": 32}, "packing": {"short_side": 32}},
    )
    assert (
        prepared.classes == 3 and sum(prepared.images.values()) == 90 and prepared.dataset().splits == prepared.images
    )
    same = {"img_size": 16, "batch_size": 16, "model": "reference_mlp", "opt": "adam"}
    result = landmark.train(
        prepared.uri,
        epochs=2,
        lr=0.003,
        seed=1,
        output=tmp_path,
        name="run",
        options={"loader": {"decode_threads": 1}},
        **same,
    )
    assert result.epochs_run == 2 and 0 <= result.metrics["val_top1"] <= 1
    assert len(result.model().predict(np.zeros((32, 32, 3), np.uint8), top_k=2)) == 2
    with pytest.raises(
        landmark.UserError,
        match="a run with this name has different settings: loader.decode_threads: 1 -> unset; add --resume",
    ):
        landmark.train(prepared.uri, epochs=2, lr=0.003, seed=1, output=tmp_path, name="run", **same)
    longer = landmark.train(
        prepared.uri, epochs=3, output=tmp_path, name="run", resume=True
    )  # with the other settings of the run
    assert longer.epochs_run == 3
    evaluated = landmark.evaluate(result.uri, options={"bootstrap": 20})
    assert evaluated.metrics["rows"] == prepared.images["test"] and evaluated.uri.endswith("/run/evaluation-test")
    assert Path(landmark.report(result.uri).page).exists()
    space = tmp_path / "space.yaml"
    space.write_text("parameters: {optimizer.lr: {grid: [0.003, 0.001]}}\n")
    study = landmark.tune(
        prepared.uri, space, epochs=1, output=tmp_path, name="study", max_concurrent=2, scheduler="none", **same
    )
    assert study.best is not None and len(study.leaderboard()) == 2
    assert study.model().classes == prepared.dataset().classes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": {"loder": {}}}, "landmark.train: unknown key 'loder'; did you mean 'loader'"),
        ({"options": {"loader": {"readers": 0}}}, "loader.readers is 0; expected 1 or more"),
        ({"epochs": 0}, "epochs is 0; expected 1 or more"),
        ({"recipe": "modrn"}, "recipe 'modrn' is neither a file nor a built-in recipe"),
    ],
)
def test_invalid_arguments_raise_the_same_one_line_error(options, message):
    with pytest.raises(landmark.UserError, match=message):
        landmark.train("d", **{"recipe": "modern", **options})
