"""What a foreign page in a browser on this machine may do at each route of the API: nothing."""

import asyncio
import socket
from collections.abc import Iterator

import httpx
import psutil
import pytest
from starlette.responses import PlainTextResponse

from service.api.origins import OwnCallers, OwnHosts
from service.settings import Settings
from tests.support.api_parts import Api, declare, running_api, unchanged
from tests.support.routes import ROUTES, UNSAFE_ROUTES
from tests.support.running import listening

LISTED = "holdfast.example,*.lab.example"
PAGE = "http://evil.example"
FOREIGN = [
    {"Origin": PAGE},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "file://"},
    {"Origin": "http://localhost"},
    {"Origin": "http://notholdfast.example"},
    {"Origin": "http://evil-lab.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-origin", "Origin": PAGE},
    {"Sec-Fetch-Site": "Cross-Site"},
]
HOSTS = [
    "evil.example",
    "evil.example:8400",
    "localhost.evil.example",
    "lab.example",
    "10.0.0.1",
    "[fe80::1]",
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("origins"), HOLDFAST_ALLOWED_HOSTS=LISTED) as running:
        declare(running, "here")
        yield running


def test_every_method_that_changes_something_is_post_and_no_route_is_a_websocket() -> None:
    assert {method for method, _ in UNSAFE_ROUTES} == {"POST"}
    assert len(UNSAFE_ROUTES) > 15


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_page_of_another_site_changes_nothing_on_any_route(api: Api, headers: dict[str, str]) -> None:
    with unchanged(api):
        for method, path in [*UNSAFE_ROUTES, ("DELETE", "/v1/pipelines/here"), ("POST", "/nothing")]:
            # Without a body no browser asks first, whatever it is that the route would do.
            answer = api.http.request(method, path, headers=headers)
            document = api.refuses(answer, 403, "origin-foreign")
            assert "HOLDFAST_ALLOWED_HOSTS" in document["fix"], path
            with_body = api.http.request(method, path, json={"by": "Ada"}, headers=headers)
            api.refuses(with_body, 403, "origin-foreign")


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_is_not_the_services_is_answered_on_no_route(api: Api, host: str) -> None:
    with unchanged(api):
        for method, path in [*ROUTES, ("OPTIONS", "/v1/pipelines"), ("GET", "/nothing")]:
            answer = api.http.request(method, path, headers={"Host": host})
            if method == "HEAD":
                assert answer.status_code == 421
                continue
            document = api.refuses(answer, 421, "host-unknown")
            assert "HOLDFAST_ALLOWED_HOSTS" in document["fix"], path


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "{url}"},
        {"Host": "localhost:{port}", "Origin": "http://localhost:{port}"},
        {"Host": "LOCALHOST", "Origin": "http://localhost"},
        {"Host": "127.9.9.9:1"},
        {"Host": "[::1]:{port}", "Origin": "http://[::1]:{port}"},
        {"Host": "holdfast.example", "Origin": "https://holdfast.example"},
        {"Origin": "https://a.lab.example:8443"},
    ],
    ids=str,
)
def test_programs_the_own_page_and_a_proxys_reach_every_route(api: Api, headers: dict[str, str]) -> None:
    sent = {
        name: value.format(url=api.url, port=api.http.base_url.port or 0) for name, value in headers.items()
    }
    for method, path in ROUTES:
        answer = api.http.request(method, path, headers=sent)
        assert answer.status_code not in (403, 421), (method, path, answer.text)


def test_every_socket_of_the_api_is_on_loopback(api: Api) -> None:
    assert listening(psutil.Process(api.process.pid)) == {("127.0.0.1", api.settings.port)}


def test_it_is_refused_before_its_body_is_read(api: Api) -> None:
    for path in (path for _, path in UNSAFE_ROUTES):
        with socket.create_connection((api.settings.host, api.settings.port)) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {PAGE}\r\n"
            connection.sendall(f"{head}Content-Length: 9999\r\n\r\n".encode())
            connection.settimeout(20)
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        assert answer.startswith("HTTP/1.1 403"), path


def asked(settings: Settings, **headers: str) -> int:
    """The status that a POST with these headers gets from an app behind the middleware."""
    guarded = OwnCallers(PlainTextResponse("done"), OwnHosts(settings))

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded)) as http:
            return (await http.post("http://localhost/", headers=headers)).status_code

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("host", "named", "status"),
    [
        ("127.0.0.1", "192.168.1.9", 421),
        ("127.0.0.1", "0.0.0.0", 421),
        ("127.0.0.1", "[::ffff:127.0.0.1]", 200),
        ("192.168.1.9", "192.168.1.9:8400", 200),
        ("192.168.1.9", "192.168.1.8:8400", 421),
        ("0.0.0.0", "192.168.1.9", 200),
        ("0.0.0.0", "[2001:db8::1]:8400", 200),
        ("0.0.0.0", "evil.example", 421),
        ("::", "192.168.1.9", 200),
        ("", "192.168.1.9", 200),
        ("", "evil.example", 421),
        ("Box.example", "box.example:8400", 200),
        ("box.example", "other.example", 421),
        ("::1", "[0:0:0:0:0:0:0:1]", 200),
        ("127.0.0.1", "a@127.0.0.1", 421),
        ("127.0.0.1", "@127.0.0.1", 421),
        ("127.0.0.1", "127.0.0.1/evil.example", 421),
        ("127.0.0.1", "127.0.0.1:port", 421),
        ("127.0.0.1", "127.0.0.1:0", 421),
        ("127.0.0.1", "", 421),
        ("127.0.0.1", "2130706433", 421),
    ],
)
def test_of_names_only_the_own_ones_and_of_addresses_those_listened_on(
    host: str, named: str, status: int
) -> None:
    assert asked(Settings(host=host), Host=named) == status


def test_an_origin_is_compared_with_its_scheme_and_port() -> None:
    settings = Settings(allowed_hosts="holdfast.example")
    assert asked(settings, Host="localhost:8400", Origin="http://localhost:8400") == 200
    assert asked(settings, Host="localhost:8400", Origin="http://localhost:8401") == 403
    assert asked(settings, Host="localhost:8400", Origin="https://localhost:8400") == 403
    assert asked(settings, Host="localhost:8400", Origin="http://127.0.0.1:8400") == 403
    assert asked(settings, Host="localhost:8400", Origin="https://holdfast.example") == 200
    assert asked(settings, Host="localhost:8400", Origin="ftp://holdfast.example") == 403
