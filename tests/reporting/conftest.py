"""One headless Chromium for all tests of the page, and pages that note what went wrong on them."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install '.[test]'")

Opened = Callable[..., "playwright.Page"]


# Not for the session: playwright keeps an event loop running in this thread, which other tests would meet.
@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    """A headless Chromium, the machine's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        reason = "no Chromium; run scripts/browser.sh"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with playwright.sync_playwright() as driver:
        # Root may not use the sandbox; the page under test is our own.
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: "playwright.Browser") -> Iterator[Opened]:
    """Opens a file without any network; at the test's end there was no error in the console, and no request went out."""
    contexts, faults, requests = [], [], []

    def open_file(file: Path, width: int = 1280, scheme: str = "light", scripts: bool = True) -> "playwright.Page":
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, java_script_enabled=scripts
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        if scripts:
            page.wait_for_function("!document.querySelector('[role=status]')?.textContent.includes('unpacking')")
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not faults
    assert [url[:80] for url in requests if not url.startswith(("file:", "data:"))] == []
