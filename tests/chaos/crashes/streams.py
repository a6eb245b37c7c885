"""The four real streams of a crash run: how they are declared, how records are sent into them, and what they
hold in the end, told from outside.

Sending a chunk twice sends it once: a producer that was killed sends its last chunk again.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import sqlalchemy as sql

from service.state.database import connect
from streams.sources.merged import LABELS
from streams.sources.redis.cursor import RedisCursor
from streams.state.pushed import PUSHED_PARTITION, PushedCursor, PushedLog
from streams.state.tables import PUSHED_BATCHES
from streams.wire.decode import decode_json
from tests.chaos.crashes.files import FilesStream, Partition
from tests.chaos.crashes.records import CHUNK, LANES, Item, Variant, chunk, lane_items, schema_of
from tests.support import kafka_mock

Kind = Literal["files", "pushed", "redis", "kafka"]
KINDS: tuple[Kind, ...] = ("files", "pushed", "redis", "kafka")
PIPELINE = "crashing"

_FIRST_MS = 1_700_000_000_000
"""Entries of Redis get ids of our own, so that one that was sent twice is refused."""
_TRIES_SECONDS = 30.0


class Stream(Protocol):
    """One of the streams."""

    killable: bool
    """Whether the producer may be killed while it sends."""

    def declared(self) -> dict[str, Any]:
        """The fields of the pipeline's declaration that say where records come from."""
        ...

    def send(self, lane: int, number: int) -> None:
        """Send one chunk of a lane durably; sent again, it is there once."""
        ...

    def partitions(self, chunks: int) -> Mapping[str, Partition]:
        """All partitions, after so many chunks of every lane."""
        ...


@dataclass
class PushedStream:
    """Requests with keys. What does not fit is refused at the door, as the API does, and never stored; with
    labels apart, these come as files."""

    database: str
    variant: Variant
    folder: Path
    killable: bool = True
    _engine: sql.Engine | None = field(default=None, repr=False)

    def declared(self) -> dict[str, Any]:
        source = {"source": {"kind": "pushed"}}
        return source | ({"label_source": self._labels().config()} if self.variant == "late" else {})

    def send(self, lane: int, number: int) -> None:
        if self.variant == "late" and lane == 1:
            self._labels().send(lane, number)
            return
        if self._engine is None:
            self._engine = connect(self.database)
        schema = schema_of(self.variant)
        payloads = [one.json for one in chunk(self.variant, lane, number)]
        decoded = decode_json(payloads, schema, positions=[str(place) for place in range(len(payloads))])
        PushedLog(self._engine).append(PIPELINE, schema, decoded.records, request_key=f"{lane}/{number}")

    def partitions(self, chunks: int) -> Mapping[str, Partition]:
        found = {PUSHED_PARTITION: self._pushed()}
        if self.variant == "late":
            labels = self._labels().partitions(chunks)
            found |= {f"{LABELS}{name}": partition for name, partition in labels.items()}
        return found

    def _labels(self) -> FilesStream:
        return FilesStream(self.folder, self.variant, lanes=(1,))

    def _pushed(self) -> Partition:
        """In the order in which the requests were stored, which the log alone decides."""
        engine = connect(self.database)
        query = sql.select(PUSHED_BATCHES.c.sequence, PUSHED_BATCHES.c.request_key)
        with engine.begin() as connection:
            rows = connection.execute(query.order_by(PUSHED_BATCHES.c.sequence)).all()
        engine.dispose()
        items: list[Item] = []
        firsts: dict[int, int] = {}
        for sequence, key in rows:
            firsts[sequence] = len(items)
            lane, number = map(int, key.split("/"))
            items += [one for one in chunk(self.variant, lane, number) if one.record]

        def place_of(cursor: str) -> int:
            place = PushedCursor.parse(cursor)
            return firsts[place.sequence] + place.row if place.sequence else 0

        return Partition(items, [one.json for one in items], place_of)


@dataclass
class RedisStream:
    """A Redis stream a lane."""

    url: str
    variant: Variant
    killable: bool = True
    _client: Any = field(default=None, repr=False)

    def declared(self) -> dict[str, Any]:
        return {"source": {"kind": "redis", "url": self.url, "streams": [_key(0), _key(1)], "trim": True}}

    def send(self, lane: int, number: int) -> None:
        from redis.exceptions import RedisError

        deadline = time.monotonic() + _TRIES_SECONDS
        while True:
            try:
                answers = self._send(lane, number)
                refused = [answer for answer in answers if isinstance(answer, Exception)]
                if all("equal or smaller" in str(answer) for answer in refused):
                    return
                raise refused[0]
            except RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _send(self, lane: int, number: int) -> list[Any]:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        if self._client is None:
            self._client = Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=10)
        commands = self._client.pipeline(transaction=False)
        for place, one in enumerate(chunk(self.variant, lane, number), number * CHUNK):
            commands.xadd(_key(lane), {"record": one.json}, id=f"{_FIRST_MS + place}-0")
        answers: list[Any] = commands.execute(raise_on_error=False)
        return answers

    def partitions(self, chunks: int) -> Mapping[str, Partition]:
        return {
            _key(lane): _lane(self.variant, lane, chunks, lambda cursor: RedisCursor.parse(cursor).added or 0)
            for lane in LANES
        }


@dataclass
class KafkaStream:
    """A partition a lane. The producer lives as long as the run: without transactions, one that is killed
    cannot know what of its last messages was taken."""

    servers: str
    topic: str
    variant: Variant
    killable: bool = False
    _producer: Any = field(default=None, repr=False)

    def declared(self) -> dict[str, Any]:
        return {"source": {"kind": "kafka", "bootstrap_servers": self.servers, "topic": self.topic}}

    def send(self, lane: int, number: int) -> None:
        from confluent_kafka import Producer

        if self._producer is None:
            settings = {"bootstrap.servers": self.servers, "acks": "all", "linger.ms": 0}
            self._producer = Producer({**settings, "enable.idempotence": True})
        failures: list[Any] = []

        def confirmed(error: Any, _message: Any) -> None:
            if error is not None:
                failures.append(error)

        for one in chunk(self.variant, lane, number):
            self._producer.produce(self.topic, one.json, partition=lane, on_delivery=confirmed)
        if self._producer.flush(_TRIES_SECONDS) or failures:
            raise RuntimeError(f"Kafka did not take chunk {number} of lane {lane}: {failures[:1]}")

    def partitions(self, chunks: int) -> Mapping[str, Partition]:
        return {
            str(lane): _lane(self.variant, lane, chunks, lambda cursor: int(cursor or 0)) for lane in LANES
        }


def make_topic(cluster: kafka_mock.Cluster, topic: str) -> None:
    cluster.create(topic, len(LANES))


def _key(lane: int) -> str:
    return f"{PIPELINE}-{lane}"


def _lane(variant: Variant, lane: int, chunks: int, place_of: Callable[[str], int]) -> Partition:
    items = lane_items(variant, lane, chunks)
    return Partition(items, [one.json for one in items], place_of)
