"""What every source in the catalog promises. An entry without a factory here fails."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sql

from streams.base import RecordSchema, Source, SourceConfig
from streams.catalog import SOURCES
from streams.datasets import DIGITS_SCHEMA, DatasetsConfig
from streams.files_config import FilesConfig
from streams.pushed import PushedConfig, PushedLog
from streams.wire import decode
from tests.stream_parts import SCHEMA, payload, records, sqlite_engine

Read = list[tuple[str, str, str]]


@dataclass(frozen=True)
class Stream:
    """A filled stream: how to build a source over it."""

    kind: str
    config: SourceConfig
    schema: RecordSchema
    engine: sql.Engine

    def source(self) -> Source:
        return SOURCES[self.kind].build(
            self.config, pipeline="digits", schema=self.schema, engine=self.engine
        )


def pushed(engine: sql.Engine) -> Stream:
    for turn, size in enumerate((5, 1, 40, 17)):
        names = [f"{turn}-{place}" for place in range(size)]
        PushedLog(engine).append("digits", SCHEMA, records(names))
    return Stream("pushed", PushedConfig(), SCHEMA, engine)


def datasets(engine: sql.Engine) -> Stream:
    config = DatasetsConfig(protocol="split-digits", seed=5)
    return Stream("datasets", config, DIGITS_SCHEMA, engine)


def files(engine: sql.Engine) -> Stream:
    folder = Path(str(engine.url.database)).parent / "arrived"
    folder.mkdir()
    for turn, size in enumerate((5, 1, 40, 17)):
        lines = [payload(f"{turn}-{place}") + b"\n" for place in range(size)]
        (folder / f"{turn}.ndjson").write_bytes(b"".join(lines))
    return Stream("files", FilesConfig(location=str(folder)), SCHEMA, engine)


FACTORIES: dict[str, Callable[[sql.Engine], Stream]] = {
    "pushed": pushed,
    "datasets": datasets,
    "files": files,
}


@pytest.fixture(params=sorted(SOURCES))
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Stream:
    kind = request.param
    assert kind in FACTORIES, f"add a factory for the source {kind!r} to this file"
    return FACTORIES[kind](sqlite_engine(tmp_path / "holdfast.db"))


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


def test_the_same_cursor_gives_the_same_records(stream: Stream) -> None:
    source = stream.source()
    source.open({})
    first = read(source, stream.schema, sizes=[60])
    assert len(first) == 60
    source.open({})
    assert read(source, stream.schema, sizes=[1, 13, 4]) == first
    again = stream.source()
    again.open({name: "" for name in again.partitions()})
    assert read(again, stream.schema, sizes=[7]) == first


def test_resumes_just_after_any_position(stream: Stream) -> None:
    source = stream.source()
    source.open({})
    whole = read(source, stream.schema, sizes=[60])
    for place in range(0, len(whole), 3):
        seen = whole[: place + 1]
        cursors = {partition: position for partition, position, _ in seen}
        resumed = stream.source()
        resumed.open(cursors)
        rest = read(resumed, stream.schema, sizes=[9])
        assert rest[: len(whole) - len(seen)] == whole[len(seen) :]


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


def test_reading_does_not_consume(stream: Stream) -> None:
    one, other = stream.source(), stream.source()
    one.open({})
    other.open({})
    assert read(one, stream.schema, sizes=[30]) == read(other, stream.schema, sizes=[30])


def test_closing_twice_is_allowed(stream: Stream) -> None:
    source = stream.source()
    source.close()
    source.open({})
    source.poll(1, 0.0)
    source.close()
    source.close()


def test_every_kind_names_itself(stream: Stream) -> None:
    assert stream.config.kind == stream.kind
    assert stream.config.misfit(stream.schema) is None
    assert SOURCES[stream.kind].summary.endswith(".")


def test_every_source_has_a_factory_here() -> None:
    assert set(FACTORIES) == set(SOURCES)
