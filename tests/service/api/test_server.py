"""Connections whose requests do not arrive: each of them ends, at every route, and none floods the log."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPResponse

import pytest

from service.api.pace import Pace
from service.api.server import make_server
from service.settings import Settings
from tests.support.api_parts import Api, running_api
from tests.support.routes import ROUTES, UNSAFE_ROUTES
from tests.support.running import free_port, wait_for

PACE = Pace(head=1.0, pause=1.0, body=3.0)
PATIENCE = 30.0
"""Far more than the pace: what is still open then is open for ever."""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server of a quick pace, in a thread of its own."""
    found = free_port()
    server = make_server(Settings(home=tmp_path_factory.mktemp("server"), port=found), PACE)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, seconds=30, hint="start of the server")
    yield found
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def head(method: str, path: str, *fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


def answers(port: int, begun: Sequence[bytes]) -> list[str]:
    """What each of several connections gets until the server closes it, after it sent so much and no more."""
    opened = [socket.create_connection(("127.0.0.1", port)) for _ in begun]
    for connection, data in zip(opened, begun, strict=True):
        connection.sendall(data)
    found = []
    for connection in opened:
        with connection:
            connection.settimeout(PATIENCE)
            found.append(b"".join(iter(lambda: connection.recv(65536), b"")).decode())  # noqa: B023
    return found


def drips(port: int, begun: bytes) -> str:
    """What a sender gets that sends a byte again and again, until the server closes the connection."""
    received = b""
    deadline = time.monotonic() + PATIENCE
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(begun)
        connection.settimeout(0.2)
        while time.monotonic() < deadline:
            try:
                connection.sendall(b" ")
                more = connection.recv(65536)
            except TimeoutError:
                continue
            except (ConnectionError, BrokenPipeError):
                return received.decode()
            if not more:
                return received.decode()
            received += more
    raise AssertionError(f"still open after {PATIENCE} seconds: {received!r}")


def is_problem(answer: str, status: int, slug: str) -> bool:
    return (
        answer.startswith(f"HTTP/1.1 {status} ")
        and "application/problem+json" in answer
        and f"urn:holdfast:problem:{slug}" in answer
        and "connection: close" in answer.lower()
    )


def test_a_head_that_does_not_end_is_answered_and_closed(port: int) -> None:
    begun = [head(method, path)[:-2] for method, path in ROUTES]
    begun += [b"G", b"GET / HTTP/1.1\r\nX: " + b"y" * 5000]
    for answer in answers(port, begun):
        assert is_problem(answer, 408, "request-slow"), answer
    assert is_problem(drips(port, b"POST /v1/pipelines HTTP/1.1\r\nX:"), 408, "request-slow")


def test_a_connection_on_which_nothing_comes_is_closed(port: int) -> None:
    assert answers(port, [b"", b""]) == ["", ""]


@pytest.mark.parametrize(
    ("field", "part"), [("Content-Length: 20", b'{"a"'), ("Transfer-Encoding: chunked", b'14\r\n{"a"')]
)
def test_a_body_that_stops_is_answered_and_closed_at_every_route(port: int, field: str, part: bytes) -> None:
    asked = [head(method, path, field) + part for method, path in UNSAFE_ROUTES]
    for (_, path), answer in zip(UNSAFE_ROUTES, answers(port, asked), strict=True):
        assert is_problem(answer, 408, "request-slow"), (path, answer)
    # Of the others nobody reads the body: they answer at once, and wait for no more of it.
    safe = [(method, path) for method, path in ROUTES if (method, path) not in UNSAFE_ROUTES]
    for answer in answers(port, [head(method, path, field) + part for method, path in safe]):
        assert answer.startswith("HTTP/1.1 ")
        assert " 500 " not in answer.splitlines()[0]


def test_a_body_that_drips_is_ended_even_where_nobody_reads_it(port: int) -> None:
    for method, path in (("POST", "/v1/pipelines"), ("POST", "/v1/pipelines/here/records")):
        answer = drips(port, head(method, path, "Content-Length: 1000"))
        assert is_problem(answer, 408, "request-slow"), answer
    assert drips(port, head("GET", "/healthz", "Content-Length: 1000")).startswith("HTTP/1.1 200")
    assert drips(port, head("POST", "/nothing", "Content-Length: 1000")).startswith("HTTP/1.1 404")


def test_a_body_that_comes_in_time_is_taken(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(PATIENCE)
        for _ in range(2):
            connection.sendall(head("POST", "/v1/pipelines", "Content-Length: 4"))
            for piece in (b"[", b"1", b"]", b" "):
                time.sleep(0.3)
                connection.sendall(piece)
            # Head and body may come in pieces of their own.
            answer = HTTPResponse(connection)
            answer.begin()
            assert (answer.status, b"must be a JSON object" in answer.read()) == (422, True)


@pytest.mark.parametrize("size", ["ffffffffffffffff", "10000002", "f" * 20])
def test_a_chunk_beyond_the_limit_is_refused_when_it_is_announced(port: int, size: str) -> None:
    asked = [head(method, path, "Transfer-Encoding: chunked") for method, path in UNSAFE_ROUTES]
    got = answers(port, [each + f"{size}\r\n[".encode() for each in asked])
    for (_, path), answer in zip(UNSAFE_ROUTES, got, strict=True):
        assert is_problem(answer, 413, "body-too-large"), (path, answer)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("hang-up"), HOLDFAST_LOG_LEVEL="DEBUG") as running:
        yield running


def test_a_sender_that_hangs_up_is_one_line_at_debug(api: Api) -> None:
    for method, path in ROUTES:
        for begun in (head(method, path)[:20], head(method, path, "Content-Length: 20") + b"{"):
            with socket.create_connection((api.settings.host, api.settings.port)) as connection:
                connection.sendall(begun)
    wanted = {path.split("?")[0] for _, path in UNSAFE_ROUTES}
    lines = wait_for(lambda: hung_up(api, wanted), seconds=60, hint="line for each sender")
    # Files of the page are sent while it is seen whether anybody still listens.
    assert len(lines) == len(set(lines)) <= len(ROUTES)
    assert api.log.count("[debug    ] the sender hung up") == len(lines)
    for word in ("Traceback", "[error", "[warning"):
        assert word not in api.log


def hung_up(api: Api, wanted: set[str]) -> list[str] | None:
    """The lines about senders that hung up, once there is one for each of these paths."""
    lines = [line for line in api.log.splitlines() if "hung up" in line]
    paths = {word.removeprefix("path=") for line in lines for word in line.split() if "path=" in word}
    return [line.split("] ", 1)[1] for line in lines] if wanted <= paths else None
