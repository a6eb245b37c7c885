"""The documentation builds as a site without a warning, and its pages ask no other host for anything."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.support import needs
from tests.support.doc_pages import DOCS, SITE_PAGES
from tests.support.repository import ROOT

PATIENCE_MS = 150_000  # The machine may be busy.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
LOADS = re.compile(
    r"""<(?:script|img|iframe|link(?![^>]*rel="?canonical))[^>]*?(?:src|href)=["']?(https?:)?//""", flags=re.I
)
"""Elements that a browser fetches as it opens a page, from another host."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    config = DOCS / "site" / "mkdocs.yml"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", folder],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """A request is no news."""

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_every_page_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for path in SITE_PAGES:
        built = site / path.relative_to(DOCS).with_suffix(".html")
        assert not LOADS.search(built.read_text()), built.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text()), sheet.name
    assert not (site / "site").exists()


def test_a_browser_asks_only_the_host_of_the_site(served: str) -> None:
    chromium = needs.program("chromium", package="chromium")
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index.html", "how-to/review-decision.html", "reference/gate.html"):
            page.goto(f"{served}/{name}")
        box = page.get_by_role("textbox", name="Search")
        box.click()
        # What is typed before the index is loaded is not searched for.
        expect(page.get_by_text("Type to start searching")).to_be_visible(timeout=PATIENCE_MS)
        box.press_sequentially("watermark")
        expect(page.locator(".md-search-result__item").first).to_be_visible(timeout=PATIENCE_MS)
        browser.close()
    assert asked
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(served).netloc}


def test_make_docs_and_make_check_build_the_site_strictly() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for verb in ("docs", "check"):
        recipe = re.findall(rf"^{verb}: .*\n((?:\t.*\n)+)", makefile, flags=re.M)[0]
        assert "mkdocs build --strict" in recipe
