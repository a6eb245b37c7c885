"""Several sources read as one: whose partition is whose, whose turn it is, and what an error costs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from streams.base import RawBatch, Source, SourceError, SourceStoppedError
from streams.sources.merged import LABELS, REPLAYS, MergedSource
from streams.sources.pushed import PushedSource
from streams.state.pushed import PushedLog
from tests.support.ingest_environment import PIPELINE
from tests.support.stream_parts import SCHEMA, ListSource, payload, records, sqlite_engine


class Shaky(ListSource):
    """Cannot be read now and then."""

    def __init__(self, payloads: Mapping[str, Sequence[bytes]], *, chunk: int = 1_000_000) -> None:
        super().__init__(payloads, chunk=chunk)
        self.fails = False

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        if self.fails:
            raise SourceError("The broker is away.")
        return super().poll(max_records, timeout_seconds)


class Trimmed(ListSource):
    """Remembers what it was trimmed to."""

    trimmed: Mapping[str, str] = {}

    def trim(self, cursors: Mapping[str, str]) -> None:
        self.trimmed = dict(cursors)


def some(count: int, prefix: str) -> list[bytes]:
    return [payload(f"{prefix}{index}") for index in range(count)]


def found(batches: Sequence[RawBatch]) -> list[tuple[str, str]]:
    return [(batch.partition, json.loads(one)["id"]) for batch in batches for one in batch.payloads]


def test_partitions_carry_the_prefix_of_their_source() -> None:
    merged = MergedSource({"": ListSource({"p": some(2, "m")}), LABELS: ListSource({"p": some(1, "l")})})
    assert merged.partitions() == ["p", "labels:p"]
    merged.open({})
    assert found(merged.poll(10, 0.0)) == [("p", "m0"), ("p", "m1"), ("labels:p", "l0")]
    assert merged.poll(10, 0.0) == []


def test_each_source_is_opened_at_its_own_cursors() -> None:
    merged = MergedSource({"": ListSource({"p": some(3, "m")}), LABELS: ListSource({"p": some(3, "l")})})
    merged.open({"p": "2", "labels:p": "1"})
    assert found(merged.poll(10, 0.0)) == [("p", "m2"), ("labels:p", "l1"), ("labels:p", "l2")]
    merged.open({"labels:p": "3"})
    assert found(merged.poll(10, 0.0)) == [("p", "m0"), ("p", "m1"), ("p", "m2")]


def test_a_poll_keeps_its_bound_and_lets_none_starve() -> None:
    sources = {prefix: ListSource({"p": some(100, prefix)}) for prefix in ("", LABELS, REPLAYS)}
    merged = MergedSource(sources)
    merged.open({})
    asked = [merged.poll(10, 0.0) for _ in range(6)]
    assert all(sum(len(batch.positions) for batch in batches) == 10 for batches in asked)
    turns = [batches[0].partition for batches in asked]
    assert turns == ["p", "labels:p", "replays:p"] * 2


def test_only_those_that_trim_are_trimmed_and_with_their_own_names() -> None:
    main, labels = Trimmed({"p": []}), Trimmed({"p": []})
    merged = MergedSource({"": main, LABELS: labels, REPLAYS: ListSource({"p": []})})
    merged.trim({"p": "5", "labels:p": "7", "replays:p": "9"})
    assert (main.trimmed, labels.trimmed) == ({"p": "5"}, {"p": "7"})


def test_closing_closes_all_of_them() -> None:
    sources = [ListSource({"p": []}), ListSource({"p": []})]
    merged = MergedSource({"": sources[0], LABELS: sources[1]})
    merged.close()
    merged.close()
    assert [source.closed for source in sources] == [2, 2]


@pytest.mark.parametrize("name", ["labels:p", "labels:", "replays:x"])
def test_a_partition_that_looks_like_anothers_is_refused_before_anything_is_read(name: str) -> None:
    merged = MergedSource(
        {"": ListSource({name: some(1, "m")}), LABELS: ListSource({}), REPLAYS: ListSource({})}
    )
    with pytest.raises(SourceStoppedError, match="rename it"):
        merged.open({})


def test_a_partition_that_appears_later_is_held_to_the_same_rule() -> None:
    sent: dict[str, list[bytes]] = {"p": []}
    main = ListSource(sent)
    merged = MergedSource({"": main, LABELS: ListSource({})})
    merged.open({})
    sent["labels:q"] = some(1, "m")
    main.open({})
    with pytest.raises(SourceStoppedError, match="'labels:q' looks like one of another source"):
        merged.poll(10, 0.0)


def test_only_the_source_without_a_prefix_is_held_to_it() -> None:
    merged = MergedSource({"": ListSource({"p": []}), LABELS: ListSource({"labels:p": some(1, "l")})})
    merged.open({})
    assert found(merged.poll(10, 0.0)) == [("labels:labels:p", "l0")]
    merged.open({"labels:labels:p": "1"})
    assert merged.poll(10, 0.0) == []


def test_prefixes_that_cannot_be_told_apart_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="begins with another"):
        MergedSource({"a": ListSource({}), "ab": ListSource({})})


@pytest.mark.parametrize("broken", ["", LABELS])
def test_what_one_source_gave_is_not_lost_when_another_cannot_be_read(broken: str) -> None:
    sources = {"": Shaky({"p": some(40, "m")}, chunk=3), LABELS: Shaky({"p": some(40, "l")}, chunk=3)}
    merged = MergedSource(sources)
    merged.open({})
    sources[broken].fails = True
    read: list[tuple[str, str]] = []
    errors = 0
    for turn in range(60):
        if turn == 10:
            sources[broken].fails = False
        try:
            read += found(merged.poll(10, 0.0))
        except SourceError:
            errors += 1
    assert 1 <= errors <= 10
    assert sorted(read) == sorted(
        [("p", f"m{index}") for index in range(40)] + [("labels:p", f"l{index}") for index in range(40)]
    )


def test_the_first_is_waited_for_when_none_has_anything(tmp_path: Path) -> None:
    engine = sqlite_engine(tmp_path / "holdfast.db")
    main: Source = PushedSource(PIPELINE, SCHEMA, engine=engine)
    merged = MergedSource({"": main, LABELS: ListSource({"p": []})})
    merged.open({})
    assert merged.poll(10, 0.05) == []
    PushedLog(engine).append(PIPELINE, SCHEMA, records(["a", "b"]))
    (batch,) = merged.poll(10, 0.05)
    assert (batch.partition, list(batch.positions)) == ("pushed", ["1:1", "1:2"])
    engine.dispose()
