"""A real API process over a real database, and the ways in which tests move that database on."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from pydantic import SecretStr

from service.gate.base import Answer, Finding, Note, Outcome, Verdict
from service.ingest.pipeline import PipelineIngest
from service.settings import Settings
from service.state import backlog, champions, claims, jobs, ledger, pipelines
from service.state.database import connect
from service.state.ledger import GATE, By
from service.storage import store_location
from service.updates.plan import make_plan
from streams.state.tables import METADATA
from tests.support.running import free_port

PROBLEM_MEMBERS = {"type": str, "title": str, "status": int, "detail": str, "fix": str}
INSIDE = ("Traceback", "sqlalchemy", "pydantic", "site-packages", "msgspec", "object at 0x")
"""What no caller may ever read."""


@dataclass
class Api:
    """A running `holdfast serve api`."""

    settings: Settings
    process: subprocess.Popen[bytes]
    http: httpx.Client
    engine: sa.Engine
    ready_seconds: float

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    @property
    def log(self) -> str:
        return (self.settings.root / "api.log").read_text()

    def snapshot(self) -> dict[str, list[Any]]:
        """Every row of every table."""
        with self.engine.begin() as connection:
            return {
                name: sorted(map(repr, connection.execute(sa.select(table)).all()))
                for name, table in METADATA.tables.items()
            }

    def refuses(self, answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
        """The problem document of an answer that must be one, and a good one."""
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = answer.json()
        for member, kind in PROBLEM_MEMBERS.items():
            assert isinstance(document[member], kind), (member, document)
        assert document["status"] == status
        assert document["type"] == f"urn:holdfast:problem:{slug}", document
        for sentence in (document["detail"], document["fix"]):
            assert sentence.rstrip()[-1:] in ".!", sentence
            assert not sentence.endswith(".."), sentence
        assert not any(word in answer.text for word in INSIDE), answer.text
        return document


@contextmanager
def unchanged(api: Api) -> Iterator[None]:
    """What happens inside leaves every row of the database as it was."""
    before = api.snapshot()
    yield
    assert api.snapshot() == before


@contextmanager
def running_api(home: Path, **environment: str) -> Iterator[Api]:
    """The API as a process of its own, until the block ends."""
    home.mkdir(parents=True, exist_ok=True)
    database_url = environment.get("HOLDFAST_DATABASE_URL")
    settings = Settings(
        home=home, port=free_port(), database_url=SecretStr(database_url) if database_url else None
    )
    own = {"HOLDFAST_HOME": str(home), "HOLDFAST_PORT": str(settings.port), **environment}
    started = time.monotonic()
    with (home / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "api"], env={**os.environ, **own}, stderr=log
        )
    http = httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", timeout=60)
    engine = connect(settings.database)
    try:
        _wait_until_ready(http, process, home)
        yield Api(settings, process, http, engine, time.monotonic() - started)
    finally:
        http.close()
        engine.dispose()
        process.terminate()
        process.wait(20)


def _wait_until_ready(http: httpx.Client, process: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if http.get("/readyz").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.02)
    raise AssertionError((home / "api.log").read_text())


def spec(name: str, **changes: Any) -> dict[str, Any]:
    """A small pipeline of two features and two classes, cut only when an update is asked for."""
    return {
        "name": name,
        "schema": {"shape": [2], "classes": ["down", "up"]},
        "trigger": {"kind": "records", "records": 1000},
        "strategy": {"name": "naive"},
        **changes,
    }


def record(name: str, **changes: Any) -> dict[str, Any]:
    return {"id": name, "features": [0.5, 1.5], "label": "up", **changes}


def declare(api: Api, name: str, **changes: Any) -> str:
    answer = api.http.post("/v1/pipelines", json=spec(name, **changes))
    assert answer.status_code == 201, answer.text
    return name


def push(api: Api, pipeline: str, count: int = 8) -> None:
    records = [record(f"r{place}") for place in range(count)]
    answer = api.http.post(f"/v1/pipelines/{pipeline}/records", json={"records": records})
    assert answer.status_code == 202, answer.text


def ingest(api: Api, pipeline: str) -> None:
    """One look of the ingest role at a pipeline, in this process."""
    with api.engine.begin() as connection:
        declared = pipelines.load_spec(connection, pipeline)
    role = PipelineIngest(api.engine, api.settings, declared, store=store_location(api.settings).open())
    role.turn()
    role.close()


def request(api: Api, pipeline: str) -> str:
    """Ask for an update of new records over HTTP; answers its id."""
    push(api, pipeline)
    answer = api.http.post(f"/v1/pipelines/{pipeline}/updates", json={})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["update"])


def learn(api: Api, pipeline: str, outcome: Outcome, *, guard: str = "retention") -> str:
    """One update from its records to its verdict: what ingest and dispatcher write, without the training."""
    return settle(api, pipeline, request(api, pipeline), outcome, guard=guard)


def _verdict(outcome: Outcome, guard: str) -> Verdict:
    answers: dict[Outcome, Answer] = {"promote": "pass", "review": "undecided", "reject": "fail"}
    finding = Finding(guard, answers[outcome], "experience 0: as the test says", 0, {"n": 5})
    return Verdict(outcome, finding.sentence, (finding,), (Note("budget", "budget: nothing is sealed"),))


def settle(api: Api, pipeline: str, requested: str, outcome: Outcome, *, guard: str = "retention") -> str:
    """The rest of an update that was asked for over HTTP; the guard is that of the finding that decides."""
    ingest(api, pipeline)
    update = claims.claim(api.engine, "test", lease_seconds=60, max_attempts=3)
    assert update is not None
    assert update.id == requested
    plan = make_plan(api.engine, update)
    with api.engine.begin() as connection:
        number = 1 + len(champions.lineage(connection, pipeline, plan.base_version))
        while champions.version(connection, pipeline, number):
            number += 1
        champions.add_version(
            connection,
            pipeline,
            number=number,
            update_id=update.id,
            parent=plan.base_version,
            learnt=plan.learnt_after,
            run_id=f"run-{number}",
        )
        if outcome == "promote":
            champions.promote(
                connection,
                pipeline,
                number=number,
                expected_revision=plan.update.base_revision,
                experiences=plan.experiences,
                by=By(GATE, "nothing was forgotten", update.id),
            )
        else:
            ledger.append(
                connection,
                pipeline,
                action=outcome,
                by=By(GATE, "an old holdout may have lost too much", update.id),
                version=number,
                previous_version=plan.base_version,
            )
        states: dict[str, backlog.State] = {"promote": "learnt", "review": "review", "reject": "carried"}
        backlog.mark(connection, pipeline, experiences=plan.experiences, state=states[outcome], note="test")
        jobs.write(
            connection,
            plan.update,
            {
                "state": "review" if outcome == "review" else "done",
                "outcome": outcome,
                "reason": "test",
                "cause": _verdict(outcome, guard).cause,
                "verdict": _verdict(outcome, guard).as_dict(),
                "version": number,
                "run_id": f"run-{number}",
                "finished_at": time.time(),
            },
        )
    return update.id
