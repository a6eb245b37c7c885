"""The real parts of an ingest, each in a thin shell that lets the bomb know where the process is."""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import sqlalchemy as sql

import streams.ingest
import streams.wire.decode
from streams.base import AnnouncingSource, ForgettingSource, RawBatch, RecordSchema, TrimmedSource
from streams.records import Records
from streams.state.manifest import Committed, Manifest
from streams.store.experiences import ExperienceStore
from streams.store.objects import Data, ObjectInfo, ObjectStore
from tests.chaos.crashes.points import STATEMENT, Bomb

_VERB = re.compile(r"(?:(INSERT) INTO|(UPDATE)|(DELETE) FROM|(SELECT)\b.*?\bFROM)\s+(\w+)", re.DOTALL)


class CrashingFile:
    """A file that is being written, whose bytes come in two steps."""

    def __init__(self, file: BinaryIO, bomb: Bomb) -> None:
        self._file, self._bomb = file, bomb

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        middle = len(view) // 2
        self._file.write(view[:middle])
        self._bomb.reach("file: part written", last=self._file.flush)
        self._file.write(view[middle:])

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()


class CrashingPath(type(Path())):  # type: ignore[misc]
    """A path below the store's folder."""

    bomb: Bomb

    def open(self, mode: str = "r", *rest: Any) -> Any:
        if "x" not in mode:
            return super().open(mode, *rest)
        self.bomb.reach("file: before open")
        file = super().open(mode, *rest)
        self.bomb.reach("file: after open")
        return CrashingFile(file, self.bomb)

    def rename(self, target: Any) -> Any:
        self.bomb.reach("file: before rename")
        found = super().rename(target)
        self.bomb.reach("file: after rename")
        CrashingStore.in_place(self.bomb)
        return found


class CrashingStore(ExperienceStore):
    """Knows how many parts of an experience are in their places."""

    _parts = 0
    _placed = 0

    def write_parts(self, parts: Sequence[Records], schema: RecordSchema) -> list[str]:
        CrashingStore._parts, CrashingStore._placed = len(parts), 0
        return super().write_parts(parts, schema)

    @classmethod
    def in_place(cls, bomb: Bomb) -> None:
        cls._placed += 1
        if cls._placed < cls._parts:
            bomb.reach("files: between parts")


class CrashingObjects:
    """An object store whose writes have a before and an after."""

    def __init__(self, objects: ObjectStore, bomb: Bomb) -> None:
        self._objects, self._bomb = objects, bomb

    @property
    def location(self) -> str:
        return self._objects.location

    def list(self) -> Sequence[ObjectInfo]:
        return self._objects.list()

    def info(self, name: str) -> ObjectInfo:
        return self._objects.info(name)

    def read(self, name: str, start: int, stop: int, *, version: str | None = None) -> bytes:
        return self._objects.read(name, start, stop, version=version)

    def create(self, name: str, data: Data) -> None:
        self._bomb.reach("upload: before")
        self._objects.create(name, data)
        self._bomb.reach("upload: after")

    def replace(self, name: str, data: Data) -> None:
        self._objects.replace(name, data)
        self._bomb.reach("upload: after", detail="upload: after replacing")

    def delete(self, name: str) -> None:
        self._objects.delete(name)


class CrashingManifest(Manifest):
    """The moment after COMMIT, of which the process does not know yet."""

    bomb: Bomb

    def commit(self, *arguments: Any, **named: Any) -> Committed:
        committed = super().commit(*arguments, **named)
        self.bomb.reach("transaction: after commit")
        return committed

    def forget(self, *arguments: Any, **named: Any) -> None:
        super().forget(*arguments, **named)
        self.bomb.reach("forget: after commit")


class CrashingSource:
    """A source with a before and an after of everything that is asked of it."""

    def __init__(self, source: TrimmedSource, bomb: Bomb, sql_points: "SqlPoints") -> None:
        self._source, self._bomb, self._sql_points = source, bomb, sql_points

    def partitions(self) -> Sequence[str]:
        return self._source.partitions()

    def open(self, cursors: Mapping[str, str]) -> None:
        self._source.open(cursors)
        self._bomb.reach("source: opened")

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        self._bomb.reach("poll: before")
        batches = self._source.poll(max_records, timeout_seconds)
        self._bomb.reach("poll: after")
        return batches

    def trim(self, cursors: Mapping[str, str]) -> None:
        self._bomb.reach("trim: before")
        with self._sql_points.trimming():
            self._source.trim(cursors)
        self._bomb.reach("trim: after")

    def arrived(self, cursors: Mapping[str, str]) -> Mapping[str, str]:
        return self._source.arrived(cursors) if isinstance(self._source, AnnouncingSource) else {}

    def forget(self, cursors: Mapping[str, str]) -> list[str]:
        if not isinstance(self._source, ForgettingSource):
            return []
        gone = self._source.forget(cursors)
        if gone:
            self._bomb.reach("forget: before")
        return gone

    def close(self) -> None:
        self._source.close()


class SqlPoints:
    """The boundaries inside of transactions that write."""

    def __init__(self, engine: sql.Engine, bomb: Bomb) -> None:
        self._bomb = bomb
        self._trims = False
        sql.event.listen(engine, "begin", self._begun)
        sql.event.listen(engine, "after_cursor_execute", self._executed)
        sql.event.listen(engine, "commit", self._commits)

    def trimming(self) -> "Trimming":
        return Trimming(self)

    def set_trims(self, trims: bool) -> None:
        self._trims = trims

    def _reach(self, boundary: str, detail: str = "") -> None:
        if self._trims:
            self._bomb.reach("trim: in its transaction", detail=f"trim: {detail or boundary}")
        else:
            self._bomb.reach(boundary, detail=detail)

    def _begun(self, connection: sql.Connection) -> None:
        if _writes(connection):
            self._reach("transaction: begun")

    def _executed(self, connection: sql.Connection, _cursor: object, statement: str, *_rest: object) -> None:
        found = _VERB.search(statement)
        if found is not None and _writes(connection):
            verb = next(word for word in found.groups()[:4] if word)
            self._reach(STATEMENT, f"statement: {verb} {found[5]}")

    def _commits(self, connection: sql.Connection) -> None:
        if _writes(connection):
            self._reach("transaction: before commit")


class Trimming:
    """While it lasts, statements are those of a trim."""

    def __init__(self, points: SqlPoints) -> None:
        self._points = points

    def __enter__(self) -> None:
        self._points.set_trims(True)

    def __exit__(self, *_error: object) -> None:
        self._points.set_trims(False)


def arm(bomb: Bomb) -> None:
    """Let the bomb know of what this process does that no part of ours is asked for. For good: the process is
    one that is to die."""
    CrashingPath.bomb = bomb
    CrashingManifest.bomb = bomb
    sync, decode = os.fsync, streams.wire.decode.decode

    def fsync(descriptor: int) -> None:
        what = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        bomb.reach(f"{what}: before fsync")
        sync(descriptor)
        bomb.reach(f"{what}: after fsync")

    def decoding(*arguments: Any) -> Any:
        bomb.reach("decode: before")
        found = decode(*arguments)
        bomb.reach("decode: after")
        return found

    for owner, name, shell in ((os, "fsync", fsync), (streams.ingest, "decode", decoding)):
        setattr(owner, name, shell)


def _writes(connection: sql.Connection) -> bool:
    return connection.get_execution_options().get("sqlite_begin") != "DEFERRED"
