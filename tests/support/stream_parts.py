"""Parts that tests of the data side share: a real database, and a source of JSON payloads in memory."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from streams.base import RawBatch, RecordSchema
from streams.records import Records
from streams.state.manifest import METADATA
from streams.wire.decode import decode_json

SCHEMA = RecordSchema(shape=(2,), classes=("down", "up"))


def sqlite_engine(path: Path, *, busy_milliseconds: int = 30_000) -> sql.Engine:
    """SQLite as the service opens it: WAL, and transactions that lock at once unless they only read."""
    engine = sql.create_engine(f"sqlite:///{path}")

    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin too late; the listener below does it
        for pragma in ("journal_mode=WAL", f"busy_timeout={busy_milliseconds}"):
            connection.execute(f"PRAGMA {pragma}")

    def begin(connection: sql.Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    sql.event.listen(engine, "connect", prepare)
    sql.event.listen(engine, "begin", begin)
    METADATA.create_all(engine)
    return engine


def payload(name: str, **changes: Any) -> bytes:
    """One good JSON record of `SCHEMA`."""
    return json.dumps({"id": name, "features": [0.5, 1.5], "label": "up"} | changes).encode()


def records(names: Sequence[str]) -> Records:
    """Good records of `SCHEMA`."""
    return decode_json([payload(name) for name in names], SCHEMA, positions=list(names)).records


class ListSource:
    """Payloads in memory, by partition; a poll gives at most `chunk` of each."""

    def __init__(self, payloads: Mapping[str, Sequence[bytes]], *, chunk: int = 1_000_000) -> None:
        self._payloads = payloads
        self._chunk = chunk
        self._offsets: dict[str, int] = {}
        self.closed = 0

    def partitions(self) -> Sequence[str]:
        return sorted(self._payloads)

    def open(self, cursors: Mapping[str, str]) -> None:
        self._offsets = {name: int(cursors.get(name) or 0) for name in self._payloads}

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        batches = []
        for name, start in self._offsets.items():
            stop = min(start + self._chunk, start + max_records, len(self._payloads[name]))
            max_records -= stop - start
            if start < stop:
                self._offsets[name] = stop
                positions = [str(index + 1) for index in range(start, stop)]
                cursor = str(start) if start else ""
                batches.append(RawBatch(name, cursor, self._payloads[name][start:stop], positions))
        if not batches:
            time.sleep(timeout_seconds)
        return batches

    def close(self) -> None:
        self.closed += 1
