"""The API as a process: how it starts, describes itself, and turns away what it cannot read."""

import hashlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from service.api import reference
from service.api.app import create_app
from service.errors import SettingsError
from service.settings import Settings
from service.state.database import pipelines, updates
from streams.state.manifest import Commit, DeadLetter, Manifest, Span
from streams.wire.decode import JsonRecord
from tests.support.api_parts import Api, declare, running_api, spec, unchanged
from tests.support.repository import ROOT

ROUTES = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/v1/pipelines"),
    ("POST", "/v1/pipelines"),
    ("GET", "/v1/pipelines/{pipeline}"),
    ("POST", "/v1/pipelines/{pipeline}/records"),
    ("GET", "/v1/pipelines/{pipeline}/stream"),
    ("POST", "/v1/pipelines/{pipeline}/stream/pause"),
    ("POST", "/v1/pipelines/{pipeline}/stream/resume"),
    ("GET", "/v1/pipelines/{pipeline}/dead-letters"),
    ("GET", "/v1/pipelines/{pipeline}/dead-letters/{dead_letter}"),
    ("POST", "/v1/pipelines/{pipeline}/dead-letters/replay"),
    ("GET", "/v1/pipelines/{pipeline}/experiences"),
    ("GET", "/v1/pipelines/{pipeline}/updates"),
    ("POST", "/v1/pipelines/{pipeline}/updates"),
    ("GET", "/v1/pipelines/{pipeline}/champion"),
    ("POST", "/v1/pipelines/{pipeline}/rollback"),
    ("GET", "/v1/pipelines/{pipeline}/ledger"),
    ("GET", "/v1/pipelines/{pipeline}/holdouts"),
    ("POST", "/v1/pipelines/{pipeline}/holdouts/{experience}/{marking}"),
    ("POST", "/v1/pipelines/{pipeline}/holdouts/{experience}/margin"),
    ("POST", "/v1/pipelines/{pipeline}/holdouts/{experience}/traffic"),
    ("POST", "/v1/pipelines/{pipeline}/holdouts/{experience}/relabel"),
    ("POST", "/v1/pipelines/{pipeline}/holdouts"),
    ("POST", "/v1/pipelines/{pipeline}/holdouts/golden/{name}/{marking}"),
    ("POST", "/v1/pipelines/{pipeline}/holdouts/golden/{name}/margin"),
    ("POST", "/v1/pipelines/{pipeline}/unfreeze"),
    ("GET", "/v1/updates/{update}"),
    ("POST", "/v1/updates/{update}/cancel"),
    ("GET", "/v1/updates/{update}/decision"),
    ("POST", "/v1/updates/{update}/decision"),
}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


def test_the_process_runs_without_torch_or_ray(api: Api) -> None:
    # How soon it is ready, `make bench AREA=loop` says.
    maps = Path(f"/proc/{api.process.pid}/maps").read_text()
    assert "_pydantic_core" in maps
    assert not re.search(r"libtorch|_raylet", maps)


def test_serving_requests_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys, httpx\n"
        "from service.api.app import create_app\n"
        "from service.settings import Settings\n"
        "app = create_app(Settings())\n"
        "async def use():\n"
        "    async with app.router.lifespan_context(app):\n"
        "        transport = httpx.ASGITransport(app)\n"
        "        async with httpx.AsyncClient(transport=transport, base_url='http://localhost') as http:\n"
        f"            assert (await http.post('/v1/pipelines', json={spec('light')!r})).status_code == 201\n"
        "            await http.post('/v1/pipelines/light/records', json={'records': [\n"
        "                {'id': 'a', 'features': [1, 2], 'label': 'up'}]})\n"
        "            assert (await http.get('/openapi.json')).status_code == 200\n"
        "asyncio.run(use())\n"
        # scipy is loaded by the first declaration, whose gate it plans.
        "heavy = ('torch', 'ray', 'mlflow', 'avalanche', 'sklearn', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"HOLDFAST_HOME": str(tmp_path), "PATH": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_health_says_that_the_process_lives_and_that_the_database_answers(api: Api) -> None:
    assert api.http.get("/healthz").json() == {"status": "alive"}
    assert api.http.get("/readyz").json() == {"status": "ready", "roles": []}


def test_a_failure_inside_tells_the_caller_only_where_to_look(tmp_path: Path) -> None:
    with running_api(tmp_path) as running:
        declare(running, "broken")
        with running.engine.begin() as connection:
            broken = {"id": "u-broken", "pipeline": "broken", "requested_by": "Ada", "state": "hunter2"}
            counts = {"wants_cut": False, "attempt": 0, "failures": 0, "not_before": 0, "created_at": 0}
            connection.execute(sa.insert(updates).values(**broken, **counts, experiences=[]))
            connection.execute(sa.text("ALTER TABLE roles RENAME TO gone"))
        answer = running.http.get("/v1/updates/u-broken")
        document = running.refuses(answer, 500, "internal")
        assert "hunter2" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert document["incident"] in running.log
        assert "Traceback" in running.log
        # A variable's value in a log could be anybody's record, or a password.
        assert "locals" not in running.log

        # After a 500 the server hangs up, so these take a connection of their own.
        away = running.refuses(httpx.get(f"{running.url}/readyz"), 503, "database-away")
        assert "HOLDFAST_DATABASE_URL" in away["fix"]
        assert httpx.get(f"{running.url}/healthz").status_code == 200


def test_every_answer_carries_the_security_headers(api: Api) -> None:
    for path in ("/healthz", "/v1/pipelines", "/nothing", "/docs", "/openapi.json"):
        headers = api.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers
    assert api.http.get("/v1/pipelines").headers["cache-control"] == "no-store"


def test_the_description_names_every_route_and_every_answer(api: Api) -> None:
    document = api.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    found = {
        (method.upper(), path) for path, operations in document["paths"].items() for method in operations
    }
    assert found == ROUTES
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert "application/problem+json" in operation["responses"]["default"]["content"]
            success = next(status for status in operation["responses"] if status.startswith("2"))
            assert operation["responses"][success]["content"]["application/json"]["schema"], (method, path)
            assert ("requestBody" in operation) == (method == "post"), (method, path)


def test_every_reference_inside_the_description_leads_somewhere(api: Api) -> None:
    document = api.http.get("/openapi.json").json()
    for pointer in set(_references(document)):
        place: Any = document
        for step in pointer.removeprefix("#/").split("/"):
            place = place[step]
        assert isinstance(place, dict)
    assert set(document["components"]["schemas"]["JsonRecord"]["properties"]) == set(
        JsonRecord.__struct_fields__
    )


def test_what_has_a_default_is_not_required_of_a_declaration(api: Api) -> None:
    schemas = api.http.get("/openapi.json").json()["components"]["schemas"]
    assert set(schemas["PipelineDeclaration"]["required"]) == {"name", "schema", "trigger", "strategy"}


def test_the_documentation_page_needs_no_other_host(api: Api) -> None:
    page = api.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://|[\"']//", page.text)
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "docs/docs.js"} <= set(sources)
    for source in sources:
        if not source.startswith("data:"):
            assert api.http.get(f"/{source}").status_code == 200
    # The bundle is another project's; what it may ask of whom is the policy's to say.
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*", policy)


def test_the_files_of_the_page_are_those_that_were_reviewed() -> None:
    lines = (reference.STATIC / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    for name, expected in sums.items():
        assert hashlib.sha256((reference.STATIC / name).read_bytes()).hexdigest() == expected, name
    ours = {"docs.js", "README.md", "SHA256SUMS"}
    assert {path.name for path in reference.STATIC.iterdir()} == ours | set(sums)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v2/pipelines",
        "/v1/pipelines/",
        "/v1/pipelines/a/b",
        "/v1/pipelines/a%2Fb",
        "/v1/pipelines/..%2F..%2Fetc%2Fpasswd",
        "/docs/..%2Fapp.py",
        "/docs/%2e%2e/app.py",
        "/docs/README.md",
        "/v1/updates/" + "x" * 5000 + "/y",
    ],
)
def test_a_path_that_is_none_is_a_problem(api: Api, path: str) -> None:
    with unchanged(api):
        document = api.refuses(api.http.get(path), 404, "http-404")
    assert len(document["detail"]) < 300


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_a_method_that_a_path_does_not_take_is_a_problem_that_names_the_right_one(
    api: Api, method: str
) -> None:
    answer = api.http.request(method, "/v1/pipelines/a/ledger")
    document = api.refuses(answer, 405, "http-405")
    assert answer.headers["allow"] == "GET, HEAD"
    assert "GET" in document["fix"]


@pytest.mark.parametrize("name", ["nobody", "UPPER", "a" * 64, "é", "' OR 1=1 --"])
@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", ""),
        ("POST", "/records"),
        ("GET", "/experiences"),
        ("GET", "/updates"),
        ("POST", "/updates"),
        ("GET", "/champion"),
        ("POST", "/rollback"),
        ("GET", "/ledger"),
        ("GET", "/holdouts"),
        ("POST", "/holdouts/0/retire"),
        ("POST", "/unfreeze"),
    ],
)
def test_an_unknown_pipeline_is_named_on_every_route(api: Api, name: str, method: str, rest: str) -> None:
    bodies: dict[str, object] = {"/records": {"records": [{}]}, "/updates": {}}
    body = bodies.get(rest, {"reason": "why"}) if method == "POST" else None
    with unchanged(api):
        answer = api.http.request(method, f"/v1/pipelines/{name}{rest}", json=body)
        document = api.refuses(answer, 404, "pipeline-unknown")
    assert "GET /v1/pipelines" in document["fix"]


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/xml"]
)
@pytest.mark.parametrize("path", ["", "/a/records", "/a/updates", "/a/rollback", "/a/unfreeze"])
def test_a_body_of_another_type_is_turned_away(api: Api, media_type: str, path: str) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    with unchanged(api):
        answer = api.http.post(f"/v1/pipelines{path}", content=b'{"a": 1}', headers=headers)
        document = api.refuses(answer, 415, "media-type")
    assert "application/json" in document["fix"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body"),
        (b"{", "line 1, column 2"),
        (b'{"name": "a"', "line 1, column 13"),
        (b'{"name": NaN}', "NaN is not"),
        (b'{"name": -Infinity}', "-Infinity is not"),
        (b'{"name": 1e999}', "1e999 is not"),
        (b'{"name": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"name": "\xff"}', "not UTF-8, at byte 10"),
        (b'{"name": "a", "name": "b"}', "'name' stands twice"),
        (b'{"deep": [{"a": 1, "b": 2, "\\u0061": 1}]}', "'a' stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xef\xbb\xbf{}", "BOM"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/pipelines", "/v1/updates/u-1/decision"])
def test_a_body_that_is_no_json_says_where_it_breaks(api: Api, path: str, body: bytes, words: str) -> None:
    with unchanged(api):
        answer = api.http.post(path, content=body, headers=JSON)
        status, slug = (400, "not-json") if body else (422, "request-invalid")
        document = api.refuses(answer, status, slug)
    assert words in document["detail"]


@pytest.mark.parametrize("body", [[], "text", 3, None, {}, {"name": "x"}, spec("Bad Name"), spec("a" * 64)])
def test_a_pipeline_that_is_none_is_refused(api: Api, body: Any) -> None:
    with unchanged(api):
        answer = api.http.post("/v1/pipelines", json=body)
        api.refuses(answer, 422, "pipeline-invalid" if isinstance(body, dict) else "request-invalid")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"strategy": {"name": "magic"}}, "strategy"),
        ({"strategy": {"name": "naive", "epochs": 0}}, "strategy.naive.epochs"),
        ({"source": {"kind": "carrier-pigeon"}}, "source"),
        ({"source": {"kind": "datasets"}}, "body"),
        ({"gate": {"margin": 2}}, "gate.margin"),
        ({"trigger": {"kind": "records", "records": 10**30}}, "trigger.records"),
        ({"split": {"gate": 0.7, "audit": 0.3}}, "split"),
        ({"schema": {"shape": [2], "classes": ["one"]}}, "schema.classes"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_pipeline_that_cannot_work_says_which_field(api: Api, changes: dict[str, Any], where: str) -> None:
    with unchanged(api):
        answer = api.http.post("/v1/pipelines", content=json.dumps(spec("new", **changes)), headers=JSON)
        document = api.refuses(answer, 422, "pipeline-invalid")
    assert document["errors"][0]["where"] == where


def test_a_pipeline_of_a_name_that_is_taken_is_refused_and_the_first_one_stays(api: Api) -> None:
    declare(api, "taken")
    with unchanged(api):
        answer = api.http.post("/v1/pipelines", json=spec("taken", strategy={"name": "ewc"}))
        api.refuses(answer, 409, "pipeline-exists")
    assert api.http.get("/v1/pipelines/taken").json()["spec"]["strategy"]["name"] == "naive"


def test_a_pipeline_is_shown_with_its_defaults_and_listed(api: Api) -> None:
    declare(api, "shown")
    view = api.http.get("/v1/pipelines/shown").json()
    assert view["spec"]["gate"]["margin"] == 0.02
    assert (view["experiences"], view["pending_records"], view["champion_version"]) == (0, 0, None)
    assert view["dead_letters"] == {}
    assert {**view, "gate_plan": None} in api.http.get("/v1/pipelines").json()


def test_a_declaration_says_what_its_gate_means_and_shows_it_again(api: Api) -> None:
    answer = api.http.post("/v1/pipelines", json=spec("planned", gate={"preset": "eager"}))
    assert answer.status_code == 201, answer.text
    view = answer.json()
    found = view["gate_plan"]
    assert found["sentence"].startswith("With 1,000 records an experience, about ")
    assert (found["records"], found["gate_records"], found["sealed_records"]) == (1000, 250, 200)
    assert [each["churn"] for each in found["asked"]] == [0.06, 0.12]
    for asked in found["asked"]:
        assert asked["low"] < asked["per_100"] < asked["high"]
    assert (found["asked"][0]["bound"], found["unseen_loss"]) == ("about", 0.134)
    assert (found["notes"], found["hopeless"]) == ([], None)
    assert (view["spec"]["gate"]["preset"], view["spec"]["gate"]["margin"]) == ("eager", 0.03)
    assert api.http.get("/v1/pipelines/planned").json() == view


def test_a_hopeless_gate_is_refused_unless_it_is_accepted(api: Api) -> None:
    tiny = {"kind": "records", "records": 40}
    with unchanged(api):
        answer = api.http.post("/v1/pipelines", json=spec("tiny", trigger=tiny))
        problem = api.refuses(answer, 422, "pipeline-hopeless")
        assert "With 40 records an experience, about" in problem["detail"]
        assert "records ask about at most 10 of 100" in problem["fix"]
        assert "accept: true" in problem["fix"]
        for wrong in ("yes please", 2, None):
            refused = api.http.post("/v1/pipelines", json=spec("tiny", trigger=tiny, gate={"accept": wrong}))
            api.refuses(refused, 422, "pipeline-invalid")
    answer = api.http.post("/v1/pipelines", json=spec("tiny", trigger=tiny, gate={"accept": True}))
    assert answer.status_code == 201, answer.text
    assert answer.json()["gate_plan"]["hopeless"] in problem["detail"]


def test_a_pipeline_of_an_earlier_release_goes_on_with_a_hopeless_gate(api: Api) -> None:
    declare(api, "earlier", trigger={"records": 40}, gate={"accept": True})
    with api.engine.begin() as connection:
        stored = connection.execute(sa.select(pipelines.c.spec).where(pipelines.c.name == "earlier")).scalar()
        assert stored is not None
        gate = {name: value for name, value in stored["gate"].items() if name not in ("preset", "accept")}
        query = sa.update(pipelines).where(pipelines.c.name == "earlier")
        connection.execute(query.values(spec={**stored, "gate": gate}))
    view = api.http.get("/v1/pipelines/earlier").json()
    assert (view["spec"]["gate"]["preset"], view["spec"]["gate"]["accept"]) == ("balanced", False)
    assert "would wait for a person" in view["gate_plan"]["hopeless"]


def test_a_pipeline_shows_what_was_refused_once_it_was_read(api: Api) -> None:
    declare(api, "poisoned")
    reasons = ("out-of-range", "malformed", "out-of-range")
    letters = [DeadLetter("p", str(place), reason, "No.", b"") for place, reason in enumerate(reasons)]
    Manifest(api.engine).commit("poisoned", Commit(0, {"p": Span("", "3")}, dead_letters=letters))
    view = api.http.get("/v1/pipelines/poisoned").json()
    assert view["dead_letters"] == {"out-of-range": 2, "malformed": 1}


def test_an_announced_body_beyond_the_limit_is_refused_before_it_is_sent(api: Api) -> None:
    declare(api, "announced")
    for path, limit in (("/v1/pipelines", 2**20), ("/v1/pipelines/announced/records", 256 * 2**20)):
        with socket.create_connection((api.settings.host, api.settings.port)) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {limit + 1}\r\n\r\n".encode())
            connection.settimeout(20)
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        assert answer.startswith("HTTP/1.1 413")
        assert "application/problem+json" in answer
        assert f"{limit:,} bytes" in answer


def test_an_endless_body_is_given_up_at_the_limit(api: Api) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 64 * 2**20:
            sent += 2**16
            yield b" " * 2**16

    with unchanged(api):
        try:
            answer = api.http.post("/v1/pipelines", content=endless(), headers=JSON)
            api.refuses(answer, 413, "body-too-large")
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            pass  # the server hung up while we were still writing, which is as good
    assert sent < 64 * 2**20


def test_a_database_url_that_is_none_stops_the_start(tmp_path: Path) -> None:
    settings = Settings.model_validate({"home": tmp_path, "database_url": "nonsense"})
    with pytest.raises(SettingsError, match="HOLDFAST_DATABASE_URL"):
        create_app(settings)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
