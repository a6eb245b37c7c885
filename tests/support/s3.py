"""An S3 server of the tests' own: moto over real HTTP on a free port, stopped at the end."""

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.running import free_port

START_SECONDS = 60.0
SECRET = "not-to-be-seen-in-messages"


@dataclass
class Server:
    """A running server that takes any credentials."""

    url: str

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"bucket-{secrets.token_hex(6)}"
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return name

    def environment(self) -> dict[str, str]:
        """The variables that lead a client to it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def server(log: Path) -> Iterator[Server]:
    """A server until the block ends; what it says goes into a file."""
    found = Server(f"http://127.0.0.1:{free_port()}")
    host, port = found.url.removeprefix("http://").split(":")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", host, "-p", port], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(found.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The S3 server did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield found
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code < 500
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One S3 server for all tests of a file that imports this."""
    with server(tmp_path_factory.mktemp("s3") / "log") as found:
        yield found


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The location of an empty prefix, with the environment that leads there."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket()}/some/prefix"
