"""Every loop of every role, with a fault in every call that it makes: its work gets done all the same."""

import ast
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.ingest.ingester import Ingester
from service.ingest.pipeline import PipelineIngest
from service.ingest.push import push
from service.ingest.retention import Upkeep
from service.loops import Loops
from service.settings import Settings
from service.state import jobs, pipelines, presence
from service.state.database import connect, migrate
from service.state.presence import Presence
from service.storage import store_location
from service.updates import dispatcher
from streams.state.manifest import Manifest
from streams.state.tables import reading
from tests.support.faults import Faults, Injected
from tests.support.running import wait_for
from tests.support.service_parts import declare, enqueue

SERVICE = Path(__file__).parents[2] / "service"
RECORDS = 20
MOST_FAULTS = 40
"""Calls of one loop that fail, one after the other, evenly over all that it makes."""


class Place:
    """A home with a database, in which each fault gets a pipeline of its own."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(home=folder, poll_seconds=0.01, orphan_grace_seconds=60)
        self.engine = connect(self.settings.database)
        migrate(self.engine)
        self.store = store_location(self.settings).open()
        self.stop = threading.Event()
        self.made = 0

    def pipeline(self) -> str:
        """A new one, with as many pushed records as an experience takes."""
        self.made += 1
        name = f"p{self.made}"
        declare(self.engine, name=name, trigger={"records": RECORDS})
        lines = [
            json.dumps({"id": f"{n}", "features": [n % 9, 1], "label": "up", "groups": {"site": "north"}})
            for n in range(RECORDS)
        ]
        push(
            self.engine,
            name,
            body="\n".join(lines).encode(),
            content_type="application/x-ndjson",
            request_key=None,
            max_backlog_records=100_000,
        )
        return name

    def has_cut(self, name: str) -> bool:
        return Manifest(self.engine).totals(name)[0] == 1


Work = tuple[Callable[[], Any], Callable[[], bool]]
"""A turn, and whether the work that waited for it is done."""


def ingester_turn(place: Place) -> Work:
    name = place.pipeline()
    loops = Loops(place.stop)
    return Ingester(place.engine, place.settings, place.store, loops).turn, partial(place.has_cut, name)


def pipeline_turn(place: Place) -> Work:
    name = place.pipeline()
    with reading(place.engine) as connection:
        spec = pipelines.load_spec(connection, name)
    pipeline = PipelineIngest(place.engine, place.settings, spec, store=place.store)
    return pipeline.turn, partial(place.has_cut, name)


def upkeep_turn(place: Place) -> Work:
    place.made += 1
    orphan = place.settings.root / "experiences" / f"{place.made:064x}.arrow"
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"nobody needs this")
    os.utime(orphan, (0, 0))
    upkeep = Upkeep(place.engine, place.settings.model_copy(update={"upkeep_seconds": 0.0}), place.store)
    return upkeep.turn, lambda: not orphan.exists()


def presence_turn(place: Place) -> Work:
    place.made += 1
    role = f"role-{place.made}"

    def is_seen() -> bool:
        with reading(place.engine) as connection:
            return any(each.role == role for each in presence.seen(connection))

    return Presence(place.engine, role)._turn, is_seen


def projector_turn(place: Place) -> Work:
    wanted = {place.pipeline(), place.pipeline()}
    projected: set[str] = set()
    registry: Any = SimpleNamespace(project=lambda name, _aliases: projected.add(name))
    return dispatcher.Projector(place.engine, registry).turn, lambda: wanted <= projected


def updater_turn(place: Place) -> Work:
    name = place.pipeline()
    update_id = enqueue(place.engine, name=name)

    def run(update: jobs.Update, _note: object) -> None:
        if update.id == update_id:
            ended.append(update.id)
        with place.engine.begin() as connection:
            jobs.write(connection, update, {"state": "done"})

    ended: list[str] = []
    updater: Any = SimpleNamespace(run=run, clear_cancelled=lambda _update: False)
    settings = place.settings.model_copy(update={"max_attempts": 20, "lease_seconds": 0.2})
    return partial(dispatcher._work, place.engine, settings, updater, "w"), lambda: bool(ended)


LOOPS: dict[str, Callable[[Place], Work]] = {
    "ingester.turn": ingester_turn,
    "known.ingest.turn": pipeline_turn,
    "Upkeep(engine, settings, store).turn": upkeep_turn,
    "self._turn": presence_turn,
    "Projector(engine, registry).turn": projector_turn,
    "partial(_work, engine, settings, updater, f'{instance_name()}:{name}')": updater_turn,
}
"""The turn of each loop, as it is written where the loop is started."""
NO_LOOPS = {
    "loops.py": "starts them",
    "state/presence.py": "runs a Loop",
    "updates/dispatcher.py": "the heartbeat of one update ends with it, and survives every exception",
    "cli.py": "waits for the stop",
    "commands/up.py": "waits for the parent's end",
}
"""Modules that start a thread of their own."""


def _calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(SERVICE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
                yield str(path.relative_to(SERVICE)), node


def test_every_loop_is_tried_here() -> None:
    started = [call for _, call in _calls("start") if len(call.args) == 2]
    # Who starts one again starts the same.
    started = [call for call in started if ast.unparse(call.args[1]) != "loop.turn"]
    made = [call for where, call in _calls("Loop") if where != "loops.py"]
    assert {ast.unparse(call.args[1]) for call in (*started, *made)} == set(LOOPS)


def test_threads_are_loops_but_for_a_few() -> None:
    assert {where for where, _ in _calls("Thread")} == set(NO_LOOPS)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.stop.set()
    found.engine.dispose()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_fault_in_any_call_ends_no_loop_and_loses_no_work(
    place: Place, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(dispatcher, "REPAIR_SECONDS", 0.0)
    counted = Faults()
    turn, done = LOOPS[loop](place)
    counted.run(turn)
    finish(turn, done)
    assert counted.calls > 3, "a turn that calls nothing proves nothing"
    step = max(1, counted.calls // MOST_FAULTS)
    for fail_at in range(1, counted.calls + 1, step):
        turn, done = LOOPS[loop](place)
        # The loop catches it, shows it, and turns again.
        with suppress(Injected):
            Faults(fail_at).run(turn)
        finish(turn, done)


def finish(turn: Callable[[], Any], done: Callable[[], bool]) -> None:
    """Turn on until the work is done."""

    def turned() -> bool:
        turn()
        time.sleep(0.01)
        return done()

    wait_for(turned, seconds=20, hint="the work of the loop")
