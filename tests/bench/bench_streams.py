"""The data side: from bytes to committed experiences, against bare loops timed in the same run.

Records have 20 float features, an id, a label and a time. "One core" is held by pinning the process. Each
ratio is of two medians of the same run, taken in turn.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from service.database import connect, migrate
from streams.base import LazyTexts, RawBatch, RecordSchema, WireName
from streams.experiences import ExperienceStore
from streams.ingest import Ingest
from streams.manifest import Manifest
from streams.records import Records, text_column
from streams.split import Split
from streams.triggers import RecordsTrigger
from streams.wire import encode_batch

FEATURES = 20
SCHEMA = RecordSchema(shape=(FEATURES,), classes=tuple(str(digit) for digit in range(10)))
ROUNDS = 5
JSON_RECORDS = 400_000
ARROW_RECORDS = 4_000_000
ARROW_ROWS = 100_000
PER_EXPERIENCE = 100_000


class MemorySource:
    """Payloads in memory, given over and over until `records` were given: what a source costs at least."""

    def __init__(self, payloads: Sequence[bytes], *, records: int, wire: WireName, rows: int = 1) -> None:
        self._payloads = payloads
        self._records = records
        self._wire = wire
        self._rows = rows
        self._given = 0

    def partitions(self) -> Sequence[str]:
        return ["memory"]

    def open(self, cursors: Mapping[str, str]) -> None:
        self._given = int(cursors.get("memory", "") or 0)

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        count = min(max_records, self._records - self._given)
        if self._rows > 1:
            # One payload a poll, in as many steps as the caller wants.
            count = min(count, self._rows - self._given % self._rows)
        if count <= 0:
            return []
        start, self._given = self._given, self._given + count
        first = start // self._rows % len(self._payloads)
        payloads = (
            [self._payloads[first]]
            if self._rows > 1
            else [self._payloads[place % len(self._payloads)] for place in range(start, start + count)]
        )
        positions = LazyTexts(str, range(start + 1, start + count + 1))
        skip = start % self._rows if self._rows > 1 else 0
        return [RawBatch("memory", str(start or ""), payloads, positions, wire=self._wire, skip=skip)]

    def close(self) -> None:
        return None


def some_records(count: int, *, first: int = 0) -> Records:
    draw = np.random.default_rng(first)
    ids = text_column([f"r{place:09d}" for place in range(first, first + count)])
    return Records(
        ids=ids,
        features=draw.normal(size=(count, FEATURES)).astype(np.float32),
        labels=draw.integers(0, 10, count),
        times=np.full(count, 1.7e9),
        split_keys=ids,
        groups={},
    )


def some_json(count: int) -> list[bytes]:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(count, FEATURES)).round(6).tolist()
    labels = draw.integers(0, 10, count).tolist()
    return [
        json.dumps(
            {"id": f"r{place:09d}", "features": row, "label": str(label), "time": 1.7e9 + place}
        ).encode()
        for place, (row, label) in enumerate(zip(features, labels, strict=True))
    ]


def ingest_seconds(folder: Path, source: MemorySource, *, records: int, per_experience: int) -> float:
    """From the first poll to the last commit, on SQLite that survives a power loss."""
    engine = connect(f"sqlite:///{folder / 'bench.db'}")
    migrate(engine)
    ingest = Ingest(
        "bench",
        SCHEMA,
        source=source,
        trigger=RecordsTrigger(records=per_experience),
        split=Split(),
        store=ExperienceStore(folder / "experiences"),
        manifest=Manifest(engine),
    )
    started = time.perf_counter()
    done = 0
    while done < records:
        row = ingest.step(0.0)
        done += row.rows if row else 0
    seconds = time.perf_counter() - started
    engine.dispose()
    return seconds


class BareRecord(msgspec.Struct, gc=False):
    id: str
    features: list[float]
    label: str
    time: float


def bare_decoding_seconds(payloads: Sequence[bytes]) -> float:
    """msgspec to Arrow and nothing else: no check of a value, no split, no file, no commit."""
    decoder = msgspec.json.Decoder(BareRecord)
    started = time.perf_counter()
    for start in range(0, len(payloads), 65_536):
        rows = [decoder.decode(payload) for payload in payloads[start : start + 65_536]]
        values = np.fromiter(
            chain.from_iterable(map(attrgetter("features"), rows)), np.float32, len(rows) * FEATURES
        )
        pa.record_batch(
            {
                "id": pa.array([row.id for row in rows]),
                "features": pa.FixedSizeListArray.from_arrays(pa.array(values), FEATURES),
                "label": pa.array([int(row.label) for row in rows]),
                "time": pa.array([row.time for row in rows]),
            }
        )
    return time.perf_counter() - started


def json_figures() -> dict[str, float]:
    """Pinned to one core: bytes to committed experiences, and the bare loop, in turn."""
    payloads = some_json(JSON_RECORDS)
    whole, bare = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
            source = MemorySource(payloads, records=len(payloads), wire="json")
            whole.append(
                ingest_seconds(Path(folder), source, records=len(payloads), per_experience=PER_EXPERIENCE)
            )
        bare.append(bare_decoding_seconds(payloads))
    rate = len(payloads) / statistics.median(whole)
    return {"rate": rate, "ratio": statistics.median(bare) / statistics.median(whole)}


def arrow_figures() -> dict[str, float]:
    payloads = [
        encode_batch(some_records(ARROW_ROWS, first=place * ARROW_ROWS), SCHEMA) for place in range(4)
    ]
    seconds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
            source = MemorySource(payloads, records=ARROW_RECORDS, wire="arrow", rows=ARROW_ROWS)
            seconds.append(
                ingest_seconds(Path(folder), source, records=ARROW_RECORDS, per_experience=1_000_000)
            )
    return {"rate": ARROW_RECORDS / statistics.median(seconds)}


if __name__ == "__main__":
    FIGURES: Mapping[str, Callable[[], dict[str, float]]] = {"json": json_figures, "arrow": arrow_figures}
    name, cores = sys.argv[1], int(sys.argv[2])
    os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:cores]))
    sys.stdout.write(json.dumps(FIGURES[name]()) + "\n")
