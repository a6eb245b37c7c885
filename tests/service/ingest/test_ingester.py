"""The ingest role over several pipelines: none of them holds up another."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.ingest import ingester, sources
from service.ingest import pipeline as pipeline_ingest
from service.ingest.push import push
from service.ingest.status import look
from service.settings import Settings
from service.state import jobs
from service.state.database import connect, migrate
from service.updates.requests import request_update
from streams.state import status as stream_status
from streams.state.manifest import Manifest
from streams.state.tables import reading
from tests.support.running import wait_for
from tests.support.service_parts import declare

RECORDS = 20


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, poll_seconds=0.02)


@pytest.fixture
def engine(settings: Settings) -> Iterator[sa.Engine]:
    found = connect(settings.database)
    migrate(found)
    yield found
    found.dispose()


@contextmanager
def serving(settings: Settings) -> Iterator[None]:
    stop = threading.Event()
    role = threading.Thread(target=ingester.serve, args=(settings, stop))
    role.start()
    try:
        yield
    finally:
        stop.set()
        role.join(30)
        assert not role.is_alive(), "the role ends when it is asked to"


def send(engine: sa.Engine, name: str, batch: int) -> None:
    records = [
        {"id": f"{batch}-{place}", "features": [place % 9, 1], "label": "up", "groups": {"site": "north"}}
        for place in range(RECORDS)
    ]
    push(
        engine,
        name,
        body=b"\n".join(json.dumps(one).encode() for one in records),
        content_type="application/x-ndjson",
        request_key=None,
        max_backlog_records=100_000,
    )


def cut(engine: sa.Engine, name: str) -> int:
    return Manifest(engine).totals(name)[0]


def has_cut(engine: sa.Engine, name: str, experiences: int) -> bool:
    return cut(engine, name) >= experiences


def status(engine: sa.Engine, name: str) -> stream_status.StreamState:
    with reading(engine) as connection:
        return stream_status.read(connection, name)


def test_a_broker_that_never_answers_holds_up_no_other_pipeline(
    engine: sa.Engine, settings: Settings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        declare(engine, name="silent", source={"kind": "redis", "url": url, "streams": ["s"]})
        declare(engine, name="pushed", trigger={"records": RECORDS})
        with serving(settings):
            waiting, _ = silent.accept()  # the ingest waits for its first answer now
            began = time.monotonic()
            for batch in range(3):
                send(engine, "pushed", batch)
                wait_for(
                    partial(has_cut, engine, "pushed", batch + 1),
                    seconds=8,
                    hint="experience of the other pipeline",
                )
            assert time.monotonic() - began < 8, "less than what one answer of the broker is waited for"
            silent.close()
            waiting.close()


def test_an_update_that_waits_for_a_cut_goes_on_while_the_source_is_away(
    engine: sa.Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_ingest, "BACKOFF_SECONDS", 0.05)
    source = {"kind": "redis", "url": "redis://127.0.0.1:1/0", "streams": ["s"]}
    declare(engine, name="away", source=source)
    update = request_update(engine, "away", by="Ada", request_key=None, experiences=None)
    with serving(settings):
        wait_for(lambda: status(engine, "away").status == "failing", seconds=20, hint="note of the failure")

        def released() -> bool:
            with reading(engine) as connection:
                return update not in jobs.wanting_cut(connection, "away")

        wait_for(released, seconds=20, hint="release of the update")


def test_a_fault_in_one_pipeline_is_told_and_stops_no_other(
    engine: sa.Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, faulty = sources.build_source, threading.Event()
    faulty.set()

    def build_source(engine: sa.Engine, spec: Any, allowed: Any) -> Any:
        if spec.name == "faulty" and faulty.is_set():
            raise ZeroDivisionError("division by zero")
        return real(engine, spec, allowed)

    monkeypatch.setattr(pipeline_ingest, "build_source", build_source)
    monkeypatch.setattr(pipeline_ingest, "BACKOFF_SECONDS", 0.2)
    for name in ("faulty", "sound"):
        declare(engine, name=name, trigger={"records": RECORDS})
        send(engine, name, 0)
    with serving(settings):
        wait_for(lambda: cut(engine, "sound"), seconds=20, hint="experience of the sound pipeline")
        failing = wait_for(
            lambda: found if (found := status(engine, "faulty")).status == "failing" else None,
            seconds=20,
            hint="note of the fault",
        )
        assert "ZeroDivisionError: a fault inside Holdfast" in failing.reason
        assert "division by zero" not in failing.reason, "what an exception says stands in the log alone"
        assert "log of the ingest role" in failing.reason
        faulty.clear()
        wait_for(lambda: cut(engine, "faulty"), seconds=20, hint="experience once the fault is mended")
        wait_for(lambda: status(engine, "faulty").status == "running", seconds=20, hint="clear status")
    assert cut(engine, "faulty") == cut(engine, "sound") == 1


def test_files_that_are_passed_over_stand_in_the_status(engine: sa.Engine, settings: Settings) -> None:
    incoming = settings.root / "incoming"
    incoming.mkdir()
    (incoming / "readings.txt").write_text("a,b,label\n1,2,up\n")
    source = {"kind": "files", "location": str(incoming), "label": "label"}
    declare(engine, name="files", source=source)
    with serving(settings):
        warnings = wait_for(
            lambda: look(engine, "files").warnings, seconds=20, hint="note of the file that is passed over"
        )
    assert "'readings.txt'" in warnings[0]
    assert status(engine, "files").status == "running"
