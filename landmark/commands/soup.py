"""`landmark soup`: combines trained models by the mean of their weights, and compares soup, ensemble and flips."""

from typing import Any

from landmark.config import SoupConfig, UserError
from landmark.data.subset_view import open_dataset
from landmark.search.soup import METRIC, Soup, candidates_of, greedy_soup, write_soup
from landmark.storage import check_writable, locate
from landmark.table import aligned

COLUMNS = {"val_top1": "val top-1", "val_top5": "top-5", METRIC: "calibrated loss"}


def soup(config: SoupConfig) -> dict[str, Any]:
    """Print the comparison, and store the soup if it is better than the best model; returns the metrics and the model's location."""
    output = locate(config.output)
    folder = output / config.name
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another --name, or delete this folder")
    check_writable(output)
    candidates, left_out = candidates_of(config.runs, config.max_models)
    if left_out:
        print(f"note: left out {left_out} trials with another backbone or input than {candidates[0].name}")
    meta = candidates[0].meta
    dataset = open_dataset(config.dataset or meta.dataset, meta.subset, meta.subset_seed)
    found = greedy_soup(candidates, dataset, config.batch_size)
    print(_table(found))
    helped = len(found.members) > 1
    if helped:
        write_soup(found, folder)
        print(f"soup of {', '.join(member.name for member in found.members)}")
    else:
        print(f"no soup is better than {found.best.name}; nothing was written")
    reached = found.metrics[METRIC]
    if found.row("flip").metrics[METRIC] < found.rows[0].metrics[METRIC]:
        print("flips help: add --tta flip to landmark evaluate and predict (twice the time)")
    if found.row("ensemble").metrics[METRIC] < reached:
        places = " ".join(str(candidate.checkpoint) for candidate in candidates)
        print(f"the ensemble is better: distill it with landmark train {dataset.uri} --distill.teachers {places}")
    model = folder if helped else found.best.checkpoint
    print(f"model: {model}  next: landmark evaluate {model}")
    return {"model": str(model), "rows": [{"name": row.name, **row.metrics} for row in found.rows]}


def _table(found: Soup) -> str:
    rows = [["", *COLUMNS.values()]]
    for row in found.rows:
        shown = row.metrics
        cells = [f"{shown[key]:.4f}" if key.endswith("loss") else f"{shown[key]:.2%}" for key in COLUMNS]
        rows.append([row.name, *cells])
    return aligned(rows)
