"""The page in a real Chromium: no errors, no network, tables sort, everything by keyboard, narrow, dark, printed, large."""

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
from tests.reporting.folders import grid_study, names_of, whole_study, write_evaluation, write_run

LIMIT = 5_000_000
"""Bytes of a page at most."""
ALL_OF_GLDV2 = 203_094
CONTRAST = """() => {
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("h1, h2, h3, h4, p, dt, dd, th, td, a, button, summary, pre, figcaption, label, span")) {
    if (!element.textContent.trim() || !element.checkVisibility()) continue;
    const [one, two] = [numbers(getComputedStyle(element).color).slice(0, 3), ground(element)].map(luminance);
    const contrast = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (contrast < 4.5) low.push([element.tagName, element.textContent.slice(0, 30), contrast]);
  }
  return low;
}"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study of 20 trials and 100 classes with everything that a page can show."""
    study = whole_study(tmp_path_factory.mktemp("whole"))
    return Path(write_report(locate(study), locate(study / "report"), price_per_hour=12.5).path)


def column(page, table: str, place: int) -> list[str]:
    return page.locator(f"{table} tbody tr td:nth-child({place})").all_inner_texts()


def test_the_page_is_whole_small_and_refuses_everything_from_outside(whole, opened):
    assert whole.stat().st_size < LIMIT
    page = opened(whole)
    assert page.locator("h1").inner_text() == "Study landmarks"
    for part in (
        "Results",
        "The search",
        "Where it errs",
        "Classes",
        "Data",
        "How it was made",
        "Files and next steps",
    ):
        assert page.locator(f"h2:text-is('{part}')").count() == 1
    policy = page.locator("meta[http-equiv='Content-Security-Policy']").get_attribute("content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "http" not in policy
    # The class that is named like markup is text, and a picture of it is alive.
    assert page.locator("main b").count() == 0
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert "secret" not in page.content()
    assert "At 12.50 per hour, this cost 53.59" in page.locator("main").inner_text()


def test_every_picture_has_an_alternative_and_headings_are_in_order(whole, opened):
    page = opened(whole)
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
    named = "(all) => all.filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length)).length"
    assert page.locator("button, input, select").evaluate_all(named) == 0


def test_tables_sort_by_mouse_and_by_keyboard(whole, opened):
    page = opened(whole)
    table = "section[aria-labelledby=model-summary] table"
    header = page.locator(f"{table} th", has_text="test top-1").first
    place = header.evaluate("(one) => one.cellIndex + 1")
    header.locator("button").click()
    values = [float(text.rstrip("%")) for text in column(page, table, place)]
    assert header.get_attribute("aria-sort") == "descending" and values == sorted(values, reverse=True)
    page.keyboard.press("Enter")  # the focus is on the button still
    values = [float(text.rstrip("%")) for text in column(page, table, place)]
    assert header.get_attribute("aria-sort") == "ascending" and values == sorted(values)
    page.locator(f"{table} th button").first.focus()
    page.keyboard.press("Space")
    names = column(page, table, 1)
    assert header.get_attribute("aria-sort") == "none"
    # Words by the alphabet, the numbers in them by size.
    order = ["(majority baseline)", "(random baseline)", "efficientnet_b0", "inception_v3", "resnet50", "resnet101"]
    assert list(dict.fromkeys(names)) == order
    # What is missing comes last in either direction: the baselines have no value on the validation split.
    validation = page.locator(f"{table} th", has_text="validation top-1")
    for _ in range(2):
        validation.locator("button").click()
        assert [text == "" for text in column(page, table, 4)][-2:] == [True, True]


def test_the_keyboard_reaches_everything(whole, opened):
    page = opened(whole)
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


def test_the_confusion_matrix_by_keyboard(whole, opened):
    page = opened(whole)
    canvas, told = page.locator("canvas"), page.locator(".cell")
    before = canvas.evaluate("(one) => one.toDataURL()")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert re.search(r" taken for .*: \d+ of \d+ \(\d+\.\d%\)\.$", told.inner_text())
    page.keyboard.press("ArrowDown")
    assert " right " in told.inner_text()
    select = page.locator(".widget[data-widget=matrix] select")
    chosen = told.inner_text()
    select.select_option("recall, worst first")
    assert told.inner_text() == chosen  # the cell that was looked at is still chosen
    page.locator("canvas").focus()
    page.keyboard.press("Home")
    assert "Castle of Elmswell: " in told.inner_text()  # the class of the lowest recall
    for _ in range(8):
        page.keyboard.press("+")
    zoomed = canvas.evaluate("(one) => one.toDataURL()")
    assert zoomed != before
    page.keyboard.press("0")
    assert canvas.evaluate("(one) => one.toDataURL()") != zoomed
    page.locator("button[aria-label='show mistakes only']").click()
    assert page.locator("button[aria-label='show mistakes only']").get_attribute("aria-pressed") == "true"
    page.mouse.move(*[canvas.bounding_box()[key] + 200 for key in ("x", "y")])
    assert told.inner_text() != ""


def test_two_runs_side_by_side(whole, opened):
    page = opened(whole)
    part = page.locator(".widget[data-widget=compare]")
    rows = dict(
        part.locator("tbody tr").evaluate_all("(rows) => rows.map((row) => [row.cells[0].innerText, row.className])")
    )
    # The two shown first differ in their epochs, as "10 vs 30 epochs" do.
    assert (rows["epochs"], rows["model.backbone"], rows["optimizer.name"]) == ("differs", "", "")
    assert part.locator("svg").count() == 4
    part.locator("select").first.select_option("5")
    part.locator("select").last.select_option("5")
    assert part.locator("tr.differs").count() == 0


def test_classes_are_searched_and_sorted(whole, opened):
    page = opened(whole)
    part = page.locator(".widget[data-widget=classes]")
    assert "100 of 100 classes, 100 shown" in part.inner_text()
    part.locator("input").fill("minaret of birk")
    assert part.locator("tbody tr").count() == 1
    part.locator("input").fill("")
    part.locator("th button", has_text="recall").click()
    recalls = [float(text.rstrip("%")) for text in part.locator("tbody tr td:nth-child(5)").all_inner_texts() if text]
    assert recalls == sorted(recalls, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["study", "run"])
def test_axe_core_finds_no_violation(whole, opened, tmp_path, kind, scheme):
    file = whole
    if kind == "run":
        run = write_run(tmp_path / "run")
        write_evaluation(run / "evaluation-test", 6, 100)
        file = Path(write_report(locate(run), locate(run / "report")).path)
    page = opened(file, scheme=scheme)
    found = Axe().run(page)
    assert found.response["testEngine"]["name"] == "axe-core" and len(found.response["passes"]) > 15
    assert found.violations_count == 0, found.generate_snapshot()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_suffices_and_charts_are_drawn_in_both_themes(whole, opened, scheme):
    page = opened(whole, scheme=scheme)
    assert page.evaluate(CONTRAST) == []
    ground = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))[-1, 1]
    assert (ground < 60) == (scheme == "dark")
    chart = page.locator("section[aria-labelledby=learning-curves] svg")
    chart.scroll_into_view_if_needed()
    pixels = np.asarray(Image.open(io.BytesIO(chart.screenshot())).convert("L")).astype(int)
    drawn = np.abs(pixels - int(ground)) > 60
    assert 0.01 < drawn.mean() < 0.3


def test_the_theme_can_be_chosen(whole, opened):
    page = opened(whole, scheme="light")
    button = page.locator("#theme")
    shown = []
    for _ in range(3):
        button.click()
        shown.append((button.inner_text(), page.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert [text for text, _ in shown] == ["Theme: light", "Theme: dark", "Theme: system"]
    assert shown[0][1] == shown[2][1] != shown[1][1]


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_screen_scrolls_sideways(whole, opened, width):
    page = opened(whole, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width <= 360:
        assert page.locator("nav details").get_attribute("open") is None
        box = page.locator("#theme").bounding_box()
        assert box["x"] + box["width"] <= width


def test_it_prints(whole, opened, tmp_path):
    page = opened(whole, width=718, scheme="dark")  # the width of A4 between its margins
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert page.locator("nav").is_hidden() and page.locator("#theme").is_hidden()
    cut = (
        "(all) => all.filter((one) => one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1)"
    )
    assert page.locator(".scroll, .chart, pre").evaluate_all(f"(all) => ({cut})(all).map((one) => one.ariaLabel)") == []
    page.emulate_media(media="screen")
    pdf = page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert pdf[:5] == b"%PDF-" and 4 < len(re.findall(rb"/Type /Page\b", pdf)) < 40


def test_it_is_read_without_scripts(whole, opened):
    page = opened(whole, scripts=False)
    assert page.locator("noscript").count() == 1
    assert page.locator("section[aria-labelledby=model-summary] tbody tr").count() == 21
    assert page.locator("#theme").is_hidden()


def test_all_classes_of_gldv2(tmp_path, opened):
    study = grid_study(tmp_path / "study", 4)
    write_evaluation(study / "evaluation-test", ALL_OF_GLDV2, 117_577, photographs=False)
    file = Path(write_report(locate(study), locate(study / "report")).path)
    assert file.stat().st_size < LIMIT
    page = opened(file)
    part = page.locator(".widget[data-widget=classes]")
    part.locator("text=/of [\\d,]+ classes, 100 shown/").wait_for()
    wanted = names_of(ALL_OF_GLDV2)[40]
    part.locator("input").fill(wanted)
    assert part.locator("tbody tr td:nth-child(2)").first.inner_text() == wanted
    assert "The 200 of 203,094 classes with the most errors" in page.locator("main").inner_text()
    assert page.locator("canvas").is_visible()


def test_a_single_run_and_an_old_evaluation(tmp_path, opened):
    run = write_run(tmp_path / "run")
    write_evaluation(run / "evaluation-val", 6, 100, old=True)
    page = opened(Path(write_report(locate(run), locate(run / "report")).path))
    titles = page.locator("h3").all_inner_texts()
    assert "Best model on the val split" in titles and "Confusion matrix" in titles
    assert "Calibration" not in titles and "Confident mistakes" not in titles
    assert page.locator("main svg").count() == 3


def test_the_browsers_script_says_nothing_where_a_browser_is(browser):
    script = Path(__file__).parents[2] / "scripts" / "browser.sh"
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
