"""The page in a real Chromium: no errors, no network, sorting, keyboard, narrow screens, dark theme, print, size."""

import io
import itertools
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from landmark.reporting.report import write_report
from landmark.storage import locate
from tests.reporting.folders import complete_study, grid_study, names_of, write_evaluation, write_run

MAX_BYTES = 5_000_000
"""Maximum size of a page, bytes."""
GLDV2_CLASSES = 203_094
CONTRAST = """() => {
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const background = (element) => {
    for (let ancestor = element; ancestor; ancestor = ancestor.parentElement) {
      const color = numbers(getComputedStyle(ancestor).backgroundColor);
      if (color.length === 3 || color[3] > 0.5) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const low = [];
  const selector = "h1, h2, h3, h4, p, dt, dd, th, td, a, button, summary, pre, figcaption, label, span";
  for (const element of document.querySelectorAll(selector)) {
    if (!element.textContent.trim() || !element.checkVisibility()) continue;
    const [one, two] = [numbers(getComputedStyle(element).color).slice(0, 3), background(element)].map(luminance);
    const contrast = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (contrast < 4.5) low.push([element.tagName, element.textContent.slice(0, 30), contrast]);
  }
  return low;
}"""


@pytest.fixture(scope="module")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study with 20 trials and 100 classes, with all content that a page supports."""
    study = complete_study(tmp_path_factory.mktemp("study"))
    return Path(write_report(locate(study), locate(study / "report"), price_per_hour=12.5).path)


def column(page, table: str, index: int) -> list[str]:
    return page.locator(f"{table} tbody tr td:nth-child({index})").all_inner_texts()


def test_page_is_complete_small_and_self_contained(report_page, open_page):
    assert report_page.stat().st_size < MAX_BYTES
    page = open_page(report_page)
    assert page.locator("h1").inner_text() == "Study landmarks"
    for title in (
        "Results",
        "Hyperparameter search",
        "Errors",
        "Classes",
        "Data",
        "Provenance",
        "Files and next steps",
    ):
        assert page.locator(f"h2:text-is('{title}')").count() == 1
    policy = page.locator("meta[http-equiv='Content-Security-Policy']").get_attribute("content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "http" not in policy
    # A class name with markup is shown as text, and all images load.
    assert page.locator("main b").count() == 0
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert "secret" not in page.content()
    assert "At 12.50 per hour, this cost 53.59" in page.locator("main").inner_text()


def test_images_have_alt_texts_and_headings_are_in_order(report_page, open_page):
    page = open_page(report_page)
    images = page.locator("img")
    assert images.count() > 150
    assert all(len(alt) > 10 for alt in images.evaluate_all("(all) => all.map((image) => image.alt)"))
    charts = page.locator("main svg")
    assert charts.count() >= 11
    labels = charts.evaluate_all("(all) => all.map((one) => one.getAttribute('aria-label') || '')")
    assert all(len(label) > 30 for label in labels), labels
    assert len(page.locator("canvas").get_attribute("aria-label")) > 40
    levels = page.locator("h1, h2, h3, h4").evaluate_all("(all) => all.map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    unnamed = "(all) => all.filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length)).length"
    assert page.locator("button, input, select").evaluate_all(unnamed) == 0


def test_tables_sort_by_mouse_and_keyboard(report_page, open_page):
    page = open_page(report_page)
    table = "section[aria-labelledby=model-summary] table"
    header = page.locator(f"{table} th", has_text="test top-1").first
    index = header.evaluate("(one) => one.cellIndex + 1")
    header.locator("button").click()
    values = [float(text.rstrip("%")) for text in column(page, table, index)]
    assert header.get_attribute("aria-sort") == "descending" and values == sorted(values, reverse=True)
    page.keyboard.press("Enter")  # the button still has the focus
    values = [float(text.rstrip("%")) for text in column(page, table, index)]
    assert header.get_attribute("aria-sort") == "ascending" and values == sorted(values)
    page.locator(f"{table} th button").first.focus()
    page.keyboard.press("Space")
    names = column(page, table, 1)
    assert header.get_attribute("aria-sort") == "none"
    # Text is sorted alphabetically, numbers within it by value.
    order = ["(majority baseline)", "(random baseline)", "efficientnet_b0", "inception_v3", "resnet50", "resnet101"]
    assert list(dict.fromkeys(names)) == order
    # Empty cells are last in both directions: the baselines have no value on the validation split.
    validation = page.locator(f"{table} th", has_text="validation top-1")
    for _ in range(2):
        validation.locator("button").click()
        assert [text == "" for text in column(page, table, 4)][-2:] == [True, True]


def test_all_controls_are_reachable_by_keyboard(report_page, open_page):
    page = open_page(report_page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    seen = set()
    for _ in range(160):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "document.activeElement.tagName + '.' + (document.activeElement.getAttribute('aria-label') || '')"
            )
        )
    assert {"CANVAS", "SELECT", "BUTTON", "DIV"} <= {name.split(".")[0] for name in seen}


def test_confusion_matrix_by_keyboard(report_page, open_page):
    page = open_page(report_page)
    canvas, messages = page.locator("canvas"), page.locator(".cell")
    before = canvas.evaluate("(one) => one.toDataURL()")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert re.search(r" predicted as .*: \d+ of \d+ \(\d+\.\d%\)\.$", messages.inner_text())
    page.keyboard.press("ArrowDown")
    assert " correct " in messages.inner_text()
    select = page.locator(".widget[data-widget=matrix] select")
    selected = messages.inner_text()
    select.select_option("recall, lowest first")
    assert messages.inner_text() == selected  # the same cell is still selected
    page.locator("canvas").focus()
    page.keyboard.press("Home")
    assert "Castle of Elmswell: " in messages.inner_text()  # the class with the lowest recall
    for _ in range(8):
        page.keyboard.press("+")
    zoomed = canvas.evaluate("(one) => one.toDataURL()")
    assert zoomed != before
    page.keyboard.press("0")
    assert canvas.evaluate("(one) => one.toDataURL()") != zoomed
    page.locator("button[aria-label='show errors only']").click()
    assert page.locator("button[aria-label='show errors only']").get_attribute("aria-pressed") == "true"
    page.mouse.move(*[canvas.bounding_box()[key] + 200 for key in ("x", "y")])
    assert messages.inner_text() != ""


def test_trial_comparison(report_page, open_page):
    page = open_page(report_page)
    widget = page.locator(".widget[data-widget=compare]")
    rows = dict(
        widget.locator("tbody tr").evaluate_all("(rows) => rows.map((row) => [row.cells[0].innerText, row.className])")
    )
    # The two trials that are shown first differ only in their number of epochs.
    assert (rows["epochs"], rows["model.backbone"], rows["optimizer.name"]) == ("differs", "", "")
    assert widget.locator("svg").count() == 4
    widget.locator("select").first.select_option("5")
    widget.locator("select").last.select_option("5")
    assert widget.locator("tr.differs").count() == 0


def test_class_table_can_be_searched_and_sorted(report_page, open_page):
    page = open_page(report_page)
    widget = page.locator(".widget[data-widget=classes]")
    assert "100 of 100 classes, 100 shown" in widget.inner_text()
    widget.locator("input").fill("minaret of birk")
    assert widget.locator("tbody tr").count() == 1
    widget.locator("input").fill("")
    widget.locator("th button", has_text="recall").click()
    recalls = [float(text.rstrip("%")) for text in widget.locator("tbody tr td:nth-child(5)").all_inner_texts() if text]
    assert recalls == sorted(recalls, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["study", "run"])
def test_axe_core_finds_no_violations(report_page, open_page, tmp_path, kind, scheme):
    file = report_page
    if kind == "run":
        run = write_run(tmp_path / "run")
        write_evaluation(run / "evaluation-test", 6, 100)
        file = Path(write_report(locate(run), locate(run / "report")).path)
    page = open_page(file, scheme=scheme)
    found = Axe().run(page)
    assert found.response["testEngine"]["name"] == "axe-core" and len(found.response["passes"]) > 15
    assert found.violations_count == 0, found.generate_snapshot()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_charts_in_both_themes(report_page, open_page, scheme):
    page = open_page(report_page, scheme=scheme)
    assert page.evaluate(CONTRAST) == []
    background = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))[-1, 1]
    assert (background < 60) == (scheme == "dark")
    chart = page.locator("section[aria-labelledby=learning-curves] svg")
    chart.scroll_into_view_if_needed()
    pixels = np.asarray(Image.open(io.BytesIO(chart.screenshot())).convert("L")).astype(int)
    is_ink = np.abs(pixels - int(background)) > 60
    assert 0.01 < is_ink.mean() < 0.3


def test_theme_can_be_selected(report_page, open_page):
    page = open_page(report_page, scheme="light")
    button = page.locator("#theme")
    shown = []
    for _ in range(3):
        button.click()
        shown.append((button.inner_text(), page.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert [text for text, _ in shown] == ["Theme: light", "Theme: dark", "Theme: system"]
    assert shown[0][1] == shown[2][1] != shown[1][1]


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_page_does_not_scroll_horizontally(report_page, open_page, width):
    page = open_page(report_page, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width <= 360:
        assert page.locator("nav details").get_attribute("open") is None
        box = page.locator("#theme").bounding_box()
        assert box["x"] + box["width"] <= width


def test_page_can_be_printed(report_page, open_page, tmp_path):
    page = open_page(report_page, width=718, scheme="dark")  # the width of A4 without its margins
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert page.locator("nav").is_hidden() and page.locator("#theme").is_hidden()
    clipped = (
        "(all) => all.filter((one) => one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1)"
    )
    assert (
        page.locator(".scroll, .chart, pre").evaluate_all(f"(all) => ({clipped})(all).map((one) => one.ariaLabel)")
        == []
    )
    page.emulate_media(media="screen")
    pdf = page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert pdf[:5] == b"%PDF-" and 4 < len(re.findall(rb"/Type /Page\b", pdf)) < 40


def test_page_is_readable_without_scripts(report_page, open_page):
    page = open_page(report_page, scripts=False)
    assert page.locator("noscript").count() == 1
    assert page.locator("section[aria-labelledby=model-summary] tbody tr").count() == 21
    assert page.locator("#theme").is_hidden()


def test_page_with_all_classes_of_gldv2(tmp_path, open_page):
    study = grid_study(tmp_path / "study", 4)
    write_evaluation(study / "evaluation-test", GLDV2_CLASSES, 117_577, photographs=False)
    file = Path(write_report(locate(study), locate(study / "report")).path)
    assert file.stat().st_size < MAX_BYTES
    page = open_page(file)
    widget = page.locator(".widget[data-widget=classes]")
    widget.locator("text=/of [\\d,]+ classes, 100 shown/").wait_for()
    name = names_of(GLDV2_CLASSES)[40]
    widget.locator("input").fill(name)
    assert widget.locator("tbody tr td:nth-child(2)").first.inner_text() == name
    assert "The 200 of 203,094 classes with the most errors" in page.locator("main").inner_text()
    assert page.locator("canvas").is_visible()


def test_page_of_a_run_with_an_evaluation_of_an_earlier_version(tmp_path, open_page):
    run = write_run(tmp_path / "run")
    write_evaluation(run / "evaluation-val", 6, 100, old=True)
    page = open_page(Path(write_report(locate(run), locate(run / "report")).path))
    titles = page.locator("h3").all_inner_texts()
    assert "Best model on the val split" in titles and "Confusion matrix" in titles
    assert "Calibration" not in titles and "Most confident errors" not in titles
    assert page.locator("main svg").count() == 3


def test_browser_script_prints_nothing_if_a_browser_is_installed(browser):
    script = Path(__file__).parents[2] / "scripts" / "browser.sh"
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
