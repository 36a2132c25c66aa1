"""Tests the documentation site: a strict build, no requests to other servers, no accessibility violations."""

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reporting.conftest import browser  # noqa: F401  (a fixture)

if importlib.util.find_spec("material") is None:
    pytest.skip("no mkdocs-material; pip install '.[docs]'", allow_module_level=True)
from axe_playwright_python.sync_playwright import Axe

ROOT = Path(__file__).parent.parent.parent
PAGES = ("index.html", "how-to/kubernetes.html", "reference/exit-codes-and-environment.html")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, which is built once. A warning fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The address of a server for the site: browsers do not start the search worker of a page from a file."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_page_is_built_and_none_loads_from_another_server(site: Path) -> None:
    sources = {file.relative_to(ROOT / "docs").with_suffix(".html") for file in (ROOT / "docs").rglob("*.md")}
    built = {file.relative_to(site) for file in site.rglob("*.html")}
    assert built == sources | {Path("404.html")}
    loaded = re.compile(r"<(?:script|img|iframe)[^>]* src=\"https?:|<link[^>]* rel=\"stylesheet\"[^>]* href=\"https?:")
    assert [str(page) for page in built if loaded.search((site / page).read_text())] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_core_finds_no_violation(browser, address: str, scheme: str) -> None:  # noqa: F811
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    try:
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        for name in PAGES:
            page.goto(f"{address}/{name}")
            found = Axe().run(page)
            assert found.response["testEngine"]["name"] == "axe-core" and len(found.response["passes"]) > 15
            assert found.violations_count == 0, f"{name}: {found.generate_snapshot()}"
    finally:
        context.close()
    assert [url for url in requests if not url.startswith((address, "data:"))] == []


def test_the_search_finds_an_option(browser, address: str) -> None:  # noqa: F811
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"{address}/index.html")
        page.locator("input[name=query]").first.fill("shuffle_row_groups")
        page.wait_for_selector(".md-search-result__item a", timeout=20_000)
        hits = page.locator(".md-search-result__item a").all()
        assert any("/reference/" in (hit.get_attribute("href") or "") for hit in hits)
    finally:
        context.close()
