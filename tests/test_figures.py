"""Tests that published figures have a standard deviation only if there is more than one value."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the benchmarks folder to `sys.path`, as for the scripts in it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_one_value_has_no_standard_deviation(benchmark: None) -> None:
    from seeds import format_mean, mean_and_deviation

    assert format_mean(*mean_and_deviation([0.934])) == "93.4%"
    assert mean_and_deviation([0.5, 0.7, 0.6]) == (pytest.approx(0.6), pytest.approx(0.1))
    assert format_mean(*mean_and_deviation([0.5, 0.7, 0.6]), ".3f") == "0.600 ± 0.100"
    with pytest.raises(statistics.StatisticsError):
        mean_and_deviation([])


def test_recipes_table_shows_no_deviation_for_one_seed(benchmark: None, capsys: pytest.CaptureFixture[str]) -> None:
    import recipes

    from landmark.recipes import load_recipe

    def row(top1: float) -> dict[str, Any]:
        return {
            "val_top1": 0.9,
            "top1": top1,
            "top5": 0.98,
            "majority": 0.1,
            "seconds": 1.0,
            "recipe": load_recipe("modern"),
        }

    runs = {"modern": [row(0.5), row(0.7)], "finetune": [row(0.9344)]}
    recipes.print_table(runs, recipes.summary(runs))
    several, one = capsys.readouterr().out.splitlines()[1:3]
    assert several.count("±") == 2 and "60.0% ± 14.1%" in several
    assert "93.4%" in one and "±" not in one


def test_no_document_or_result_has_a_deviation_of_zero() -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [
        f"{document.name}: {line.strip()}"
        for document in documents
        for line in document.read_text().splitlines()
        if re.search(r"± ?0*\.?0+(?![\d.])", line)
    ]
    assert found == []
    results = json.loads((ROOT / "benchmarks" / "results" / "recipes.json").read_text())
    spreads = {name: value for name, value in results.items() if name.endswith("_spread")}
    one = {name for name in spreads if results[name.split("_")[0] + "_seeds"] == 1}
    assert one and all((spreads[name] is None) == (name in one) for name in spreads)
