"""What idle and busy pipelines cost the ingest role, on both databases: the area `faults`.

A process of its own ingests 1,000 pipelines that have nothing to do; then 20 of them get records, one gets
200 requests of one record, and one has 5,000 such requests in its log. Numbers and goals were fixed before
the first measurement.
"""

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import sqlalchemy as sa

from service.ingest import ingester
from service.ingest.push import push
from service.settings import Settings
from service.state.database import connect, migrate
from streams.state import status as stream_status
from streams.state.manifest import Manifest
from streams.state.tables import PUSHED_LOGS
from tests.bench.measure import Measured
from tests.support import postgres
from tests.support.service_parts import declare

PIPELINES, ACTIVE, RECORDS = 1_000, 20, 20
ONE_BY_ONE, LOGGED = 200, 5_000
IDLE_SECONDS, OPENING_SECONDS, LONGEST = 20.0, 120.0, 60.0


def run() -> list[Measured]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        found += measured("SQLite", Settings(home=Path(folder)))
    with tempfile.TemporaryDirectory() as folder, postgres.server() as server:
        settings = Settings(home=Path(folder), database_url=server.empty_database())
        found += measured("PostgreSQL", settings)
    return found


def measured(name: str, settings: Settings) -> list[Measured]:
    """The numbers of one database."""
    engine = connect(settings.database)
    migrate(engine)
    for number in range(PIPELINES):
        declare(engine, name=f"p{number}", trigger={"records": RECORDS})
    declare(engine, name="single", trigger={"records": ONE_BY_ONE})
    declare(engine, name="logged", trigger={"records": LOGGED})
    with ingesting(settings) as process:
        cpu = idle_cpu(process)
        cut = after(lambda: send(engine, [f"p{each}" for each in range(ACTIVE)], RECORDS), engine, ACTIVE)
        one_by_one = after(lambda: one_each(engine, "single", ONE_BY_ONE), engine, ACTIVE + 1)
        hold(engine, "logged", "paused")
        one_each(engine, "logged", LOGGED)
        logged = after(lambda: hold(engine, "logged", "running"), engine, ACTIVE + 2)
    engine.dispose()
    return [
        Measured(f"{name}: {PIPELINES:,} idle pipelines, of a core", 100 * cpu, "%", 5.0, "<="),
        Measured(f"{name}: {ACTIVE} active among them, until the last is cut", cut, "s", 2.0, "<="),
        Measured(f"{name}: {ONE_BY_ONE} requests of one record, until cut", one_by_one, "s", 1.0, "<="),
        Measured(
            f"{name}: requests of one record read from the log after a pause",
            LOGGED / logged,
            "per s",
            1_000.0,
            ">=",
        ),
    ]


@contextmanager
def ingesting(settings: Settings) -> Iterator[int]:
    """The ingest role in a process of its own; its process id."""
    process = get_context("spawn").Process(target=_serve, args=(settings,))
    process.start()
    try:
        yield process.pid or 0
    finally:
        process.terminate()
        process.join(30)


def _serve(settings: Settings) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ingester.serve(settings, stop)


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_cpu(process: int) -> float:
    """Share of a core, once all pipelines are open: nothing is due any more when the share has settled."""
    deadline = time.monotonic() + OPENING_SECONDS
    before = cpu_seconds(process)
    while time.monotonic() < deadline:
        time.sleep(4.0)
        now = cpu_seconds(process)
        if now - before < 1.0 and now > 3.0:
            break
        before = now
    began = cpu_seconds(process)
    time.sleep(IDLE_SECONDS)
    return (cpu_seconds(process) - began) / IDLE_SECONDS


def send(engine: sa.Engine, names: list[str], records: int, *, first: int = 0) -> None:
    """Push so many records to each pipeline, in one request."""
    lines = [
        json.dumps(
            {"id": f"r{first + n}", "features": [n % 9, 1], "label": "up", "groups": {"site": "north"}}
        )
        for n in range(records)
    ]
    for name in names:
        push(
            engine,
            name,
            body="\n".join(lines).encode(),
            content_type="application/x-ndjson",
            request_key=None,
            max_backlog_records=10**6,
        )


def hold(engine: sa.Engine, name: str, status: stream_status.Status) -> None:
    with engine.begin() as connection:
        stream_status.set_status(connection, name, status, reason="bench", actor="bench", now=time.time())


def one_each(engine: sa.Engine, name: str, requests: int) -> None:
    for number in range(requests):
        send(engine, [name], 1, first=number)


def after(action: Callable[[], None], engine: sa.Engine, cuts: int) -> float:
    """Seconds from the end of an action until so many experiences are cut in all."""
    action()
    began = time.monotonic()
    wait_for_cuts(engine, cuts)
    return time.monotonic() - began


def wait_for_cuts(engine: sa.Engine, cuts: int) -> None:
    deadline = time.monotonic() + LONGEST
    with engine.connect() as connection:
        names = connection.execute(sa.select(PUSHED_LOGS.c.pipeline)).scalars().all()
    while sum(Manifest(engine).totals(name)[0] for name in names) < cuts:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{cuts} experiences were not cut in {LONGEST:.0f} seconds")
        time.sleep(0.02)
