"""Fixtures for browser tests: a headless Chromium, and pages that record errors and requests."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install '.[test]'")

OpenPage = Callable[..., "playwright.Page"]


# Not session-scoped: playwright keeps an event loop running in this thread, which breaks other tests.
@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    """A headless Chromium that is installed on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        reason = "no Chromium; run scripts/browser.sh"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with playwright.sync_playwright() as driver:
        # Root cannot use the sandbox. The page under test is trusted.
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: "playwright.Browser") -> Iterator[OpenPage]:
    """Opens a file without a network. At the end of the test, fails on console messages, errors and requests."""
    contexts, errors, requests = [], [], []

    def open_file(file: Path, width: int = 1280, scheme: str = "light", scripts: bool = True) -> "playwright.Page":
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, java_script_enabled=scripts
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        if scripts:
            page.wait_for_function("!document.querySelector('[role=status]')?.textContent.includes('loading')")
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not errors
    assert [url[:80] for url in requests if not url.startswith(("file:", "data:"))] == []
