"""Takes the screenshot of a report page for the docs: its top in the light theme, the confusion matrix in the dark one.

python -m tests.reporting.folders runs/report-example
landmark report runs/report-example/study --price-per-hour 12.5
python scripts/screenshot.py runs/report-example/study/report/index.html docs/images/report.png
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT, GAP = 1280, 1560, 20
PANES = (("light", "main"), ("dark", "#confusion-matrix"))


def main() -> None:
    """Take the screenshot and write it as a PNG with 256 colors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None or not arguments.page.is_file():
        parser.error(f"{arguments.page} or Chromium is missing; run `landmark report` and scripts/browser.sh first")
    panes = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for scheme, start in PANES:
            view = {"width": WIDTH, "height": HEIGHT}
            page = browser.new_page(viewport=view, color_scheme=scheme, reduced_motion="reduce")
            page.goto(arguments.page.resolve().as_uri())
            if start != "main":
                page.locator(start).evaluate("(element) => element.scrollIntoView()")
            page.wait_for_timeout(500)
            panes.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    joined = Image.new("RGB", (len(panes) * (WIDTH + GAP) - GAP, HEIGHT), "#8a949e")
    for index, pane in enumerate(panes):
        joined.paste(pane, (index * (WIDTH + GAP), 0))
    joined.quantize(256).save(arguments.output, optimize=True)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
