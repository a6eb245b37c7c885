"""Late labels through the whole loop: in whatever order the halves come, and whatever dies meanwhile."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sql

from streams import late_labels
from streams.base import RawBatch, RecordSchema, SourceError
from streams.ingest import Ingest, IngestConfig
from streams.split import Split, part_of
from streams.state.manifest import ExperienceRow
from streams.triggers.catalog import RecordsTrigger
from tests.support.ingest_environment import JOINED, PIPELINE, FragileSource, World

ALL_TRAINED = Split(gate=1e-12, audit=0.0)
WITHIN = 1000.0


def joined(folder: Path, **options: Any) -> World:
    return World(folder, **{"schema": JOINED, "split": ALL_TRAINED, "partitions": ("p", "q"), **options})


@pytest.fixture
def place(tmp_path: Path) -> World:
    return joined(tmp_path)


def learnt(place: World) -> list[str]:
    return [name for name, _, _ in place.check().learnt]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("order", [("features", "label"), ("label", "features")])
@pytest.mark.parametrize("partitions", ["pp", "pq", "qp"])
def test_a_record_is_complete_when_both_halves_came(
    place: World, order: Sequence[Any], partitions: str, restart: bool
) -> None:
    for kind, partition in zip(order, partitions, strict=True):
        for number in range(5):
            place.send(f"r{number}", kind, partition)
            place.send(f"{kind}-{number}", "complete", partition)
        if restart:
            place.cut()  # the halves are stored
            place.crash()
            place.check()
    place.finish()
    names = [f"r{number}" for number in range(5)]
    others = [f"{kind}-{number}" for kind in order for number in range(5)]
    assert sorted(learnt(place)) == sorted(names + others)
    assert place.open().waiting == 0
    assert place.state().duplicates == place.state().aged_out == 0


def test_groups_keys_and_times_are_those_of_the_features_and_the_label_that_of_the_label(
    tmp_path: Path,
) -> None:
    schema = RecordSchema(
        shape=(1,),
        classes=tuple(f"m{number}" for number in range(9)),
        groups=("site",),
        labels_within_seconds=WITHIN,
    )
    place = joined(tmp_path, schema=schema)
    place.send("a", "label", time=1e9 + 5, split_key="of the label")
    place.send("a", "features", time=1e9 + 1, split_key="of the features", groups={"site": "north"})
    place.send("b", "features", time=1e9 + 2, groups={"site": "south"})
    place.step()
    place.crash()
    place.send("b", "label", time=1e9 + 9)
    row = place.cut()
    assert row is not None
    records = place.store.records(row.train.digest, schema)
    assert records.ids.to_pylist() == ["a", "b"]
    assert records.features[:, 0].tolist() == [1, 2]
    assert records.labels.tolist() == [0, 3]
    assert records.times.tolist() == [1e9 + 1, 1e9 + 2]
    assert records.split_keys.to_pylist() == ["of the features", "b"]
    assert records.groups["site"].to_pylist() == ["north", "south"]
    place.check()


def test_a_record_lands_in_the_part_of_its_features_key(tmp_path: Path) -> None:
    place = joined(tmp_path, split=Split(gate=0.4, audit=0.1))
    for number in range(40):
        place.send(f"r{number}", "label", split_key="the label's key says nothing")
        place.send(f"r{number}", "features", split_key=f"person-{number}")
    place.finish()
    for row in place.manifest.experiences(PIPELINE):
        for name in ("train", "gate", "audit"):
            keys = place.store.records(getattr(row, name).digest, JOINED).split_keys.to_pylist()
            assert {part_of(key, place.split) for key in keys} <= {name}
    assert len(learnt(place)) == 40


@pytest.mark.parametrize("kind", ["features", "label"])
@pytest.mark.parametrize("stored", [False, True])
def test_a_half_whose_other_half_never_comes_ages_out_by_event_time(
    place: World, kind: Any, stored: bool
) -> None:
    place.send("alone", kind, time=1e9)
    place.send("a", time=1e9 + WITHIN)
    place.cut()
    if stored:
        place.crash()
    assert (place.check().aged_out, place.open().waiting) == (0, 1), "not too old by a second"
    place.send("b", time=1e9 + WITHIN + 20)
    place.cut()
    assert (place.check().aged_out, place.open().waiting) == (1, 0)
    assert place.manifest.waiting(PIPELINE) == []
    place.crash()
    place.finish()
    assert (place.check().aged_out, learnt(place)) == (1, ["a", "b"])


@pytest.mark.parametrize("kind", ["features", "label"])
def test_without_an_event_time_the_clock_decides(place: World, kind: Any) -> None:
    place.send("alone", kind)
    place.send("a")
    place.cut()
    place.now += WITHIN
    place.send("b")
    place.cut()
    assert place.check().aged_out == 0
    place.now += 20
    place.send("c")
    place.cut()
    assert (place.check().aged_out, place.open().waiting) == (1, 0)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("ahead", ["features", "label"])
def test_nothing_ages_out_because_one_partition_is_read_ahead_of_another(
    place: World, ahead: Any, restart: bool
) -> None:
    """A backlog of more time than a half may wait: one partition holds a tenth of what the other does."""
    place.chunk = 1
    halves: Sequence[Any] = ("label", "features") if ahead == "label" else ("features", "label")
    for day in range(30):
        time = 1e9 + day * WITHIN
        place.send(f"{day}", "complete", "q", time=time)
        place.send(f"late {day}", halves[1], "q", time=time)
        if day % 10 == 0:
            place.send(f"late {day}", halves[0], "p", time=time)
    for _ in range(20):
        place.step()
        place.check()
    if restart:
        place.crash()
    place.finish()
    assert {f"late {day}" for day in (0, 10, 20)} <= set(learnt(place))
    assert place.check().aged_out == 25, "those whose other half never came, but for the last two"


class OldSource(FragileSource):
    """What it gives came to the broker long ago, when the ingest was not there."""

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        batches = super().poll(max_records, timeout_seconds)
        return [replace(batch, arrived_at=1e9 - 10 * WITHIN) for batch in batches]


def test_nothing_ages_out_because_the_ingest_was_away(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.ingest_environment.FragileSource", OldSource)
    place.chunk = 1
    place.send("late", "features", "p")
    for number in range(10):
        place.send(f"{number}", "complete", "p")
        place.send(f"again {number}", "complete", "q")
    place.send("late", "label", "q")
    place.finish()
    assert "late" in learnt(place)
    assert place.check().aged_out == 0


def test_restarts_do_not_keep_halves_alive(place: World) -> None:
    """The clock of what waits goes on over a restart, once all that came meanwhile is read."""
    place.send("alone", "features")
    place.send("a")
    place.cut()
    for number in range(4):
        place.now += 0.3 * WITHIN
        place.crash()
        place.send(f"{number}")
        place.drain()
        place.now += 0.02 * WITHIN
        place.cut()
        assert place.check().aged_out == (number == 3)


def test_what_came_while_the_ingest_was_away_is_read_before_anything_ages_out(place: World) -> None:
    place.chunk = 1
    place.send("late", "features")
    place.send("a")
    place.cut()
    place.crash()
    for number in range(5):
        place.send(f"{number}", partition="q")
    place.send("late", "label", "q")
    place.now += 2 * WITHIN
    place.finish()
    assert "late" in learnt(place)
    assert place.check().aged_out == 0


def test_what_never_gets_its_other_half_ages_out_though_nothing_is_cut(place: World) -> None:
    for number in range(3):
        place.send(f"{number}", "features")
    place.drain()
    assert place.check().aged_out == 0
    place.now += WITHIN + 1
    place.drain()
    assert (place.check().aged_out, place.open().waiting) == (3, 0)
    assert place.check().cursors == {"p": 3}, "it is not read again"


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("order", [("features", "label"), ("label", "features")])
@pytest.mark.parametrize("partitions", ["pp", "pq", "qp"])
def test_halves_that_are_too_far_apart_never_meet(
    place: World, order: Sequence[Any], partitions: str, restart: bool
) -> None:
    times = {"features": 1e9, "label": 1e9 + WITHIN + 1}
    for kind, partition in zip(order, partitions, strict=True):
        place.send("apart", kind, partition, time=times[kind])
        place.send("near", kind, partition, time=min(times[kind], 1e9 + WITHIN))
        if restart:
            place.cut()
            place.crash()
    place.finish()
    place.send("later", time=1e9 + 3 * WITHIN)
    place.finish()
    assert (sorted(learnt(place)), place.check().aged_out) == (["later", "near"], 2)


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_is_far_ahead_makes_nothing_else_old(place: World, restart: bool) -> None:
    place.send("wrong", "features", time=place.now + 1e8)
    place.send("right", "features", time=place.now)
    place.send("a", time=place.now)
    place.cut()
    if restart:
        place.crash()
    place.now += 10
    place.send("b", time=place.now)
    place.cut()
    assert (place.check().aged_out, place.open().waiting) == (0, 2)
    place.send("right", "label", time=place.now)
    place.cut()
    assert "right" in learnt(place)
    place.now += WITHIN + 20
    place.send("c", time=place.now)
    place.cut()
    assert (place.check().aged_out, place.open().waiting) == (1, 0), (
        "it is too old by the clock that is right"
    )


@pytest.mark.parametrize("kind", ["features", "label"])
@pytest.mark.parametrize("chunk", [1, 100])
def test_a_half_that_comes_again_while_it_waits_is_a_duplicate(place: World, kind: Any, chunk: int) -> None:
    place.chunk = chunk
    for _ in range(3):
        place.send("a", kind)
    place.send("b")
    place.cut()
    place.crash()
    place.send("a", kind)
    place.send("a", "label" if kind == "features" else "features")
    place.cut()
    books = place.check()
    assert (books.duplicates, learnt(place)) == (3, ["b", "a"])
    assert {books.learnt[1][1], books.learnt[1][2]} == {0, 5}, "the first of them counts"


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("restart", [False, True])
def test_a_half_that_comes_again_after_its_record_was_cut(tmp_path: Path, window: int, restart: bool) -> None:
    place = joined(tmp_path, window=window)
    place.send("a", "features")
    place.send("a", "label")
    place.cut()
    if restart:
        place.crash()
    place.send("a", "features")
    place.send("b")
    place.cut()
    books = place.check()
    assert books.duplicates == (1 if window else 0), "without a window nothing is known of it"
    assert place.open().waiting == (0 if window else 1)
    place.now += WITHIN + 20
    place.send("c")
    place.cut()
    assert place.check().aged_out == (0 if window else 1)
    assert learnt(place) == ["a", "b", "c"]


@pytest.mark.parametrize("chunk", [1, 100])
def test_a_record_that_is_dropped_counts_as_many_messages_as_it_had(tmp_path: Path, chunk: int) -> None:
    place = joined(tmp_path, window=100)
    place.chunk = chunk
    place.send("a")
    place.send("a", "features")
    place.send("a", "label")
    place.finish()
    place.send("b")
    place.finish()
    assert (learnt(place), place.check().duplicates) == (["a", "b"], 2), "counted once the offset passes them"


def test_a_dropped_record_whose_halves_lie_on_both_sides_of_a_cut(tmp_path: Path) -> None:
    place = joined(tmp_path, window=100, trigger=RecordsTrigger(records=2))
    place.chunk = 100
    for name, kind in (
        ("a", "features"),
        ("b", "complete"),
        ("a", "complete"),
        ("a", "label"),
        ("c", "complete"),
    ):
        place.send(name, kind)  # type: ignore[arg-type]
    place.step()
    assert learnt(place) == ["b", "a"]
    assert place.check().waiting == [("a", "features", 0)]
    place.crash()
    place.finish()
    books = place.check()
    assert [name for name, _, _ in books.learnt] == ["b", "a", "c"]
    assert books.duplicates + len(books.waiting) == 2


def test_a_forced_cut_stores_what_waits(place: World) -> None:
    place.send("a", "features", "p")
    place.send("b", "label", "q")
    place.send("c", "complete", "q")
    assert place.cut() is not None
    books = place.check()
    assert books.cursors == {"p": 1, "q": 2}
    assert sorted(books.waiting) == [("a", "features", 0), ("b", "label", 1)]
    assert place.cut() is None
    assert place.manifest.count_waiting(PIPELINE) == 2
    assert place.manifest.digests() >= {part.digest for part in place.manifest.waiting(PIPELINE)}


@pytest.mark.parametrize("restart", [False, True])
def test_many_halves_are_stored_without_a_cut(
    place: World, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    monkeypatch.setattr(late_labels, "_MAX_UNCOMMITTED", 4)
    place.trigger = RecordsTrigger(records=100)
    for number in range(10):
        place.send(f"r{number}", "features")
    for number in range(9, -1, -1):
        place.send(f"r{number}", "label", "q")
        place.send(f"c{number}", "complete", "q")
    for _ in range(30):
        place.step()
        place.check()
        if restart:
            place.crash()
    place.drain()
    assert place.manifest.experiences(PIPELINE) == []
    assert len(place.manifest.waiting(PIPELINE)) > 1
    assert place.open().pending == 20
    place.finish()
    assert sorted(learnt(place)) == sorted(f"{kind}{number}" for kind in "rc" for number in range(10))
    assert place.manifest.waiting(PIPELINE) == []


@pytest.mark.parametrize("kind", ["features", "poison"])
def test_a_stream_of_what_is_kept_nowhere_moves_on(
    place: World, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    monkeypatch.setattr(late_labels, "_MAX_UNCOMMITTED", 10)
    for _ in range(100):
        place.send("again", kind)
    place.drain()
    books = place.check()
    assert books.cursors["p"] >= 90
    late = place.open()._late
    assert late is not None
    assert sum(len(positions) for _, _, positions in late._join._log) < 20
    assert len(late._dropped) < 20


def test_nothing_grows_over_many_cuts(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    place.window = 10
    place.trigger = RecordsTrigger(records=4)
    place.chunk = 7
    sizes = set()
    for turn in range(20):
        for number in range(4):
            place.send(f"{turn}-{number}", "features")
        for number in range(3, -1, -1):
            place.send(f"{turn}-{number}", "label", "q")
        place.send(f"{turn}-0", "label", "q")
        place.drain()
        if turn >= 5:
            ingest = place.open()
            late = ingest._late
            assert late is not None
            sizes.add(
                (
                    ingest.waiting,
                    len(late._join._unstored),
                    len(late._join._log),
                    len(late._dropped),
                    len(late._dropped_pairs),
                    len(ingest._pending._chunks),
                )
            )
            assert len(place.manifest.waiting(PIPELINE)) <= 1
            assert sum(len(run[0]) for run in ingest._seen_ids._runs) <= 30
    assert max(map(max, sizes)) <= 4
    assert len(learnt(place)) == 80


class Refusal:
    """Fails so many times."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.left = error, times

    def reach(self) -> None:
        if self.left:
            self.left -= 1
            raise self.error


def retried(place: World, source: FragileSource, refusal: Refusal, *, in_hook: bool) -> Ingest:
    def also(connection: sql.Connection, row: ExperienceRow) -> None:
        if in_hook:
            refusal.reach()

    return Ingest(
        IngestConfig(PIPELINE, place.schema, RecordsTrigger(records=3), ALL_TRAINED, duplicate_window=50),
        source=source,
        store=place.store,
        manifest=place.manifest,
        also=also,
        clock=lambda: place.now,
    )


@pytest.mark.parametrize("late", [False, True])
def test_a_source_that_cannot_trim_costs_nothing_when_the_step_is_tried_again(
    tmp_path: Path, late: bool
) -> None:
    place = joined(tmp_path) if late else World(tmp_path, split=ALL_TRAINED, partitions=("p", "q"))

    class Untrimmable(FragileSource):
        def trim(self, cursors: Any) -> None:
            refusal.reach()

    for number in range(6):
        if late:
            place.send(f"r{number}", "features", "p")
            place.send(f"r{number}", "label", "q")
        else:
            place.send(f"r{number}", "complete", "pq"[number % 2])
    refusal = Refusal(SourceError("It cannot trim now."), 2)
    ingest = retried(place, Untrimmable(place.sent, chunk=100, bomb=place.bomb), refusal, in_hook=False)
    for _ in range(8):
        try:
            ingest.step(0.0)
        except SourceError:
            continue
    assert refusal.left == 0
    assert sorted(learnt(place)) == [f"r{number}" for number in range(6)]


def test_a_commit_that_failed_leaves_the_halves_as_they_were(place: World) -> None:
    place.send("old", "features", time=place.now - 2 * WITHIN)
    place.send("w", "features", time=place.now)
    place.send("r", "complete", time=place.now)
    place.cut()
    place.crash()
    place.send("w", "label", time=place.now)
    for number in range(5):
        place.send(f"r{number}", "complete", time=place.now)
    refusal = Refusal(LookupError("no queue"), 1)
    source = FragileSource(place.sent, chunk=100, bomb=place.bomb)
    ingest = retried(place, source, refusal, in_hook=True)
    with pytest.raises(LookupError):
        ingest.step(0.0)
    place.check()
    while ingest.step(0.0) is not None:
        place.check()
    books = place.check()
    assert [name for name, _, _ in books.learnt] == ["r", "w", *(f"r{number}" for number in range(5))]
    assert (books.aged_out, books.duplicates, books.waiting) == (1, 0, [])


def test_open_classes_never_change_their_meaning(tmp_path: Path) -> None:
    schema = RecordSchema(
        shape=(1,), open_classes=True, max_classes=6, classes=("m0",), labels_within_seconds=WITHIN
    )
    place = joined(tmp_path, schema=schema, trigger=RecordsTrigger(records=2))
    place.send("a", "features")  # 0
    place.send("x", "label", "q")  # class m1
    place.send("y", "features")
    place.send("y", "label", "q")  # class m3
    place.send("z", "complete")  # class m4
    place.step()
    meanings = [place.manifest.classes(PIPELINE)]
    for more in ("a", "x", "beyond", "far-beyond"):
        place.crash()
        place.send(more, "features" if more == "x" else "label", "p")
        place.drain()
        place.cut()
        meanings.append(place.manifest.classes(PIPELINE))
    for before, after in pairwise(meanings):
        assert after[: len(before)] == before
    names = meanings[-1]
    assert len(names) == 6
    assert names[0] == "m0"
    found: dict[Any, Any] = {}
    for row in place.manifest.experiences(PIPELINE):
        records = place.store.records(row.train.digest, schema)
        found |= dict(zip(records.ids.to_pylist(), (names[label] for label in records.labels), strict=True))
    assert found == {"x": "m1", "y": "m3", "z": "m4", "a": "m5"}
    assert place.manifest.count_dead_letters(PIPELINE) == {"too-many-classes": 1}


def test_features_of_what_waits_are_shown_to_the_trigger_once(place: World) -> None:
    seen: list[float] = []
    place.send("a", "features")
    place.send("b", "complete")
    ingest = place.open()
    watch = ingest._pending._watch
    watch.see_features = lambda features: seen.extend(np.ravel(features).tolist())  # type: ignore[method-assign]
    place.step()
    place.step()
    assert seen == [0.0]
