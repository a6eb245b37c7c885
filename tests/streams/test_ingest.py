"""The ingest loop: exact cuts, every record once, splits that hold, poison put aside."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sql
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from streams.allowed import Allowed
from streams.base import DataLostError, FencedError, RecordSchema, Source
from streams.held_out import HeldOut
from streams.ingest import Ingest, IngestConfig
from streams.records import Records, text_column
from streams.sources.files.config import FilesConfig
from streams.sources.files.source import FilesSource
from streams.sources.pushed import PushedSource
from streams.split import Split, part_of
from streams.state import status
from streams.state.manifest import ExperienceRow, Manifest
from streams.state.pushed import PushedLog
from streams.store.experiences import ExperienceStore
from streams.triggers.catalog import RecordsTrigger
from tests.support.real_data import elec2, mnist_test
from tests.support.stream_parts import SCHEMA, ListSource, payload, records, sqlite_engine

Features = NDArray[np.float32] | NDArray[np.uint8]
ANYWHERE = Allowed(roots=("/",))
PARTS = ("train", "gate", "audit")
TABLE = RecordSchema(columns=("a", "b"), classes=("down", "up"))
NONE_HELD = HeldOut()
NO_HOLDOUT = Split(gate=1e-12, audit=0.0)  # as good as none: a gate of 0 is refused


class Environment:
    """A database and a store, on which ingests are opened one after the other."""

    def __init__(self, folder: Path) -> None:
        self.engine = sqlite_engine(folder / "holdfast.db")
        self.manifest = Manifest(self.engine)
        self.store = ExperienceStore(folder / "experiences")
        self.queued: list[int] = []

    def ingest(
        self,
        source: Source,
        *,
        count: int,
        schema: RecordSchema = SCHEMA,
        split: Split | None = None,
        clock: Callable[[], float] = time.time,
        duplicate_window: int = 0,
        held_out: HeldOut = NONE_HELD,
    ) -> Ingest:
        def also(connection: sql.Connection, row: ExperienceRow) -> None:
            self.queued.append(row.index)

        return Ingest(
            IngestConfig(
                "digits",
                schema,
                RecordsTrigger(records=count),
                split or Split(),
                duplicate_window=duplicate_window,
            ),
            source=source,
            store=self.store,
            manifest=self.manifest,
            clock=clock,
            also=also,
            held_out=lambda: held_out,
        )

    def pushed(self, *, count: int) -> Ingest:
        return self.ingest(PushedSource("digits", SCHEMA, engine=self.engine), count=count)

    def push(self, names: Sequence[str]) -> None:
        PushedLog(self.engine).append("digits", SCHEMA, records(names))

    def parts(self) -> list[dict[str, list[str]]]:
        """Record ids of each part of each experience."""
        return [
            {
                name: self.store.open(getattr(row, name).digest, index=row.index).record_ids.tolist()
                for name in PARTS
            }
            for row in self.manifest.experiences("digits")
        ]

    def ids_held_out(self) -> int:
        """Records that were dropped because a golden set holds their id."""
        with self.engine.begin() as connection:
            return status.read(connection, "digits").held_out

    def ids(self) -> list[str]:
        return [name for parts in self.parts() for part in parts.values() for name in part]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def names(count: int, prefix: str = "r") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def payloads(count: int, prefix: str = "r") -> list[bytes]:
    return [payload(name) for name in names(count, prefix)]


def drain(ingest: Ingest) -> list[ExperienceRow]:
    """Step until nothing moves."""
    rows, pending = [], -1
    while True:
        row = ingest.step(0.0)
        if row is not None:
            rows.append(row)
        elif ingest.pending == pending:
            return rows
        pending = ingest.pending


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("chunk", [1, 7, 1_000])
def test_held_out_records_that_are_sent_again_count_towards_no_cut(
    environment: Environment, chunk: int, window: int
) -> None:
    held = HeldOut([text_column(names(30, "gold"))])
    sent = [*payloads(30, "gold"), *payloads(15), *payloads(30, "gold"), *payloads(25)[15:]]
    source = ListSource({"p": [*sent, *payloads(30, "gold")]}, chunk=chunk)
    ingest = environment.ingest(source, count=20, duplicate_window=window, held_out=held)
    (row,) = [row for _ in range(150) if (row := ingest.step(0.0)) is not None]
    assert row.rows == 20
    assert sorted(environment.ids()) == sorted(names(20))
    assert environment.ids_held_out() == 60
    assert ingest.pending == 5
    row_of_rest = ingest.cut("asked for")
    assert row_of_rest is not None
    assert row_of_rest.rows == 5
    assert environment.manifest.cursors("digits") == {"p": "85"}
    # What came after the last record is settled by itself once nothing of the partition is pending.
    ingest.step(0.0)
    assert environment.manifest.cursors("digits") == {"p": "115"}
    assert environment.ids_held_out() == 90


@pytest.mark.parametrize("chunk", [1, 7, 1_000])
def test_the_offset_moves_past_held_out_records_alone(environment: Environment, chunk: int) -> None:
    held = HeldOut([text_column(names(30, "gold"))])
    source = ListSource({"p": payloads(30, "gold")}, chunk=chunk)
    ingest = environment.ingest(source, count=20, held_out=held)
    assert [ingest.step(0.0) for _ in range(40)] == [None] * 40
    assert ingest.cut("asked for") is None
    assert environment.manifest.cursors("digits") == {"p": "30"}
    assert environment.ids_held_out() == 30
    again = environment.ingest(source, count=20, held_out=held)
    again.step(0.0)
    assert environment.ids_held_out() == 30


@pytest.mark.parametrize("chunk", [1, 7, 1_000])
def test_cuts_exactly_the_count_however_polls_fall(environment: Environment, chunk: int) -> None:
    ingest = environment.ingest(ListSource({"p": payloads(95)}, chunk=chunk), count=20)
    rows = drain(ingest)
    assert [row.rows for row in rows] == [20, 20, 20, 20]
    assert [row.index for row in rows] == [0, 1, 2, 3] == environment.queued
    assert [row.positions["p"].end for row in rows] == ["20", "40", "60", "80"]
    assert rows[0].cut_reason == "20 records have arrived."
    assert sorted(environment.ids()) == sorted(names(80))
    assert ingest.pending == 15


def test_a_restart_gives_the_same_slices(environment: Environment, tmp_path: Path) -> None:
    sent = {"p": payloads(100)}
    digests = []
    for _ in range(5):
        ingest = environment.ingest(ListSource(sent, chunk=33), count=20)
        row = ingest.step(0.0) or ingest.step(0.0)
        assert row is not None
        digests.append(row.train.digest)
        ingest.close()
    (tmp_path / "straight").mkdir()
    straight = Environment(tmp_path / "straight")
    assert [row.train.digest for row in drain(straight.ingest(ListSource(sent), count=20))] == digests


def test_a_part_is_fixed_by_the_split_key(environment: Environment) -> None:
    sent = [payload(f"{turn}-{key}", split_key=f"person-{key}") for turn in range(3) for key in range(40)]
    drain(environment.ingest(ListSource({"p": sent}), count=40))
    found: dict[str, set[str]] = {}
    for parts in environment.parts():
        for part, members in parts.items():
            for name in members:
                found.setdefault(name.split("-")[1], set()).add(part)
    assert len(found) == 40
    assert all(len(parts) == 1 for parts in found.values())
    assert {part for parts in found.values() for part in parts} == set(PARTS)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1), st.floats(0.01, 0.49), st.floats(0, 0.49))
def test_a_part_never_depends_on_the_moment(key: str, gate: float, audit: float) -> None:
    split = Split(gate=gate, audit=audit)
    assert part_of(key, split) == part_of(key, split) in PARTS


def test_shares_are_what_was_asked_for() -> None:
    found = Counter(part_of(name, Split(gate=0.25, audit=0.05)) for name in names(20_000))
    assert abs(found["gate"] / 20_000 - 0.25) < 0.01
    assert abs(found["audit"] / 20_000 - 0.05) < 0.005
    assert part_of("anything", NO_HOLDOUT) == "train"


@pytest.mark.parametrize(
    "shares", [{"gate": 0.6, "audit": 0.4}, {"gate": -0.1}, {"gate": 1.0}, {"test": 0.1}]
)
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Split.model_validate(shares)


def test_a_pipeline_without_a_holdout_is_refused() -> None:
    with pytest.raises(ValidationError, match="gate must be above 0: without a holdout"):
        Split(gate=0.0)


def test_poison_becomes_a_dead_letter_and_its_neighbours_live(environment: Environment) -> None:
    sent = payloads(50)
    for position in (3, 10, 49):
        sent[position] = b"poison"
    ingest = environment.ingest(ListSource({"p": sent}), count=20)
    assert [row.rows for row in drain(ingest)] == [20, 20]
    letters = environment.manifest.dead_letters("digits")
    assert {(letter.partition, letter.position, letter.payload) for letter in letters} == {
        ("p", position, b"poison") for position in ("4", "11", "50")
    }
    again = environment.ingest(ListSource({"p": sent}), count=20)
    drain(again)
    assert len(environment.manifest.dead_letters("digits")) == 3, "read again, stored once"
    assert again.pending == ingest.pending == 7


def test_dead_letters_do_not_wait_for_a_cut(environment: Environment) -> None:
    ingest = environment.ingest(ListSource({"p": [b"poison"] * 10, "q": [payload("a"), b"x"]}), count=1_000)
    assert ingest.step(0.0) is None
    assert len(environment.manifest.dead_letters("digits")) == 11
    assert environment.manifest.cursors("digits") == {"p": "10"}, "q has a record that is not yet cut"
    assert ingest.pending == 1


def test_a_forced_cut_takes_everything_the_source_holds(environment: Environment) -> None:
    environment.push(names(30))
    ingest = environment.pushed(count=1_000)
    assert ingest.step(0.0) is None
    environment.push(names(25, "late"))
    row = ingest.cut("Asked for by a person.")
    assert row is not None
    assert (row.rows, row.cut_reason, ingest.pending) == (55, "Asked for by a person.", 0)
    assert environment.manifest.pending_records("digits") == 0
    assert ingest.cut("Again.") is None


def test_an_experience_has_something_to_train_on(environment: Environment) -> None:
    held = [name for name in names(200) if part_of(name, Split()) != "train"][:5]
    trained = [name for name in names(200) if part_of(name, Split()) == "train"][:2]
    environment.push(held)
    ingest = environment.pushed(count=2)
    assert ingest.step(0.0) is None
    assert ingest.cut("Now.") is None
    assert ingest.pending == 5
    environment.push(trained)
    row = ingest.step(0.0)
    assert row is not None
    assert (row.train.rows, row.rows, ingest.pending) == (1, 6, 1)


def test_two_ingests_of_a_pipeline_fence_each_other(environment: Environment) -> None:
    sent = {"p": payloads(100)}
    slow, fast = (environment.ingest(ListSource(sent), count=10) for _ in range(2))
    assert slow.step(0.0) is not None
    with pytest.raises(FencedError):
        fast.step(0.0)
    fast = environment.ingest(ListSource(sent), count=10)
    drain(fast)
    with pytest.raises(FencedError):
        slow.step(0.0)
    assert sorted(environment.ids()) == sorted(names(100))


def test_what_another_ingest_has_trimmed_is_fenced_off_and_not_lost(environment: Environment) -> None:
    for turn in range(6):
        environment.push(names(10, f"{turn}-"))
    slow = environment.pushed(count=15)
    assert slow.step(0.0) is not None
    drain(environment.pushed(count=15))
    with pytest.raises(FencedError):
        slow.step(0.0)

    class LateSource(PushedSource):
        """Another process is faster between the look at the cursors and the opening."""

        def open(self, cursors: Mapping[str, str]) -> None:
            for turn in range(6):
                environment.push(names(10, f"more-{turn}-"))
            drain(environment.pushed(count=15))
            super().open(cursors)

    with pytest.raises(FencedError):
        environment.ingest(LateSource("digits", SCHEMA, engine=environment.engine), count=15)


def test_what_is_lost_is_lost_while_nobody_else_commits(environment: Environment) -> None:
    environment.push(names(10, "0-"))
    ingest = environment.pushed(count=15)
    assert ingest.step(0.0) is None
    environment.push(names(10, "1-"))
    with environment.engine.begin() as connection:
        connection.execute(sql.text("DELETE FROM pushed_batches WHERE sequence = 2"))
    with pytest.raises(DataLostError):
        ingest.step(0.0)
    with pytest.raises(DataLostError):
        environment.pushed(count=15)


def test_a_dead_letter_of_a_file_that_grows_is_stored_once(environment: Environment, tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()

    def read() -> int:
        config = FilesConfig(location=str(folder))
        ingest = environment.ingest(FilesSource(config, SCHEMA, allowed=ANYWHERE), count=1_000)
        assert ingest.step(0.0) is None
        return ingest.pending

    file = folder / "records.ndjson"
    file.write_bytes(b"\n".join([payload("a"), b"poison", payload("b"), b""]))
    assert read() == 2
    with file.open("ab") as more:
        more.write(payload("c") + b"\n")
    assert read() == 3
    (letter,) = environment.manifest.dead_letters("digits")
    assert (letter.partition, letter.payload) == ("records.ndjson", b"poison")
    assert letter.position == str(len(payload("a")) + 1), "where its line begins"


def test_a_file_that_goes_before_it_is_in_an_experience_stops_the_next_ingest(
    environment: Environment, tmp_path: Path
) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    source = FilesSource(FilesConfig(location=str(folder)), SCHEMA, allowed=ANYWHERE)
    ingest = environment.ingest(source, count=1_000)
    file = folder / "records.ndjson"
    file.write_bytes(payload("a") + b"\n")
    assert ingest.step(0.5) is None
    assert ingest.pending == 1
    file.unlink()
    with pytest.raises(DataLostError, match=r"records\.ndjson.*gone and nothing of it was read"):
        environment.ingest(
            FilesSource(FilesConfig(location=str(folder)), SCHEMA, allowed=ANYWHERE), count=1_000
        )


def test_a_name_that_is_used_again_holds_other_letters(environment: Environment, tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    now = [1e9]
    source = FilesSource(FilesConfig(location=str(folder), settle_seconds=0), SCHEMA, allowed=ANYWHERE)
    ingest = environment.ingest(source, count=2, split=NO_HOLDOUT, clock=lambda: now[0])
    for day in range(4):
        file = folder / "today.ndjson"
        file.write_bytes(
            b"poison %d\n" % min(day, 2) + payload(f"{day} a") + b"\n" + payload(f"{day} b") + b"\n"
        )
        assert ingest.step(0.5) is not None
        file.unlink()
        now[0] += 3600
        ingest.step(0.5)
        assert environment.manifest.cursors("digits") == {}
    letters = environment.manifest.dead_letters("digits")
    assert sorted(letter.payload for letter in letters) == [b"poison %d" % day for day in (0, 1, 2, 2)]
    assert len({letter.name for letter in letters}) == 4


def test_rows_that_are_named_by_their_place_are_no_duplicates_of_an_earlier_file(
    environment: Environment, tmp_path: Path
) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    now = [1e9]
    source = FilesSource(FilesConfig(location=str(folder), settle_seconds=0), TABLE, allowed=ANYWHERE)
    ingest = environment.ingest(
        source, count=2, schema=TABLE, split=NO_HOLDOUT, clock=lambda: now[0], duplicate_window=1000
    )
    for _ in range(3):
        file = folder / "today.csv"
        file.write_bytes(b"a,b,label\n1,2,up\n3,4,down\n")
        assert ingest.step(0.5) is not None
        file.unlink()
        now[0] += 3600
        ingest.step(0.5)
    assert environment.manifest.totals("digits") == (3, 6)


def test_a_failed_commit_can_be_tried_again(environment: Environment) -> None:
    failures = [LookupError("no queue")]

    def also(connection: sql.Connection, row: ExperienceRow) -> None:
        if failures:
            raise failures.pop()

    ingest = Ingest(
        IngestConfig("digits", SCHEMA, RecordsTrigger(records=10), NO_HOLDOUT),
        source=ListSource({"p": payloads(10)}),
        store=environment.store,
        manifest=environment.manifest,
        also=also,
    )
    with pytest.raises(LookupError):
        ingest.step(0.0)
    assert environment.manifest.cursors("digits") == {}
    row = ingest.step(0.0)
    assert row is not None
    assert environment.ids() == names(10)


def test_partitions_have_one_order_in_a_slice(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Environment(tmp_path / "other")
    sent = {"b": payloads(10, "b"), "a": payloads(10, "a")}
    turned = dict(sorted(sent.items()))
    (one,) = drain(environment.ingest(ListSource(sent), count=20, split=NO_HOLDOUT))
    (two,) = drain(other.ingest(ListSource(turned), count=20, split=NO_HOLDOUT))
    assert one.train.digest == two.train.digest
    assert environment.ids() == names(10, "a") + names(10, "b")


def test_consumed_batches_leave_the_pushed_log(environment: Environment) -> None:
    for turn in range(6):
        environment.push(names(10, f"{turn}-"))
    ingest = environment.pushed(count=25)
    assert [row.positions["pushed"].end for row in drain(ingest)] == ["3:5", "5:10"]
    with environment.engine.begin() as connection:
        query = sql.text("SELECT sequence FROM pushed_batches ORDER BY sequence")
        assert connection.execute(query).scalars().all() == [5, 6]
    ingest.close()
    ingest.close()
    again = environment.pushed(count=10)
    drain(again)
    assert sorted(environment.ids()) == sorted(name for turn in range(6) for name in names(10, f"{turn}-"))


def real_records(prefix: str, features: Features, labels: NDArray[np.int64]) -> Records:
    ids = text_column([f"{prefix}-{row}" for row in range(len(labels))])
    return Records(ids, features, labels, np.full(len(labels), np.nan), ids, {})


REAL: Mapping[str, RecordSchema] = {
    "mnist": RecordSchema(shape=(28, 28), dtype="uint8", classes=tuple("0123456789")),
    "elec2": RecordSchema(shape=(6,), classes=("down", "up"), minimum=0.0, maximum=1.0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_comes_through_bit_for_bit(environment: Environment, name: str) -> None:
    schema = REAL[name]
    features: Features
    features, labels = mnist_test() if name == "mnist" else elec2()
    sent = real_records(name, features, labels)
    log = PushedLog(environment.engine)
    for start in range(0, len(sent), 3_000):
        log.append("digits", schema, sent.take(slice(start, start + 3_000)))
    source = PushedSource("digits", schema, engine=environment.engine)
    ingest = environment.ingest(source, count=4_000, schema=schema)
    rows = drain(ingest)
    rest = ingest.cut("The end.")
    assert [row.rows for row in rows] == [4_000] * (len(sent) // 4_000)
    assert rest is not None
    found = np.zeros(len(sent), dtype=np.int64)
    for row in [*rows, rest]:
        for part in PARTS:
            experience = environment.store.open(getattr(row, part).digest, index=row.index)
            places = np.array([int(each.split("-")[1]) for each in experience.record_ids])
            found[places] += 1
            assert np.array_equal(experience.inputs, features[places])
            assert np.array_equal(experience.labels, labels[places])
    assert (found == 1).all()
