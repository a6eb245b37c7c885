"""Exactly once across crashes: a process is ended at every write boundary, and started again until done."""

import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sql

from streams.base import RecordSchema, Source
from streams.experiences import ExperienceStore
from streams.ingest import Ingest
from streams.manifest import ExperienceRow, Manifest
from streams.pushed import PushedLog, PushedSource
from streams.records import Records
from streams.split import Split
from streams.triggers import RecordsTrigger
from streams.wire import encode_batch
from tests.stream_parts import SCHEMA, ListSource, payload, records, sqlite_engine

COUNT = 20
SENT = 20 * COUNT
CRASHED = 70
BOUNDARIES = ("before-write", "after-write", "in-commit", "after-commit", "after-trim")
POISON = {place for place in range(SENT) if place % 17 == 3}


class Bomb:
    """Ends the process, as a power cut would, the n-th time a boundary is reached."""

    def __init__(self, boundary: str, occurrence: int) -> None:
        self._boundary = boundary
        self._left = occurrence

    def reach(self, boundary: str) -> None:
        if boundary == self._boundary:
            self._left -= 1
            if self._left == 0:
                os._exit(CRASHED)


class CrashingStore(ExperienceStore):
    def __init__(self, root: Path, bomb: Bomb) -> None:
        super().__init__(root)
        self._bomb = bomb

    def write_parts(self, parts: Sequence[Records], schema: RecordSchema) -> list[str]:
        self._bomb.reach("before-write")
        digests = super().write_parts(parts, schema)
        self._bomb.reach("after-write")
        return digests


class CrashingSource(PushedSource):
    """Trims only after the commit, so the moment before its trim is the moment after the commit."""

    def __init__(self, engine: sql.Engine, bomb: Bomb) -> None:
        super().__init__("digits", SCHEMA, engine=engine)
        self._bomb = bomb

    def trim(self, cursors: Mapping[str, str]) -> None:
        self._bomb.reach("after-commit")
        super().trim(cursors)
        self._bomb.reach("after-trim")


def listed() -> ListSource:
    """Two partitions with poison in both."""
    sent = [b"poison" if place in POISON else payload(f"r{place}") for place in range(SENT)]
    return ListSource({"even": sent[::2], "odd": sent[1::2]}, chunk=13)


def run(folder: Path, kind: str, bomb: Bomb) -> None:
    """One life of the process: ingest until nothing is left, or until the bomb."""
    engine = sqlite_engine(folder / "holdfast.db")
    source: Source = CrashingSource(engine, bomb) if kind == "pushed" else listed()

    def also(connection: sql.Connection, row: ExperienceRow) -> None:
        bomb.reach("in-commit")

    ingest = Ingest(
        "digits",
        SCHEMA,
        source=source,
        trigger=RecordsTrigger(records=COUNT),
        split=Split(),
        store=CrashingStore(folder / "experiences", bomb),
        manifest=Manifest(engine),
        also=also,
    )
    waiting = -1
    while ingest.step(0.0) is not None or ingest.pending != waiting:
        if kind == "listed":
            bomb.reach("after-commit")
        waiting = ingest.pending
    ingest.cut("The end.")
    engine.dispose()


def crash_until_done(folder: Path, kind: str) -> int:
    """One life after the other, with a bomb at one boundary after the other; how many of them crashed.

    Lives are forked from a process that has imported everything and started nothing: a crash costs
    milliseconds, and the dying process is a real one.
    """
    encode_batch(records(["warm"]), SCHEMA)  # pyarrow imports more on first use: once here, not in every life
    boundaries = [name for name in BOUNDARIES if kind == "pushed" or name != "after-trim"]
    for life in range(200):
        bomb = Bomb(boundaries[life % len(boundaries)], 1 + life // len(boundaries) % 2)
        child = os.fork()
        if child == 0:
            try:
                run(folder, kind, bomb)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended == 0:
            return life
        if ended != CRASHED:
            raise AssertionError(f"life {life} ended with {ended}")
    raise AssertionError("the ingest made no progress")


@pytest.mark.parametrize("kind", ["pushed", "listed"])
def test_every_record_is_in_exactly_one_experience(tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / name for name in ("crashing", "straight")]
    for folder in folders:
        folder.mkdir()
        if kind == "pushed":
            log = PushedLog(sqlite_engine(folder / "holdfast.db"))
            for start in range(0, SENT, 25):
                names = [f"r{place}" for place in range(start, start + 25)]
                log.append("digits", SCHEMA, records(names))
    command = [sys.executable, "-m", "tests.test_ingest_crashes", str(folders[0]), kind]
    ended = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    crashes = int(ended.stdout)
    run(folders[1], kind, Bomb("never", 0))

    manifest = Manifest(sqlite_engine(folders[0] / "holdfast.db"))
    store = ExperienceStore(folders[0] / "experiences")
    rows = manifest.experiences("digits")
    assert crashes >= 20
    assert [row.index for row in rows] == list(range(len(rows)))
    assert {row.rows for row in rows[:-1]} == {COUNT}

    poison = POISON if kind == "listed" else set()
    parts = [part for row in rows for part in (row.train, row.gate, row.audit)]
    found = [name for part in parts for name in store.open(part.digest, index=0).record_ids.tolist()]
    assert sorted(found) == sorted(f"r{place}" for place in range(SENT) if place not in poison)
    assert len(manifest.dead_letters("digits", limit=SENT)) == len(poison)

    for earlier, later in pairwise(rows):
        for partition in earlier.positions.keys() & later.positions.keys():
            assert earlier.positions[partition].end == later.positions[partition].start
    if kind == "pushed":
        straight = Manifest(sqlite_engine(folders[1] / "holdfast.db")).experiences("digits")
        assert [row.train for row in rows] == [row.train for row in straight]
    store.collect_garbage(manifest.digests(), grace_seconds=-60.0)
    left = {path.stem for path in (folders[0] / "experiences").iterdir()}
    assert left == manifest.digests()


if __name__ == "__main__":
    print(crash_until_done(Path(sys.argv[1]), sys.argv[2]))
