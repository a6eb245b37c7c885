"""The data side: from bytes to committed experiences, against bare loops timed in the same run.

Records have 20 float features, an id, a label and a time. "One core" is held by pinning the process. Each
ratio is of two medians of the same run, taken in turn.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from service.state.database import connect, migrate
from streams.base import LazyTexts, RawBatch, RecordSchema, Source, WireName
from streams.ingest import Ingest, IngestConfig
from streams.records import Records, text_column
from streams.split import Split
from streams.state.manifest import Manifest
from streams.store.experiences import ExperienceStore
from streams.triggers.catalog import RecordsTrigger
from streams.wire.decode import decode_json, encode_batch
from tests.bench.measure import Measured

FEATURES = 20
SCHEMA = RecordSchema(shape=(FEATURES,), classes=tuple(str(digit) for digit in range(10)))
ROUNDS = 5
JSON_RECORDS = 400_000
ARROW_RECORDS = 4_000_000
ARROW_ROWS = 100_000
PER_EXPERIENCE = 100_000
ARROW_PER_EXPERIENCE = 1_000_000
BROKER_RECORDS = 120_000
KAFKA_PARTITIONS = 12
"""The mock keeps 5 MiB a partition."""
MEMORY_RECORDS = 10_000_000
HTTP_REQUESTS, HTTP_CALLERS = 100, 2


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


def some_records(count: int, *, first: int = 0, dtype: str = "float32") -> Records:
    draw = np.random.default_rng(first)
    features = (
        draw.normal(size=(count, FEATURES))
        if dtype == "float32"
        else draw.integers(0, 256, (count, FEATURES))
    )
    ids = text_column([f"r{place:09d}" for place in range(first, first + count)])
    return Records(
        ids=ids,
        features=features.astype(dtype),
        labels=draw.integers(0, 10, count),
        times=np.full(count, np.nan),
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


def ingest_seconds(
    folder: Path,
    source: Source,
    *,
    records: int,
    per_experience: int,
    schema: RecordSchema = SCHEMA,
    at_cut: Callable[[int], None] = lambda done: None,
) -> float:
    """From opening the source to the last commit, on SQLite that survives a power loss."""
    engine = connect(f"sqlite:///{folder / 'bench.db'}")
    migrate(engine)
    started = time.perf_counter()
    ingest = Ingest(
        IngestConfig("bench", schema, RecordsTrigger(records=per_experience), Split()),
        source=source,
        store=ExperienceStore(folder / "experiences"),
        manifest=Manifest(engine),
    )
    done = 0
    while done + per_experience <= records:
        row = ingest.step(0.0)
        if row is not None:
            done += row.rows
            at_cut(done)
    ingest.cut("The end.")
    seconds = time.perf_counter() - started
    ingest.close()
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


def arrow_figures(dtype: Literal["float32", "uint8"] = "float32") -> dict[str, float]:
    schema = RecordSchema(shape=(FEATURES,), classes=SCHEMA.classes, dtype=dtype)
    payloads = [
        encode_batch(some_records(ARROW_ROWS, first=place * ARROW_ROWS, dtype=dtype), schema)
        for place in range(4)
    ]
    seconds, disk = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
            source = MemorySource(payloads, records=ARROW_RECORDS, wire="arrow", rows=ARROW_ROWS)
            seconds.append(
                ingest_seconds(
                    Path(folder),
                    source,
                    schema=schema,
                    records=ARROW_RECORDS,
                    per_experience=ARROW_PER_EXPERIENCE,
                )
            )
        disk.append(durable_write_rate(len(payloads[0]) // ARROW_ROWS))
    rate = ARROW_RECORDS / statistics.median(seconds)
    return {"rate": rate, "of_disk": rate / statistics.median(disk)}


def durable_write_rate(record_bytes: int) -> float:
    """Records a second that the disk takes at most: the same bytes in as many files, written and synced, and
    nothing else. Not held to a goal: it tells what the rate beside it could be."""
    block = os.urandom(record_bytes * ARROW_ROWS)
    started = time.perf_counter()
    for _ in range(ARROW_RECORDS // ARROW_PER_EXPERIENCE):
        with tempfile.NamedTemporaryFile(prefix="holdfast-bench-") as file:
            for _ in range(ARROW_PER_EXPERIENCE // ARROW_ROWS):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    return ARROW_RECORDS / (time.perf_counter() - started)


def redis_figures() -> dict[str, float]:
    """The whole of ingest over Redis Streams, against a loop of XREAD and the same decoding, in turn."""
    from redis import Redis

    from streams.sources.redis.config import RedisConfig
    from streams.sources.redis.source import RedisSource
    from tests.support import redis_server

    payloads = some_json(BROKER_RECORDS)
    whole, bare = [], []
    with redis_server.server() as server:
        with server.client() as client:
            for start in range(0, len(payloads), 1000):
                pipe = client.pipeline(transaction=False)
                for payload in payloads[start : start + 1000]:
                    pipe.xadd("bench", {"record": payload})
                pipe.execute()
        for _ in range(ROUNDS):
            with Redis.from_url(server.url) as client:
                bare.append(_seconds(partial(_bare_redis, client, len(payloads))))
            whole.append(_whole_seconds(RedisSource(RedisConfig(url=server.url, streams=("bench",)))))
    return {
        "ratio": statistics.median(bare) / statistics.median(whole),
        "rate": len(payloads) / statistics.median(whole),
    }


def _bare_redis(client: Any, records: int) -> None:
    last, seen = b"0-0", 0
    while seen < records:
        found: Any = client.xread({"bench": last}, count=5000)
        entries = _entries(found)
        last = entries[-1][0]
        decode_json(
            [fields[b"record"] for _, fields in entries], SCHEMA, positions=[name for name, _ in entries]
        )
        seen += len(entries)


def _entries(found: Any) -> Any:
    """Of the one stream; newer clients answer with a dict of lists of lists, older ones with pairs."""
    if isinstance(found, dict):
        return next(iter(found.values()))[0]
    return found[0][1]


def kafka_figures() -> dict[str, float]:
    """The whole of ingest over librdkafka's mock cluster, against a bare consumer and the same decoding."""
    from confluent_kafka import Consumer, TopicPartition

    from streams.sources.kafka.config import KafkaConfig
    from streams.sources.kafka.source import KafkaSource
    from tests.support import kafka_mock

    payloads = some_json(BROKER_RECORDS)
    share = len(payloads) // KAFKA_PARTITIONS
    whole, bare = [], []
    with kafka_mock.cluster() as cluster:
        cluster.create("bench", KAFKA_PARTITIONS)
        for partition in range(KAFKA_PARTITIONS):
            cluster.produce(
                "bench", payloads[partition * share : (partition + 1) * share], partition=partition
            )

        def bare_loop() -> None:
            consumer = Consumer(
                {
                    "bootstrap.servers": cluster.bootstrap_servers,
                    "group.id": "bare",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "error",
                }
            )
            consumer.assign([TopicPartition("bench", place, 0) for place in range(KAFKA_PARTITIONS)])
            seen = 0
            while seen < share * KAFKA_PARTITIONS:
                messages = consumer.consume(5000, 0.1)
                values = [message.value() for message in messages if message.error() is None]
                decode_json(values, SCHEMA, positions=[""] * len(values))
                seen += len(values)
            consumer.close()

        for _ in range(ROUNDS):
            bare.append(_seconds(bare_loop))
            config = KafkaConfig(bootstrap_servers=cluster.bootstrap_servers, topic="bench")
            whole.append(_whole_seconds(KafkaSource(config, group="whole")))
    return {
        "ratio": statistics.median(bare) / statistics.median(whole),
        "rate": len(payloads) / statistics.median(whole),
    }


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _whole_seconds(source: Source) -> float:
    """Of opening the source and of ingesting all it holds into one committed experience after the other."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        return ingest_seconds(
            Path(folder), source, records=BROKER_RECORDS, per_experience=BROKER_RECORDS // 3
        )


def gather_figures() -> dict[str, float]:
    """Random batches of 256 rows of a stored experience of 60,000 x 784 uint8, against numpy in memory."""
    draw = np.random.default_rng(0)
    schema = RecordSchema(shape=(784,), classes=SCHEMA.classes, dtype="uint8")
    ids = text_column([str(place) for place in range(60_000)])
    features = draw.integers(0, 256, (60_000, 784), dtype=np.uint8)
    records = Records(ids, features, np.zeros(60_000, np.int64), np.full(60_000, np.nan), ids, {})
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        store = ExperienceStore(Path(folder))
        stored = store.open(store.write(records, schema), index=0).inputs
        batches = draw.permutation(60_000)[: 60_000 // 256 * 256].reshape(-1, 256)
        seconds: dict[str, list[float]] = {"stored": [], "memory": []}
        for _ in range(10 * ROUNDS):
            for name, inputs in (("stored", stored), ("memory", features)):
                seconds[name].append(_seconds(partial(_gather, inputs, batches)))
    return {"ratio": statistics.median(seconds["memory"]) / statistics.median(seconds["stored"])}


def _gather(inputs: NDArray[Any], batches: NDArray[np.int64]) -> None:
    for batch in batches:
        inputs[batch]


def memory_figures() -> dict[str, float]:
    """Resident memory after 10 million JSON records against that after one million, at the same moment of a
    cut; the largest of what was seen in between."""
    payloads = some_json(100_000)
    process = psutil.Process()
    seen: list[int] = []
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        source = MemorySource(payloads, records=MEMORY_RECORDS, wire="json")
        ingest_seconds(
            Path(folder),
            source,
            records=MEMORY_RECORDS,
            per_experience=PER_EXPERIENCE,
            at_cut=lambda done: seen.append(process.memory_info().rss) if done >= 1_000_000 else None,
        )
    return {"growth": max(seen) / seen[0], "megabytes": seen[0] / 2**20}


def http_figures() -> dict[str, float]:
    """Records pushed over HTTP to a real API process, 1,000 a request, durable before each answer."""
    from concurrent.futures import ThreadPoolExecutor

    import httpx

    from tests.bench.bench_loop import started_api

    lines = some_json(1000)
    body = b"\n".join(lines)
    rates = []
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder, started_api(Path(folder)) as url:
        spec = {
            "name": "bench",
            "schema": {"shape": [FEATURES], "classes": list(SCHEMA.classes)},
            "trigger": {"records": 5_000_000},
            "strategy": {"name": "naive"},
        }
        assert httpx.post(f"{url}/v1/pipelines", json=spec).status_code == 201

        def send(requests: int) -> None:
            with httpx.Client(base_url=url, timeout=60) as client:
                for _ in range(requests):
                    answer = client.post(
                        "/v1/pipelines/bench/records",
                        content=body,
                        headers={"Content-Type": "application/x-ndjson"},
                    )
                    assert answer.status_code == 202, answer.text

        send(20)
        for _ in range(ROUNDS):
            with ThreadPoolExecutor(HTTP_CALLERS) as callers:
                seconds = _seconds(lambda: list(callers.map(send, [HTTP_REQUESTS] * HTTP_CALLERS)))  # type: ignore[arg-type]
            rates.append(HTTP_CALLERS * HTTP_REQUESTS * len(lines) / seconds)
    return {"rate": statistics.median(rates)}


FIGURES: Mapping[str, Callable[[], dict[str, float]]] = {
    "json": json_figures,
    "arrow-float32": arrow_figures,
    "arrow-uint8": partial(arrow_figures, "uint8"),
    "redis": redis_figures,
    "kafka": kafka_figures,
    "gather": gather_figures,
    "memory": memory_figures,
    "http": http_figures,
}


def measured(name: str, *, cores: int) -> dict[str, float]:
    """The figures of one part, in a process of its own that is pinned to so many cores."""
    command = [sys.executable, "-m", "tests.bench.bench_streams", name, str(cores)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run() -> list[Measured]:
    cores = len(os.sched_getaffinity(0))
    text = measured("json", cores=1)
    wide, narrow = measured("arrow-float32", cores=cores), measured("arrow-uint8", cores=cores)
    redis, kafka = measured("redis", cores=cores), measured("kafka", cores=cores)
    memory = measured("memory", cores=cores)
    return [
        Measured("JSON of 20 features to experiences, one core", text["rate"], "records/s", 200_000, ">="),
        Measured("the same, of bare decoding to Arrow", text["ratio"], "ratio", 0.8, ">="),
        Measured("Arrow of 20 float32 to experiences", wide["rate"], "records/s", 5_000_000, ">="),
        Measured("Arrow of 20 uint8 to experiences", narrow["rate"], "records/s", 5_000_000, ">="),
        Measured("Redis to experiences, of bare XREAD", redis["ratio"], "ratio", 0.8, ">="),
        Measured("Kafka mock to experiences, of a bare consumer", kafka["ratio"], "ratio", 0.8, ">="),
        Measured(
            "batches of 256, of numpy in memory", measured("gather", cores=1)["ratio"], "ratio", 0.9, ">="
        ),
        Measured("memory at 10 million records, of 1 million", memory["growth"], "ratio", 1.1, "<="),
        Measured(
            "pushed over HTTP, 1,000 a request",
            measured("http", cores=cores)["rate"],
            "records/s",
            50_000,
            ">=",
        ),
    ]


if __name__ == "__main__":
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[2])]))
    sys.stdout.write(json.dumps(FIGURES[sys.argv[1]]()) + "\n")
