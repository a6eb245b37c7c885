"""One stream in an environment of its own: a real database and store, and ingests that crash.

Every message carries its own number, in its features, and its own label, so that from what is stored alone
it is known where each message is. `Environment.check` tests the promise of `streams.ingest` at any moment.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sql

from streams.base import RecordSchema
from streams.breaker import CircuitBreaker
from streams.held_out import HeldOut
from streams.ingest import Ingest, IngestConfig
from streams.joining import WaitingPart
from streams.records import COMPLETE, FEATURES_ONLY, LABEL_ONLY, Records
from streams.split import Split
from streams.state import status as stream_status
from streams.state.manifest import ExperienceRow, Manifest, Part
from streams.state.tables import reading
from streams.store.experiences import ExperienceStore
from streams.triggers.catalog import RecordsTrigger, TriggerConfig
from tests.support.stream_parts import ListSource, sqlite_engine

PIPELINE = "digits"
MESSAGES = 200
"""Most messages of one environment: each has a class of its own."""
PLAIN = RecordSchema(shape=(1,), classes=tuple(f"m{number}" for number in range(MESSAGES)))
JOINED = PLAIN.model_copy(update={"labels_within_seconds": 1000.0})
SPLIT = Split(gate=0.2, audit=0.1)
BOUNDARIES = ("before-write", "after-write", "in-hook", "in-commit", "after-commit")

Kind = Literal["complete", "features", "label", "poison"]
CARRIES: Mapping[int, Kind] = {COMPLETE: "complete", FEATURES_ONLY: "features", LABEL_ONLY: "label"}


class Crash(Exception):
    """The process dies here."""


class Bomb:
    """Raises `Crash` the n-th time that the ingest reaches a boundary; not armed, never."""

    def __init__(self) -> None:
        self.boundary = ""
        self.left = 0
        self.alive = False
        """Whether an ingest is at work: what the test itself reads and writes does not crash."""

    def arm(self, boundary: str, occurrence: int = 1) -> None:
        self.boundary, self.left = boundary, occurrence

    def reach(self, boundary: str) -> None:
        if self.alive and boundary == self.boundary:
            self.left -= 1
            if self.left == 0:
                self.boundary = ""
                raise Crash(boundary)


class FragileStore(ExperienceStore):
    """Crashes before or after its files are written."""

    def __init__(self, root: Path, bomb: Bomb) -> None:
        super().__init__(root)
        self._bomb = bomb

    def write_parts(self, parts: Sequence[Records], schema: RecordSchema) -> list[str]:
        self._bomb.reach("before-write")
        digests = super().write_parts(parts, schema)
        self._bomb.reach("after-write")
        return digests


class FragileSource(ListSource):
    """Crashes where a source trims: just after a commit."""

    def __init__(self, payloads: Mapping[str, Sequence[bytes]], *, chunk: int, bomb: Bomb) -> None:
        super().__init__(payloads, chunk=chunk)
        self._bomb = bomb

    def trim(self, cursors: Mapping[str, str]) -> None:
        self._bomb.reach("after-commit")


@dataclass(frozen=True)
class Message:
    """What was sent, and where it stands."""

    number: int
    id: str
    kind: Kind
    partition: str
    position: int
    """1, 2, 3 ... within the partition: its cursor."""


@dataclass
class Stored:
    """What the database and the store say, and nothing else."""

    revision: int
    cursors: Mapping[str, int]
    learnt: list[tuple[str, int, int]] = field(default_factory=list)
    """(id, message of the features, message of the label) of every record of every experience, in order."""
    waiting: list[tuple[str, Kind, int]] = field(default_factory=list)
    """(id, kind, message) of every stored record that is unmatched."""
    dead_letters: set[tuple[str, int]] = field(default_factory=set)
    duplicates: int = 0
    aged_out: int = 0

    @property
    def messages(self) -> list[int]:
        """Messages that are in an experience or wait."""
        learnt = [number for _, features, label in self.learnt for number in {features, label}]
        return learnt + [number for _, _, number in self.waiting]


class Environment:
    """One pipeline; at most one ingest of it is open at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        partitions: Sequence[str] = ("p",),
        schema: RecordSchema = PLAIN,
        trigger: TriggerConfig | None = None,
        window: int = 0,
        breaker: CircuitBreaker | None = None,
        split: Split = SPLIT,
        engine: sql.Engine | None = None,
    ) -> None:
        self.engine = engine or _fresh_engine(folder / "holdfast.db")
        self.schema = schema
        self.trigger = trigger or RecordsTrigger(records=5)
        self.window = window
        self.breaker = breaker or CircuitBreaker(max_bad_share=1.0)
        self.split = split
        self.held_out = HeldOut()
        self.bomb = Bomb()
        self.manifest = Manifest(self.engine, clock=lambda: self.now)
        self.store = FragileStore(folder / "experiences", self.bomb)
        self.sent: dict[str, list[bytes]] = {name: [] for name in partitions}
        self.messages: list[Message] = []
        self.queued: list[int] = []
        self.now = 1e9
        self.chunk = 3
        self.ingest: Ingest | None = None
        self._parts: dict[str, list[tuple[str, int, int]]] = {}
        self._stored: Stored | None = None
        self._checked = -1
        sql.event.listen(self.engine, "commit", self._committing)

    def _committing(self, connection: sql.Connection) -> None:
        self.bomb.reach("in-commit")

    def send(self, record_id: str, kind: Kind = "complete", partition: str = "p", **more: Any) -> int:
        """Send one message; its number."""
        number = len(self.messages)
        fields: dict[str, Any] = {"id": record_id, **more}
        if kind in ("complete", "features"):
            fields["features"] = [number]
        if kind in ("complete", "label"):
            fields["label"] = f"m{number}"
        self.sent[partition].append(b"poison" if kind == "poison" else json.dumps(fields).encode())
        self.messages.append(Message(number, record_id, kind, partition, len(self.sent[partition])))
        return number

    def open(self) -> Ingest:
        """The open ingest, or a new one."""
        if self.ingest is None:
            self.ingest = self.another()
        return self.ingest

    def another(self, partitions: Sequence[str] | None = None) -> Ingest:
        """Another ingest next to the open one."""
        sent = {name: self.sent[name] for name in partitions or self.sent}
        return Ingest(
            IngestConfig(
                PIPELINE,
                self.schema,
                self.trigger,
                self.split,
                duplicate_window=self.window,
                breaker=self.breaker,
            ),
            source=FragileSource(sent, chunk=self.chunk, bomb=self.bomb),
            store=self.store,
            manifest=self.manifest,
            also=self._queue,
            held_out=lambda: self.held_out,
            clock=lambda: self.now,
        )

    def _queue(self, connection: sql.Connection, row: ExperienceRow) -> None:
        self.bomb.reach("in-hook")
        self.queued.append(row.index)

    def crash(self) -> None:
        """The process is gone, and nothing of it was closed."""
        self.ingest = None

    def step(self) -> ExperienceRow | None:
        """One step; a crash on its way ends the ingest."""
        return self._live(lambda: self.open().step(0.0))

    def cut(self) -> ExperienceRow | None:
        """One cut by force; a crash on its way ends the ingest."""
        return self._live(lambda: self.open().cut("Now."))

    def _live(self, turn: Callable[[], ExperienceRow | None]) -> ExperienceRow | None:
        self.bomb.alive = True
        try:
            return turn()
        except Crash:
            self.crash()
            return None
        finally:
            self.bomb.alive = False

    def drain(self) -> list[ExperienceRow]:
        """Step until nothing moves any more."""
        rows = []
        while True:
            before = self._progress()
            row = self.step()
            if row is not None:
                rows.append(row)
            elif self._progress() == before:
                return rows

    def _progress(self) -> tuple[int, ...]:
        ingest = self.open()
        read = sum(int(position) for position in ingest._read.values())
        return read, ingest.pending, ingest.waiting, self.manifest.revision(PIPELINE)

    def finish(self) -> None:
        """Drain, and cut what is left."""
        self.bomb.arm("")
        self.drain()
        self.cut()
        self.drain()

    def state(self) -> stream_status.StreamState:
        with reading(self.engine) as connection:
            return stream_status.read(connection, PIPELINE)

    def stored(self) -> Stored:
        state = self.state()
        if self._stored is not None and self._stored.revision == state.revision:
            return self._stored
        cursors = {name: int(cursor) for name, cursor in self.manifest.cursors(PIPELINE).items()}
        found = self._stored = Stored(
            state.revision, cursors, duplicates=state.duplicates, aged_out=state.aged_out
        )
        for row in self.manifest.experiences(PIPELINE):
            for part in (row.train, row.gate, row.audit):
                found.learnt += self._learnt(part)
        for waiting in self.manifest.waiting(PIPELINE):
            found.waiting += self._alive(waiting)
        found.dead_letters = {
            (letter.partition, int(letter.position))
            for letter in self.manifest.dead_letters(PIPELINE, limit=MESSAGES)
        }
        return found

    def _learnt(self, part: Part) -> list[tuple[str, int, int]]:
        if part.digest not in self._parts:
            records = self.store.records(part.digest, self.schema)
            features = records.features[:, 0].astype(int).tolist()
            rows = zip(records.ids.to_pylist(), features, records.labels.tolist(), strict=True)
            self._parts[part.digest] = list(rows)
        found = self._parts[part.digest]
        assert len(found) == part.rows
        return found

    def _alive(self, part: WaitingPart) -> Iterator[tuple[str, Kind, int]]:
        records = self.store.records(part.digest, self.schema).take(~part.gone)
        assert records.carries is not None
        rows = zip(
            records.ids.to_pylist(),
            records.carries.tolist(),
            records.features[:, 0].astype(int).tolist(),
            records.labels.tolist(),
            strict=True,
        )
        for record_id, carries, features, label in rows:
            yield record_id, CARRIES[carries], label if carries == LABEL_ONLY else features

    def check(self) -> Stored:
        """Every message that an offset has passed is in exactly one place, and no other message is in any."""
        stored = self.stored()
        if stored.revision == self._checked:
            return stored
        self._checked = stored.revision
        passed = [
            message
            for message in self.messages
            if message.position <= stored.cursors.get(message.partition, 0)
        ]
        good = {message.number for message in passed if message.kind != "poison"}
        held = stored.messages
        assert max(Counter(held).values(), default=0) <= 1, "a message is in two places"
        assert set(held) <= good, "a message is kept, and will be read again"
        poison = {(message.partition, message.position) for message in passed if message.kind == "poison"}
        assert poison <= stored.dead_letters, "an offset has passed what is no dead letter"
        assert len(good) - len(held) == stored.duplicates + stored.aged_out, (
            "messages are lost, or counted twice"
        )
        for record_id, features, label in stored.learnt:
            assert self.messages[features].id == self.messages[label].id == record_id
            whole = features == label
            assert self.messages[features].kind == ("complete" if whole else "features")
            assert self.messages[label].kind == ("complete" if whole else "label")
        for record_id, kind, number in stored.waiting:
            assert (self.messages[number].id, self.messages[number].kind) == (record_id, kind)
        return stored


@contextmanager
def environment(**options: Any) -> Iterator[Environment]:
    """A new environment, in memory where possible: so that a property can be tested often."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        made = Environment(Path(folder), **options)
        try:
            yield made
        finally:
            with suppress(sql.exc.InvalidRequestError):
                sql.event.remove(made.engine, "commit", made._committing)
            made.engine.dispose()


@cache
def _template() -> bytes:
    """A database with its tables and nothing in them: to copy it is faster than to make it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        engine = sqlite_engine(path)
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
        engine.dispose()
        return path.read_bytes()


def _fresh_engine(path: Path) -> sql.Engine:
    path.write_bytes(_template())
    return sqlite_engine(path)
