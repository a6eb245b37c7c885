"""Late labels through the whole loop: in whatever order features and labels come, and whatever crashes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sql

from streams import late_labels
from streams.base import FencedError, RawBatch, RecordSchema, SourceError
from streams.held_out import HeldOut
from streams.ingest import Ingest, IngestConfig
from streams.records import text_column
from streams.split import Split, part_of
from streams.state import status
from streams.state.manifest import ExperienceRow
from streams.triggers.catalog import RecordsTrigger
from tests.support.ingest_environment import JOINED, PIPELINE, Environment, FragileSource

ALL_TRAINED = Split(gate=1e-12, audit=0.0)
WITHIN = 1000.0


def joined(folder: Path, **options: Any) -> Environment:
    return Environment(
        folder, **{"schema": JOINED, "split": ALL_TRAINED, "partitions": ("p", "q"), **options}
    )


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return joined(tmp_path)


def learnt(environment: Environment) -> list[str]:
    return [name for name, _, _ in environment.check().learnt]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("order", [("features", "label"), ("label", "features")])
@pytest.mark.parametrize("partitions", ["pp", "pq", "qp"])
def test_a_record_is_complete_when_features_and_label_came(
    environment: Environment, order: Sequence[Any], partitions: str, restart: bool
) -> None:
    for kind, partition in zip(order, partitions, strict=True):
        for number in range(5):
            environment.send(f"r{number}", kind, partition)
            environment.send(f"{kind}-{number}", "complete", partition)
        if restart:
            environment.cut()  # the unmatched records are stored
            environment.crash()
            environment.check()
    environment.finish()
    names = [f"r{number}" for number in range(5)]
    others = [f"{kind}-{number}" for kind in order for number in range(5)]
    assert sorted(learnt(environment)) == sorted(names + others)
    assert environment.open().waiting == 0
    assert environment.state().duplicates == environment.state().aged_out == 0


def test_groups_keys_and_times_are_those_of_the_features_and_the_label_that_of_the_label(
    tmp_path: Path,
) -> None:
    schema = RecordSchema(
        shape=(1,),
        classes=tuple(f"m{number}" for number in range(9)),
        groups=("site",),
        labels_within_seconds=WITHIN,
    )
    environment = joined(tmp_path, schema=schema)
    environment.send("a", "label", time=1e9 + 5, split_key="of the label")
    environment.send("a", "features", time=1e9 + 1, split_key="of the features", groups={"site": "north"})
    environment.send("b", "features", time=1e9 + 2, groups={"site": "south"})
    environment.step()
    environment.crash()
    environment.send("b", "label", time=1e9 + 9)
    row = environment.cut()
    assert row is not None
    records = environment.store.records(row.train.digest, schema)
    assert records.ids.to_pylist() == ["a", "b"]
    assert records.features[:, 0].tolist() == [1, 2]
    assert records.labels.tolist() == [0, 3]
    assert records.times.tolist() == [1e9 + 1, 1e9 + 2]
    assert records.split_keys.to_pylist() == ["of the features", "b"]
    assert records.groups["site"].to_pylist() == ["north", "south"]
    environment.check()


def test_a_record_lands_in_the_part_of_its_features_key(tmp_path: Path) -> None:
    environment = joined(tmp_path, split=Split(gate=0.4, audit=0.1))
    for number in range(40):
        environment.send(f"r{number}", "label", split_key="the label's key says nothing")
        environment.send(f"r{number}", "features", split_key=f"person-{number}")
    environment.finish()
    for row in environment.manifest.experiences(PIPELINE):
        for name in ("train", "gate", "audit"):
            keys = environment.store.records(getattr(row, name).digest, JOINED).split_keys.to_pylist()
            assert {part_of(key, environment.split) for key in keys} <= {name}
    assert len(learnt(environment)) == 40


@pytest.mark.parametrize("kind", ["features", "label"])
@pytest.mark.parametrize("stored", [False, True])
def test_an_unmatched_record_ages_out_by_event_time(
    environment: Environment, kind: Any, stored: bool
) -> None:
    environment.send("alone", kind, time=1e9)
    environment.send("a", time=1e9 + WITHIN)
    environment.cut()
    if stored:
        environment.crash()
    assert (environment.check().aged_out, environment.open().waiting) == (0, 1), "not too old by a second"
    environment.send("b", time=1e9 + WITHIN + 20)
    environment.cut()
    assert (environment.check().aged_out, environment.open().waiting) == (1, 0)
    assert environment.manifest.waiting(PIPELINE) == []
    environment.crash()
    environment.finish()
    assert (environment.check().aged_out, learnt(environment)) == (1, ["a", "b"])


@pytest.mark.parametrize("kind", ["features", "label"])
def test_without_an_event_time_the_clock_decides(environment: Environment, kind: Any) -> None:
    environment.send("alone", kind)
    environment.send("a")
    environment.cut()
    environment.now += WITHIN
    environment.send("b")
    environment.cut()
    assert environment.check().aged_out == 0
    environment.now += 20
    environment.send("c")
    environment.cut()
    assert (environment.check().aged_out, environment.open().waiting) == (1, 0)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("ahead", ["features", "label"])
def test_nothing_ages_out_because_one_partition_is_read_ahead_of_another(
    environment: Environment, ahead: Any, restart: bool
) -> None:
    """A backlog longer than a record may wait unmatched; one partition has a tenth of the other's records."""
    environment.chunk = 1
    kinds: Sequence[Any] = ("label", "features") if ahead == "label" else ("features", "label")
    for day in range(30):
        time = 1e9 + day * WITHIN
        environment.send(f"{day}", "complete", "q", time=time)
        environment.send(f"late {day}", kinds[1], "q", time=time)
        if day % 10 == 0:
            environment.send(f"late {day}", kinds[0], "p", time=time)
    for _ in range(20):
        environment.step()
        environment.check()
    if restart:
        environment.crash()
    environment.finish()
    assert {f"late {day}" for day in (0, 10, 20)} <= set(learnt(environment))
    assert environment.check().aged_out == 25, "those that stayed unmatched, but for the last two"


class OldSource(FragileSource):
    """What it gives came to the broker long ago, when the ingest was not there."""

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        batches = super().poll(max_records, timeout_seconds)
        return [replace(batch, arrived_at=1e9 - 10 * WITHIN) for batch in batches]


def test_nothing_ages_out_because_the_ingest_was_away(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.ingest_environment.FragileSource", OldSource)
    environment.chunk = 1
    environment.send("late", "features", "p")
    for number in range(10):
        environment.send(f"{number}", "complete", "p")
        environment.send(f"again {number}", "complete", "q")
    environment.send("late", "label", "q")
    environment.finish()
    assert "late" in learnt(environment)
    assert environment.check().aged_out == 0


def test_restarts_do_not_keep_unmatched_records_from_ageing(environment: Environment) -> None:
    """The clock of what waits goes on over a restart, once all that came meanwhile is read."""
    environment.send("alone", "features")
    environment.send("a")
    environment.cut()
    for number in range(4):
        environment.now += 0.3 * WITHIN
        environment.crash()
        environment.send(f"{number}")
        environment.drain()
        environment.now += 0.02 * WITHIN
        environment.cut()
        assert environment.check().aged_out == (number == 3)


def test_what_came_while_the_ingest_was_away_is_read_before_anything_ages_out(
    environment: Environment,
) -> None:
    environment.chunk = 1
    environment.send("late", "features")
    environment.send("a")
    environment.cut()
    environment.crash()
    for number in range(5):
        environment.send(f"{number}", partition="q")
    environment.send("late", "label", "q")
    environment.now += 2 * WITHIN
    environment.finish()
    assert "late" in learnt(environment)
    assert environment.check().aged_out == 0


def test_unmatched_records_age_out_though_nothing_is_cut(
    environment: Environment,
) -> None:
    for number in range(3):
        environment.send(f"{number}", "features")
    environment.drain()
    assert environment.check().aged_out == 0
    environment.now += WITHIN + 1
    environment.drain()
    assert (environment.check().aged_out, environment.open().waiting) == (3, 0)
    assert environment.check().cursors == {"p": 3}, "it is not read again"


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("order", [("features", "label"), ("label", "features")])
@pytest.mark.parametrize("partitions", ["pp", "pq", "qp"])
def test_features_and_labels_too_far_apart_are_never_joined(
    environment: Environment, order: Sequence[Any], partitions: str, restart: bool
) -> None:
    times = {"features": 1e9, "label": 1e9 + WITHIN + 1}
    for kind, partition in zip(order, partitions, strict=True):
        environment.send("apart", kind, partition, time=times[kind])
        environment.send("near", kind, partition, time=min(times[kind], 1e9 + WITHIN))
        if restart:
            environment.cut()
            environment.crash()
    environment.finish()
    environment.send("later", time=1e9 + 3 * WITHIN)
    environment.finish()
    assert (sorted(learnt(environment)), environment.check().aged_out) == (["later", "near"], 2)


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_is_far_ahead_makes_nothing_else_old(environment: Environment, restart: bool) -> None:
    environment.send("wrong", "features", time=environment.now + 1e8)
    environment.send("right", "features", time=environment.now)
    environment.send("a", time=environment.now)
    environment.cut()
    if restart:
        environment.crash()
    environment.now += 10
    environment.send("b", time=environment.now)
    environment.cut()
    assert (environment.check().aged_out, environment.open().waiting) == (0, 2)
    environment.send("right", "label", time=environment.now)
    environment.cut()
    assert "right" in learnt(environment)
    environment.now += WITHIN + 20
    environment.send("c", time=environment.now)
    environment.cut()
    assert (environment.check().aged_out, environment.open().waiting) == (1, 0), (
        "it is too old by the clock that is right"
    )


@pytest.mark.parametrize("kind", ["features", "label"])
@pytest.mark.parametrize("chunk", [1, 100])
def test_an_unmatched_record_that_comes_again_while_it_waits_is_a_duplicate(
    environment: Environment, kind: Any, chunk: int
) -> None:
    environment.chunk = chunk
    for _ in range(3):
        environment.send("a", kind)
    environment.send("b")
    environment.cut()
    environment.crash()
    environment.send("a", kind)
    environment.send("a", "label" if kind == "features" else "features")
    environment.cut()
    stored = environment.check()
    assert (stored.duplicates, learnt(environment)) == (3, ["b", "a"])
    assert {stored.learnt[1][1], stored.learnt[1][2]} == {0, 5}, "the first of them counts"


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("restart", [False, True])
def test_features_or_a_label_that_come_again_after_their_record_was_cut(
    tmp_path: Path, window: int, restart: bool
) -> None:
    environment = joined(tmp_path, window=window)
    environment.send("a", "features")
    environment.send("a", "label")
    environment.cut()
    if restart:
        environment.crash()
    environment.send("a", "features")
    environment.send("b")
    environment.cut()
    stored = environment.check()
    assert stored.duplicates == (1 if window else 0), "without a window nothing is known of it"
    assert environment.open().waiting == (0 if window else 1)
    environment.now += WITHIN + 20
    environment.send("c")
    environment.cut()
    assert environment.check().aged_out == (0 if window else 1)
    assert learnt(environment) == ["a", "b", "c"]


@pytest.mark.parametrize("chunk", [1, 100])
def test_a_record_that_is_dropped_counts_as_many_messages_as_it_had(tmp_path: Path, chunk: int) -> None:
    environment = joined(tmp_path, window=100)
    environment.chunk = chunk
    environment.send("a")
    environment.send("a", "features")
    environment.send("a", "label")
    environment.finish()
    environment.send("b")
    environment.finish()
    assert (learnt(environment), environment.check().duplicates) == (["a", "b"], 2), (
        "counted once the offset passes them"
    )


def test_a_dropped_record_whose_features_and_label_are_on_both_sides_of_a_cut(tmp_path: Path) -> None:
    environment = joined(tmp_path, window=100, trigger=RecordsTrigger(records=2))
    environment.chunk = 100
    for name, kind in (
        ("a", "features"),
        ("b", "complete"),
        ("a", "complete"),
        ("a", "label"),
        ("c", "complete"),
    ):
        environment.send(name, kind)  # type: ignore[arg-type]
    environment.step()
    assert learnt(environment) == ["b", "a"]
    assert environment.check().waiting == [("a", "features", 0)]
    environment.crash()
    environment.finish()
    stored = environment.check()
    assert [name for name, _, _ in stored.learnt] == ["b", "a", "c"]
    assert stored.duplicates + len(stored.waiting) == 2


def test_a_forced_cut_stores_what_waits(environment: Environment) -> None:
    environment.send("a", "features", "p")
    environment.send("b", "label", "q")
    environment.send("c", "complete", "q")
    assert environment.cut() is not None
    stored = environment.check()
    assert stored.cursors == {"p": 1, "q": 2}
    assert sorted(stored.waiting) == [("a", "features", 0), ("b", "label", 1)]
    assert environment.cut() is None
    assert environment.manifest.count_waiting(PIPELINE) == 2
    assert environment.manifest.digests() >= {part.digest for part in environment.manifest.waiting(PIPELINE)}


@pytest.mark.parametrize("restart", [False, True])
def test_many_unmatched_records_are_stored_without_a_cut(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    monkeypatch.setattr(late_labels, "_MAX_UNCOMMITTED", 4)
    environment.trigger = RecordsTrigger(records=100)
    for number in range(10):
        environment.send(f"r{number}", "features")
    for number in range(9, -1, -1):
        environment.send(f"r{number}", "label", "q")
        environment.send(f"c{number}", "complete", "q")
    for _ in range(30):
        environment.step()
        environment.check()
        if restart:
            environment.crash()
    environment.drain()
    assert environment.manifest.experiences(PIPELINE) == []
    assert len(environment.manifest.waiting(PIPELINE)) > 1
    assert environment.open().pending == 20
    environment.finish()
    assert sorted(learnt(environment)) == sorted(f"{kind}{number}" for kind in "rc" for number in range(10))
    assert environment.manifest.waiting(PIPELINE) == []


@pytest.mark.parametrize("kind", ["features", "poison"])
def test_a_stream_of_what_is_kept_nowhere_moves_on(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    monkeypatch.setattr(late_labels, "_MAX_UNCOMMITTED", 10)
    for _ in range(100):
        environment.send("again", kind)
    environment.drain()
    stored = environment.check()
    assert stored.cursors["p"] >= 90
    late = environment.open()._late
    assert late is not None
    assert sum(len(positions) for _, _, positions in late._join._log) < 20
    assert len(late._dropped) < 20


def test_nothing_grows_over_many_cuts(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    environment.window = 10
    environment.trigger = RecordsTrigger(records=4)
    environment.chunk = 7
    sizes = set()
    for turn in range(20):
        for number in range(4):
            environment.send(f"{turn}-{number}", "features")
        for number in range(3, -1, -1):
            environment.send(f"{turn}-{number}", "label", "q")
        environment.send(f"{turn}-0", "label", "q")
        environment.drain()
        if turn >= 5:
            ingest = environment.open()
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
            assert len(environment.manifest.waiting(PIPELINE)) <= 1
            assert sum(len(run[0]) for run in ingest._seen_ids._runs) <= 30
    assert max(map(max, sizes)) <= 4
    assert len(learnt(environment)) == 80


class Refusal:
    """Fails so many times."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.left = error, times

    def reach(self) -> None:
        if self.left:
            self.left -= 1
            raise self.error


def retried(environment: Environment, source: FragileSource, refusal: Refusal, *, in_hook: bool) -> Ingest:
    def also(connection: sql.Connection, row: ExperienceRow) -> None:
        if in_hook:
            refusal.reach()

    return Ingest(
        IngestConfig(
            PIPELINE, environment.schema, RecordsTrigger(records=3), ALL_TRAINED, duplicate_window=50
        ),
        source=source,
        store=environment.store,
        manifest=environment.manifest,
        also=also,
        clock=lambda: environment.now,
    )


@pytest.mark.parametrize("late", [False, True])
def test_a_source_that_cannot_trim_costs_nothing_when_the_step_is_tried_again(
    tmp_path: Path, late: bool
) -> None:
    environment = (
        joined(tmp_path) if late else Environment(tmp_path, split=ALL_TRAINED, partitions=("p", "q"))
    )

    class Untrimmable(FragileSource):
        def trim(self, cursors: Any) -> None:
            refusal.reach()

    for number in range(6):
        if late:
            environment.send(f"r{number}", "features", "p")
            environment.send(f"r{number}", "label", "q")
        else:
            environment.send(f"r{number}", "complete", "pq"[number % 2])
    refusal = Refusal(SourceError("It cannot trim now."), 2)
    ingest = retried(
        environment, Untrimmable(environment.sent, chunk=100, bomb=environment.bomb), refusal, in_hook=False
    )
    for _ in range(8):
        try:
            ingest.step(0.0)
        except SourceError:
            continue
    assert refusal.left == 0
    assert sorted(learnt(environment)) == [f"r{number}" for number in range(6)]


def test_a_commit_that_failed_leaves_the_unmatched_records_as_they_were(environment: Environment) -> None:
    environment.send("old", "features", time=environment.now - 2 * WITHIN)
    environment.send("w", "features", time=environment.now)
    environment.send("r", "complete", time=environment.now)
    environment.cut()
    environment.crash()
    environment.send("w", "label", time=environment.now)
    for number in range(5):
        environment.send(f"r{number}", "complete", time=environment.now)
    refusal = Refusal(LookupError("no queue"), 1)
    source = FragileSource(environment.sent, chunk=100, bomb=environment.bomb)
    ingest = retried(environment, source, refusal, in_hook=True)
    with pytest.raises(LookupError):
        ingest.step(0.0)
    environment.check()
    while ingest.step(0.0) is not None:
        environment.check()
    stored = environment.check()
    assert [name for name, _, _ in stored.learnt] == ["r", "w", *(f"r{number}" for number in range(5))]
    assert (stored.aged_out, stored.duplicates, stored.waiting) == (1, 0, [])


def test_open_classes_never_change_their_meaning(tmp_path: Path) -> None:
    schema = RecordSchema(
        shape=(1,), open_classes=True, max_classes=6, classes=("m0",), labels_within_seconds=WITHIN
    )
    environment = joined(tmp_path, schema=schema, trigger=RecordsTrigger(records=2))
    environment.send("a", "features")  # 0
    environment.send("x", "label", "q")  # class m1
    environment.send("y", "features")
    environment.send("y", "label", "q")  # class m3
    environment.send("z", "complete")  # class m4
    environment.step()
    meanings = [environment.manifest.classes(PIPELINE)]
    for more in ("a", "x", "beyond", "far-beyond"):
        environment.crash()
        environment.send(more, "features" if more == "x" else "label", "p")
        environment.drain()
        environment.cut()
        meanings.append(environment.manifest.classes(PIPELINE))
    for before, after in pairwise(meanings):
        assert after[: len(before)] == before
    names = meanings[-1]
    assert len(names) == 6
    assert names[0] == "m0"
    found: dict[Any, Any] = {}
    for row in environment.manifest.experiences(PIPELINE):
        records = environment.store.records(row.train.digest, schema)
        found |= dict(zip(records.ids.to_pylist(), (names[label] for label in records.labels), strict=True))
    assert found == {"x": "m1", "y": "m3", "z": "m4", "a": "m5"}
    assert environment.manifest.count_dead_letters(PIPELINE) == {"too-many-classes": 1}


def test_features_of_what_waits_are_shown_to_the_trigger_once(environment: Environment) -> None:
    seen: list[float] = []
    environment.held_out = HeldOut([text_column(["held"])])
    environment.send("a", "features")
    environment.send("b", "complete")
    environment.send("held", "features")
    ingest = environment.open()
    watch = ingest._pending._watch
    watch.see_features = lambda features: seen.extend(np.ravel(features).tolist())  # type: ignore[method-assign]
    environment.step()
    environment.step()
    assert seen == [0.0]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("window", [0, 50])
def test_a_held_out_record_whose_features_or_label_wait_is_never_learnt(
    tmp_path: Path, restart: bool, window: int
) -> None:
    environment = joined(tmp_path, window=window)
    for name in "abc":
        environment.send(name, "features")
    environment.step()
    environment.held_out = HeldOut([text_column(["b"])])
    with environment.engine.begin() as connection:
        status.fence(connection, PIPELINE)
    for name in "abcd":
        environment.send(name, "label")
    environment.send("d", "features")
    with pytest.raises(FencedError):
        environment.cut()
    environment.crash()
    if restart:
        environment.step()
        environment.crash()
    row = environment.cut()
    assert row is not None
    ids = environment.store.open(row.train.digest, index=0).record_ids.tolist()
    assert sorted(ids) == ["a", "c", "d"]
    with environment.engine.begin() as connection:
        state = status.read(connection, PIPELINE)
    assert (state.held_out, state.duplicates) == (1, 0)
    assert environment.manifest.count_waiting(PIPELINE) == 0


@pytest.mark.parametrize("window", [0, 50])
def test_held_out_records_are_not_shown_to_the_trigger_and_move_the_offset(
    tmp_path: Path, window: int
) -> None:
    environment = joined(tmp_path, window=window, trigger=RecordsTrigger(records=3))
    environment.held_out = HeldOut([text_column(list("wxyz"))])
    for name in "awxbyzc":
        environment.send(name, "features")
        environment.send(name, "label")
    row = next(row for _ in range(20) if (row := environment.step()) is not None)
    assert row.rows == 3
    ids = [
        name
        for part in (row.train, row.gate, row.audit)
        for name in environment.store.open(part.digest, index=0).record_ids.tolist()
    ]
    assert sorted(ids) == ["a", "b", "c"]
    with environment.engine.begin() as connection:
        state = status.read(connection, PIPELINE)
    assert (state.held_out, state.duplicates) == (4, 0)
    assert environment.manifest.count_waiting(PIPELINE) == 0
    environment.crash()
    assert environment.cut() is None
