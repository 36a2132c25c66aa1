"""Tests `landmark soup`: greedy means of weights of real runs, stored as a model only if it is better."""

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import landmark.search.soup as soup_module
from landmark.checkpoints.format import load_model, resolve_checkpoint
from landmark.commands.soup import soup
from landmark.config import LoaderConfig, ModelConfig, SoupConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.inference.evaluation import Settings, evaluate_checkpoint
from landmark.search.soup import METRIC, mean_weights
from landmark.storage import Location, locate
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.support.runs import small_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedDataset, Path]:
    """Return a dataset and a folder with the runs a, b and c, which start at the same weights, and other."""
    folder = tmp_path_factory.mktemp("soup")
    dataset = write_packed(folder / "dataset", {"train": [60], "val": [30], "test": [20]})
    base = small_run(dataset, folder, epochs=2)
    for name, changes in {
        "a": {},
        "b": {"epochs": 3},
        "c": {"epochs": 1},
        "necked": {"model": ModelConfig(backbone="reference_mlp", neck=8)},
        "other": {"loader": LoaderConfig(image_size=32, batch_size=16, decode_threads=2)},
    }.items():
        run_training(dataclasses.replace(base, name=name, **changes))
    return dataset, folder


def config_of(folder: Path, *names: str, **changes) -> SoupConfig:
    return SoupConfig(runs=tuple(str(folder / name) for name in names), output=str(folder), **changes)


def test_a_soup_is_the_mean_of_its_models_and_the_best_by_calibrated_loss(trained, capsys) -> None:
    dataset, folder = trained
    found = soup(config_of(folder, "a", "b", "c", name="mixed"))
    shown = capsys.readouterr().out
    rows = {row["name"]: row[METRIC] for row in found["rows"]}
    models = [str(folder / name) for name in "abc"]
    assert [name for name in rows if name in models] == sorted(models, key=rows.__getitem__)
    assert "ensemble of 3" in rows and any("--tta flip" in name for name in rows)
    best = min(rows[name] for name in models)
    kept = [name for name in rows if name.startswith("soup of") and rows[name] < best]
    if not kept:
        assert "nothing was written" in shown and not (folder / "mixed").exists()
        assert found["model"] == str(resolve_checkpoint(min(models, key=rows.__getitem__)))
        return
    record = json.loads((folder / "mixed" / "soup.json").read_text())
    mean = safetensors.torch.load((folder / "mixed" / "model.safetensors").read_bytes())
    torch.testing.assert_close(mean, mean_of(map(locate, record["models"].values())))
    checkpoint = resolve_checkpoint(str(folder / "mixed"))
    _, meta = load_model(checkpoint)
    assert meta.metrics[METRIC] == min(rows[name] for name in kept) < best
    evaluated = evaluate_checkpoint(checkpoint, dataset, "val", Settings(quiet=True))
    assert evaluated.accumulator.top_k(1) == pytest.approx(meta.metrics["val_top1"])


def give_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Replace the measured losses, in the order of the measurements."""
    given = iter(losses)

    def metrics(model: torch.nn.Module) -> dict[str, float]:
        return {METRIC: next(given), "val_loss": 1.0, "val_top1": 0.5, "val_top5": 0.9, "temperature": 1.5}

    monkeypatch.setattr(soup_module, "_Measurement", lambda *_: metrics)


def mean_of(places: Iterable[Location]) -> dict[str, torch.Tensor]:
    """Return the mean of the weights of checkpoints."""
    found = [safetensors.torch.load((place / "model.safetensors").read_bytes()) for place in places]
    return {name: torch.stack([weights[name] for weights in found]).mean(0) for name in found[0]}


def test_models_are_added_only_if_the_loss_falls(trained, monkeypatch, capsys) -> None:
    _, folder = trained
    give_losses(monkeypatch, [1.0, 3.0, 2.0, 0.8, 0.9, 0.5, 1.1])  # a, b, c; a + c; a + c + b; ensemble; flips of a
    found = soup(config_of(folder, "a", "b", "c", name="given"))
    shown = capsys.readouterr().out
    record = json.loads((folder / "given" / "soup.json").read_text())
    assert list(record["models"]) == [str(folder / "a"), str(folder / "c")]
    assert found["model"] == str(locate(str(folder / "given")))
    mean = safetensors.torch.load((folder / "given" / "model.safetensors").read_bytes())
    torch.testing.assert_close(mean, mean_of(resolve_checkpoint(str(folder / name)) for name in "ac"))
    assert json.loads((folder / "given" / "meta.json").read_text())["temperature"] == 1.5
    assert "--distill.teachers" in shown and "flips help" not in shown


def test_a_soup_that_does_not_help_is_not_written(trained, monkeypatch, capsys) -> None:
    _, folder = trained
    give_losses(monkeypatch, [1.0, 2.0, 1.0, 1.2, 0.9])
    found = soup(config_of(folder, "a", "b", name="useless"))
    shown = capsys.readouterr().out
    assert "no soup is better" in shown and "flips help" in shown and not (folder / "useless").exists()
    assert found["model"] == str(resolve_checkpoint(str(folder / "a")))


def test_a_study_stands_for_its_trials_that_have_the_best_ones_model(trained, tmp_path, capsys) -> None:
    _, folder = trained
    rows = ["rank,trial,checkpoint"]
    for rank, name in enumerate(("b", "other", "a", "c"), 1):
        place = Path("trials") / f"00{rank}-{name}"
        (tmp_path / "trials").mkdir(exist_ok=True)
        shutil.copytree(folder / name / "checkpoints", tmp_path / place / "checkpoints")
        best = json.loads((tmp_path / place / "checkpoints" / "index.json").read_text())["best"]
        rows.append(f"{rank},00{rank}-{name},{place}/checkpoints/{best}")
    rows.append("5,005-failed,")
    (tmp_path / "leaderboard.csv").write_text("\n".join(rows) + "\n")
    found = soup(SoupConfig(runs=(str(tmp_path),), output=str(tmp_path), name="soup", max_models=2))
    assert "left out 1 trials with another backbone or input than 001-b" in capsys.readouterr().out
    measured = {row["name"] for row in found["rows"]}
    assert {"001-b", "003-a", "ensemble of 2"} < measured and not {"002-other", "004-c"} & measured


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["a"], {}, "contains one model; give a study with several trials"),
        (["a", "a"], {}, "contains one model"),
        (["a", "other"], {}, "has another image_size than .*combine models of the same image_size"),
        (["a", "nothing"], {}, "does not exist; pass the folder of a run"),
        (["a", "necked"], {}, "has another neck than .*combine models of the same neck"),
        (["a", "b", "c"], {"max_models": 2}, "3 models are given, but max_models is 2; raise --max-models"),
        (["a", "b"], {"name": "c"}, "exists already; choose another --name"),
    ],
)
def test_models_that_cannot_be_combined_are_one_line(trained, names, changes, message) -> None:
    _, folder = trained
    with pytest.raises(UserError, match=message):
        soup(config_of(folder, *names, **changes))


def test_models_of_different_layers_are_one_line() -> None:
    with pytest.raises(UserError, match="different layers .fc.weight.; combine models of the same architecture"):
        mean_weights({"fc.weight": torch.ones(2, 3)}, {"fc.weight": torch.ones(2, 4)}, 1)


def test_the_mean_of_three_models_weighs_them_equally() -> None:
    first, second, third = (
        {"weight": torch.full((2,), value), "batches": torch.tensor(int(value))} for value in (3.0, 6.0, 12.0)
    )
    found = mean_weights(mean_weights(first, second, 1), third, 2)
    assert found["weight"].tolist() == [7.0, 7.0] and found["batches"].item() == 3
