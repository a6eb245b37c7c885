"""MLflow's pages as `holdfast up` serves them: on loopback, and for requests that name this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service.commands import mlflow_pages, up
from service.errors import SettingsError
from service.settings import Settings
from tests.support.running import free_port, listening, wait_for


def test_where_the_api_listens_is_not_where_mlflow_listens() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.9", "box.example"):
        settings = Settings(host=host)
        command = mlflow_pages.command(settings)
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert up.mlflow_url(settings) == "http://127.0.0.1:8401"
    opened = mlflow_pages.command(Settings(mlflow_host="0.0.0.0"))
    assert opened[opened.index("--host") + 1] == "0.0.0.0"


def test_no_pattern_takes_a_name_that_nobody_listed() -> None:
    listed = Settings(mlflow_host="::1", allowed_hosts="holdfast.example,*.lab.example")
    hosts = mlflow_pages.environment(listed)["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"localhost", "localhost:8401", "[::1]:8401", "holdfast.example"} <= set(hosts)
    assert [host for host in hosts if "*" in host] == ["*.lab.example", "*.lab.example:8401"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Iterator[tuple[str, int]]:
    """The URL of the pages and the process id of the role, which was told that the API listens everywhere."""
    port = free_port()
    own = {
        "HOLDFAST_HOME": str(tmp_path_factory.mktemp("pages")),
        "HOLDFAST_HOST": "0.0.0.0",
        "HOLDFAST_MLFLOW_PORT": str(port),
    }
    (Path(own["HOLDFAST_HOME"]) / "mlflow.db").write_bytes(mlflow_store.read_bytes())
    command = [sys.executable, "-m", "service.cli", "serve", "mlflow"]
    with subprocess.Popen(command, env={**os.environ, **own}, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(lambda: answers(url), seconds=120, hint="answer of MLflow")
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def test_every_socket_of_the_role_is_on_loopback(pages: tuple[str, int]) -> None:
    url, process = pages
    found = listening(psutil.Process(process))
    assert int(url.rsplit(":", 1)[1]) in {port for _, port in found}
    assert {address for address, _ in found} == {"127.0.0.1"}


@pytest.mark.parametrize("host", ["evil.example", "10.evil.example", "192.168.evil.example:8401", "0.0.0.0"])
def test_a_foreign_name_gets_no_page(pages: tuple[str, int], host: str) -> None:
    url, _ = pages
    assert httpx.get(url, timeout=60).is_success
    search = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert httpx.get(search, timeout=60).is_success
    assert httpx.get(search, headers={"Host": host}, timeout=60).status_code == 403


def test_an_address_of_ipv6_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        settings = Settings(home=tmp_path, host="::1", port=taken.getsockname()[1])
        with pytest.raises(SettingsError, match="HOLDFAST_PORT"):
            up.run(settings, prepare=lambda: None, announce=print)
