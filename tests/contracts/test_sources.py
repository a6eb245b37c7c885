"""What every source in the catalog promises. An entry without a factory here fails."""

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from streams.allowed import Allowed
from streams.base import RecordSchema, Source, SourceConfig
from streams.catalog import SOURCES
from streams.sources.datasets import DIGITS_SCHEMA, DatasetsConfig
from streams.sources.files.config import FilesConfig
from streams.sources.kafka.config import KafkaConfig
from streams.sources.pushed import PushedConfig
from streams.sources.redis.config import RedisConfig
from streams.state.pushed import PushedLog
from streams.wire.decode import decode
from tests.support import kafka_mock, redis_server
from tests.support.stream_parts import SCHEMA, payload, records, sqlite_engine

Read = list[tuple[str, str, str]]


@dataclass(frozen=True)
class Stream:
    """A filled stream: how to build a source over it."""

    kind: str
    config: SourceConfig
    schema: RecordSchema
    engine: sql.Engine

    @property
    def allowed(self) -> Allowed:
        return Allowed(roots=(str(Path(str(self.engine.url.database)).parent),))

    def source(self) -> Source:
        return SOURCES[self.kind].build(
            self.config, pipeline="digits", schema=self.schema, engine=self.engine, allowed=self.allowed
        )


def pushed(engine: sql.Engine) -> Stream:
    for turn, size in enumerate((5, 1, 40, 17)):
        names = [f"{turn}-{index}" for index in range(size)]
        PushedLog(engine).append("digits", SCHEMA, records(names))
    return Stream("pushed", PushedConfig(), SCHEMA, engine)


def datasets(engine: sql.Engine) -> Stream:
    config = DatasetsConfig(protocol="split-digits", seed=5)
    return Stream("datasets", config, DIGITS_SCHEMA, engine)


def redis(engine: sql.Engine, server: redis_server.Server) -> Stream:
    with server.client() as client:
        client.flushall()
        for stream, size in (("north", 23), ("south", 37)):
            for index in range(size):
                client.xadd(stream, {"record": payload(f"{stream}-{index}")})
    return Stream("redis", RedisConfig(url=server.url, streams=("north", "south")), SCHEMA, engine)


def kafka(engine: sql.Engine, cluster: kafka_mock.Cluster) -> Stream:
    topic = f"contract-{uuid.uuid4().hex[:12]}"
    cluster.create(topic, 2)
    for partition, size in enumerate((23, 37)):
        cluster.produce(topic, [payload(f"{partition}-{n}") for n in range(size)], partition=partition)
    config = KafkaConfig(bootstrap_servers=cluster.bootstrap_servers, topic=topic)
    return Stream("kafka", config, SCHEMA, engine)


def files(engine: sql.Engine) -> Stream:
    folder = Path(str(engine.url.database)).parent / "arrived"
    folder.mkdir()
    for turn, size in enumerate((5, 1, 40, 17)):
        lines = [payload(f"{turn}-{index}") + b"\n" for index in range(size)]
        (folder / f"{turn}.ndjson").write_bytes(b"".join(lines))
    return Stream("files", FilesConfig(location=str(folder)), SCHEMA, engine)


FACTORIES: dict[str, Callable[[sql.Engine], Stream]] = {
    "pushed": pushed,
    "datasets": datasets,
    "files": files,
}

SERVED: dict[str, tuple[str, Callable[[sql.Engine, Any], Stream]]] = {
    "kafka": ("kafka_for_all", kafka),
    "redis": ("redis_for_all", redis),
}
"""Sources that need a server: the fixture that runs it, and the factory that fills it."""


@pytest.fixture(scope="module")
def kafka_for_all() -> Iterator[kafka_mock.Cluster]:
    with kafka_mock.cluster() as found:
        yield found


@pytest.fixture(scope="module")
def redis_for_all() -> Iterator[redis_server.Server]:
    with redis_server.server() as found:
        yield found


@pytest.fixture(params=sorted(SOURCES))
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Stream:
    kind = request.param
    engine = sqlite_engine(tmp_path / "holdfast.db")
    if kind in SERVED:
        fixture, factory = SERVED[kind]
        return factory(engine, request.getfixturevalue(fixture))
    assert kind in FACTORIES, f"add a factory for the source {kind!r} to this file"
    return FACTORIES[kind](engine)


def read(source: Source, schema: RecordSchema, *, sizes: Sequence[int]) -> Read:
    """(partition, position, id) of the records of the next polls, at most 60 in all."""
    found: Read = []
    for size in itertools.cycle(sizes):
        batches = source.poll(min(size, 60 - len(found)), 0.0)
        if not batches:
            return found
        for batch in batches:
            decoded = decode(batch, schema)
            assert not decoded.rejected
            ids = decoded.records.ids.tolist()
            found += [(batch.partition, *both) for both in zip(decoded.positions, ids, strict=True)]
        if len(found) >= 60:
            return found
    raise AssertionError("sizes must not be empty")


def by_partition(found: Read) -> dict[str, Read]:
    """A partition is an ordered log; how several of them alternate is not promised."""
    return {name: [entry for entry in found if entry[0] == name] for name in {entry[0] for entry in found}}


def test_the_same_cursor_gives_the_same_records(stream: Stream) -> None:
    source = stream.source()
    source.open({})
    first = read(source, stream.schema, sizes=[60])
    assert len(first) == 60
    source.open({})
    assert by_partition(read(source, stream.schema, sizes=[1, 13, 4])) == by_partition(first)
    again = stream.source()
    again.open({name: "" for name in again.partitions()})
    assert by_partition(read(again, stream.schema, sizes=[7])) == by_partition(first)
    source.close()
    again.close()


def test_resumes_just_after_any_position(stream: Stream) -> None:
    source = stream.source()
    source.open({})
    whole = read(source, stream.schema, sizes=[60])
    source.close()
    for index in range(0, len(whole), 3):
        cursors = {partition: position for partition, position, _ in whole[: index + 1]}
        resumed = stream.source()
        resumed.open(cursors)
        rest = by_partition(read(resumed, stream.schema, sizes=[9]))
        for partition, expected in by_partition(whole[index + 1 :]).items():
            assert rest[partition][: len(expected)] == expected
        resumed.close()


def test_a_poll_keeps_its_bounds_and_says_where_it_began(stream: Stream) -> None:
    source = stream.source()
    source.open({})
    cursors = dict.fromkeys(source.partitions(), "")
    for size in (1, 3, 10, 1, 25):
        batches = source.poll(size, 0.0)
        assert 1 <= sum(len(batch.positions) for batch in batches) <= size
        for batch in batches:
            assert batch.start == cursors[batch.partition]
            cursors[batch.partition] = batch.positions[-1]
    source.close()


def test_reading_does_not_consume(stream: Stream) -> None:
    one, other = stream.source(), stream.source()
    one.open({})
    other.open({})
    found = [by_partition(read(source, stream.schema, sizes=[30])) for source in (one, other)]
    assert found[0] == found[1]
    one.close()
    other.close()


def test_closing_twice_is_allowed(stream: Stream) -> None:
    source = stream.source()
    source.close()
    source.open({})
    source.poll(1, 0.0)
    source.close()
    source.close()


def test_every_kind_names_itself() -> None:
    assert {*FACTORIES, *SERVED} == set(SOURCES)
    for kind, spec in SOURCES.items():
        assert spec.config.model_fields["kind"].default == kind
        assert spec.summary.endswith(".")


def test_a_config_fits_the_schema_of_its_stream_and_can_be_stored(stream: Stream) -> None:
    assert SOURCES[stream.kind].problem(stream.config, stream.schema) is None
    stored = stream.config.model_dump(mode="json")
    assert type(stream.config).model_validate(stored) == stream.config
