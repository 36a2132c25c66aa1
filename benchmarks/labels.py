"""The full label set end to end: 203,094 synthetic landmarks, packed, trained one epoch, evaluated, reported.

Run: python benchmarks/labels.py [--classes 203094] [--images 240000] [--folder F]. The stages are the user's commands
(printed), each in its own process:
- `landmark prepare` draws and packs images of 32 px, one or more per class, with all classes in the training split.
- `landmark train` trains one epoch of a MobileNetV3 with a neck of 512 and an ArcFace head with dynamic margins, which
samples a tenth of the classes per step.
- `landmark evaluate` evaluates the test split with all metrics.
- `landmark report` writes the page, which is then opened in Chromium if available.
One epoch with about one image per class teaches the model almost nothing. The table shows only time and memory.
- seconds: wall time of the process, including start and imports. CPU s: of the process tree, sampled twice a second; it
shows how much other processes interfered. peak MiB: maximum private memory of the process tree (peak.py).
- step_s, validation_s, rest_s: wall time of training in its steps, in validation, and in start, snapshot and
  checkpoint.
- draw_ms, pack_ms: CPU time per image to draw it, and to decode and encode it for its shard, in one thread.
--folder stores data and figures in a folder. A stage with stored figures does not run again.
The last line is JSON. For the full label set it is saved to benchmarks/results/labels.json.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
# Waiting threads sleep, because spinning would block a core. Ray's default niceness of 15 would starve its workers
# when other processes run.
os.environ.update(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="", OMP_WAIT_POLICY="PASSIVE", RAY_worker_niceness="0")

from peak import Peak

from landmark.config import PackingConfig, SyntheticConfig
from landmark.data.dataset import PackedDataset
from landmark.data.sources.transcode import pack_image
from landmark.data.synthetic import plan_images, render_image

CLASSES, IMAGES, SIZE, NECK, BATCH = 203_094, 240_000, 32, 512, 512
DRAWN = 500
"""Number of images that are drawn and packed separately to measure the time per image."""
COUNT_BYTES = 8
HEAD = ["--model.head.name", "arcface", "--model.head.min-margin", "0.05", "--model.head.sample", "0.1"]


def commands(folder: Path, classes: int, images: int) -> Iterator[tuple[str, list[str]]]:
    """Yield each stage's name and command line."""
    synthetic = [
        "--synthetic.classes",
        str(classes),
        "--synthetic.images",
        str(images),
        "--synthetic.image-size",
        str(SIZE),
    ]
    yield "prepare", ["--source", "synthetic", *synthetic, "--output", str(folder / "dataset")]
    plain = folder / "plain.yaml"  # a recipe of defaults: without one, the command chooses by the dataset
    plain.write_text("epochs: 1\n")
    where = ["--dataset", str(folder / "dataset"), "--output", str(folder), "--name", "run", "--recipe", str(plain)]
    model = ["--model.backbone", "mobilenet_v3_small", "--model.neck", str(NECK), *HEAD]
    yield "train", [*where, *model, "--loader.image-size", str(SIZE), "--loader.batch-size", str(BATCH)]
    yield "evaluate", ["--run", str(folder / "run")]
    yield "report", ["--run", str(folder / "run")]


class TreePeak(Peak):
    """Also samples the CPU time of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        self.cpu: dict[int, float] = {}
        super().__init__(pid)

    def _sizes(self) -> Iterator[int]:
        import psutil

        try:
            for process in [self.process, *self.process.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                self.cpu[process.pid] = times.user + times.system
        except psutil.NoSuchProcess:
            return
        yield from super()._sizes()


def run(verb: str, arguments: list[str]) -> dict[str, float]:
    """Run a command in its own process. Returns its seconds, CPU seconds and peak memory, MiB."""
    print(f"$ landmark {verb} {' '.join(arguments)}", flush=True)
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "landmark", verb, *arguments], stderr=subprocess.DEVNULL) as child:
        peak = TreePeak(child.pid)
        child.wait()
    seconds, memory = time.perf_counter() - start, peak.stop()
    if child.returncode:
        raise SystemExit(f"landmark {verb} failed")
    return {f"{verb}_s": seconds, f"{verb}_cpu_s": sum(peak.cpu.values()), f"{verb}_peak_mib": memory}


def size_mib(root: Path) -> float:
    """Return the size of a file, or of all files in a folder, MiB."""
    files = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) / 2**20


def dataset_figures(folder: Path) -> dict[str, float]:
    """Return the contents of the dataset."""
    dataset = PackedDataset.open(str(folder / "dataset"))
    rows = {f"{name}_images": entry.rows for name, entry in dataset.manifest.splits.items()}
    trained = int((dataset.label_counts("train") > 0).sum())
    if trained != dataset.num_classes:
        raise SystemExit(f"{dataset.num_classes - trained} classes have no training image")
    return {"classes": dataset.num_classes, **rows, "dataset_mib": size_mib(folder / "dataset")}


def training_figures(folder: Path, train_images: float) -> dict[str, float]:
    """Return the speed recorded in the run's files, and their size."""
    (row,) = csv.DictReader((folder / "run" / "history.csv").read_text().splitlines())
    steps = train_images / float(row["images_per_s"])
    values = json.loads((folder / "run" / "run.json").read_text())
    checkpoint = folder / "run" / values["best_checkpoint"]
    return {
        "images_per_s": float(row["images_per_s"]),
        "step_s": steps,
        "validation_s": float(row["epoch_seconds"]) - steps,
        "checkpoint_mib": size_mib(checkpoint),
        "meta_mib": size_mib(checkpoint / "meta.json"),
        "val_top1": float(row["val_top1"]),
    }


def evaluation_figures(folder: Path) -> dict[str, float]:
    """Return the evaluation's metrics and the size of its files."""
    path = folder / "run" / "evaluation-test"
    metrics = json.loads((path / "metrics.json").read_text())
    cells = sum(1 for _ in (path / "confusion.csv").open()) - 1
    names = ("rows", "classes_present", "top1", "gap", "macro_recall", "ece")
    bands = {f"{band['band']}_classes": band["classes"] for band in metrics["bands"]}
    return {
        **{f"test_{key}": metrics[key] for key in names},
        **bands,
        "confusion_cells": cells,
        "evaluation_mib": size_mib(path),
    }


def report_figures(folder: Path) -> dict[str, float]:
    """Return the page's size, and the time until a browser shows its table of classes, if a browser is available."""
    page = folder / "run" / "report" / "index.html"
    found = {"page_mib": size_mib(page), "report_mib": size_mib(page.parent)}
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = browser.new_page()
        faults: list[str] = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        start = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_function("!document.querySelector('[role=status]')?.textContent.includes('unpacking')")
        found["page_open_s"] = time.perf_counter() - start
        browser.close()
    if faults:
        raise SystemExit(f"{page}: {faults[0]}")
    return found


def drawing_figures(classes: int, images: int) -> dict[str, float]:
    """Return the CPU time per image for drawing and packing, milliseconds."""
    config, packing = SyntheticConfig(classes=classes, images=images, image_size=SIZE), PackingConfig()
    rows = plan_images(config, 0).slice(0, DRAWN).to_pylist()
    start = time.process_time()
    files = [render_image(row, config, 0) for row in rows]
    middle = time.process_time()
    for data in files:
        pack_image(data, packing)
    cpu_s = middle - start, time.process_time() - middle
    return {"draw_ms": cpu_s[0] / len(rows) * 1000, "pack_ms": cpu_s[1] / len(rows) * 1000}


def table(found: dict[str, float]) -> Iterator[str]:
    """Yield the lines of the stages' table."""
    rest = found["train_s"] - found["step_s"] - found["validation_s"]
    details = {
        "prepare": f"{found['train_images']:,} / {found['val_images']:,} / {found['test_images']:,} images drawn and packed, "
        f"{found['dataset_mib']:,.0f} MiB; CPU time per image: {found['draw_ms']:.1f} ms to draw, "
        f"{found['pack_ms']:.2f} ms to pack",
        "train": f"{found['images_per_s']:,.0f} images/s: steps {found['step_s']:,.0f} s, validation "
        f"{found['validation_s']:,.0f} s, start and checkpoint ({found['checkpoint_mib']:,.0f} MiB) {rest:,.0f} s",
        "evaluate": f"{found['test_rows']:,} images of {found['test_classes_present']:,} classes, all metrics with intervals; "
        f"{found['confusion_cells']:,} cells of the confusion matrix; files {found['evaluation_mib']:.1f} MiB",
        "report": f"page {found['page_mib']:.1f} MiB"
        + (f", open in {found['page_open_s']:.1f} s" if "page_open_s" in found else "")
        + f"; with its tables {found['report_mib']:.1f} MiB",
    }
    yield "| stage | seconds | CPU s | peak MiB | details |"
    yield "|---|---|---|---|---|"
    for verb, detail in details.items():
        seconds, cpu, peak = (found[f"{verb}_{key}"] for key in ("s", "cpu_s", "peak_mib"))
        yield f"| {verb} | {seconds:,.0f} | {cpu:,.0f} | {peak:,.0f} | {detail} |"
    cells = found["classes"] ** 2
    logits = found["test_rows"] * found["classes"] * 4 / 2**30
    yield (
        f"dense: a confusion matrix of {cells:.2g} cells, {cells * COUNT_BYTES / 2**30:,.0f} GiB; "
        f"logits of the test split {logits:,.1f} GiB, of a batch {BATCH * found['classes'] * 4 / 2**20:,.0f} MiB"
    )


def measure(folder: Path, classes: int, images: int) -> dict[str, float]:
    """Run the stages without figures in the folder and return all figures."""
    file = folder / "figures.json"
    found: dict[str, float] = json.loads(file.read_text()) if file.exists() else {"images": images}
    if found["images"] != images or found.get("classes", classes) != classes:
        raise SystemExit(f"{folder}: contains figures for another number of classes or images; specify another folder")
    for verb, arguments in commands(folder, classes, images):
        if f"{verb}_s" in found:
            continue
        found |= run(verb, arguments)
        if verb == "prepare":
            found |= dataset_figures(folder) | drawing_figures(classes, images)
        elif verb == "train":
            found |= training_figures(folder, found["train_images"])
        else:
            found |= evaluation_figures(folder) if verb == "evaluate" else report_figures(folder)
        file.write_text(json.dumps(found))
    return found


def main() -> None:
    """Print the table, and save the figures of the full label set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--images", type=int, help="number of images [default: 240,000 / 203,094 per class]")
    parser.add_argument("--folder", type=Path, help="folder to keep data and figures [default: a temporary folder]")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "labels.json")
    arguments = parser.parse_args()
    images = arguments.images or round(arguments.classes * IMAGES / CLASSES)
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(folder, arguments.classes, images)
    print("\n".join(table(found)))
    line = json.dumps({key: round(value, 4) for key, value in found.items()})
    if arguments.classes == CLASSES:
        arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
