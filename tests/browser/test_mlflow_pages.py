"""What a reviewer sees in MLflow, in a real browser: a rejected version, a promoted one, the report."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.support import needs
from tests.support.demo_run import demo_run
from tests.support.running import free_port, wait_for

pytestmark = pytest.mark.usefixtures("demo")

# MLflow's pages are large, and the machine may be busy.
PATIENCE_MS = 60_000
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """MLflow's pages over what the demo left behind, served as `holdfast up` serves them."""
    port = free_port()
    environment = {**os.environ, "HOLDFAST_HOME": str(demo_run().home), "HOLDFAST_MLFLOW_PORT": str(port)}
    command = [sys.executable, "-m", "service.cli", "serve", "mlflow"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            with httpx.Client(timeout=2.0) as http:
                wait_for(lambda: healthy(http, url), seconds=120, hint="answer of MLflow")
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def healthy(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    chromium = needs.program("chromium", package="chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(PATIENCE_MS)
        yield opened
        browser.close()


def test_a_rejected_version_says_why(pages: str, page: Page) -> None:
    page.goto(f"{pages}/#/models/digits-naive/versions/2")
    expect(page.get_by_text("lost between").first).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text("holdfast.experience_digest")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text("retention", exact=True).first).to_be_visible(timeout=PATIENCE_MS)
    assert page.get_by_role("status", name="champion").count() == 0


def test_the_champion_says_that_nothing_was_lost_and_carries_its_alias(pages: str, page: Page) -> None:
    page.goto(f"{pages}/#/models/digits-replay/versions/5")
    expect(page.get_by_text("all 4 past holdouts kept within their margins, 5 to").first).to_be_visible(
        timeout=PATIENCE_MS
    )
    expect(page.get_by_role("status", name="champion")).to_be_visible(timeout=PATIENCE_MS)


def test_the_report_reads_alone(page: Page) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    report = Path(demo_run().document["report"])
    page.goto(report.as_uri())
    expect(page.get_by_role("heading", name="Rejected: digits-naive")).to_be_visible()
    expect(page.get_by_role("heading", name="What the gate found")).to_be_visible()
    expect(page.get_by_role("cell", name="fail", exact=True)).to_be_visible()
    assert requested == [report.as_uri()], "the report must need no other file"
