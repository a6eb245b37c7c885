"""The pushed log: durable, idempotent by key, ordered under concurrency, exact at every cursor."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sql

from streams.base import DataLostError, RequestKeyReusedError, SourceError
from streams.sources.pushed import PushedSource
from streams.state.manifest import Commit, Manifest, Span
from streams.state.pushed import REQUEST_KEY_SECONDS, PushedLog, Receipt
from streams.state.tables import PUSHED_BATCHES
from streams.wire.decode import decode
from tests.support.stream_parts import SCHEMA, records, sqlite_engine


@pytest.fixture
def engine(tmp_path: Path) -> sql.Engine:
    return sqlite_engine(tmp_path / "holdfast.db")


def push(engine: sql.Engine, *sizes: int) -> list[str]:
    """Batches of these sizes; the ids in order."""
    log = PushedLog(engine)
    names: list[str] = []
    for size in sizes:
        batch = [f"r{len(names) + index}" for index in range(size)]
        log.append("digits", SCHEMA, records(batch))
        names += batch
    return names


def opened(engine: sql.Engine, cursor: str = "") -> PushedSource:
    source = PushedSource("digits", SCHEMA, engine=engine)
    source.open({"pushed": cursor})
    return source


def read(source: PushedSource, most: int = 1_000) -> tuple[list[str], list[str]]:
    """Ids and positions until nothing comes."""
    ids: list[str] = []
    positions: list[str] = []
    while batches := source.poll(most, 0.0):
        for batch in batches:
            decoded = decode(batch, SCHEMA)
            assert not decoded.rejected
            assert len(decoded.records) <= most
            ids += decoded.records.ids.tolist()
            positions += decoded.positions
    return ids, positions


def kept(engine: sql.Engine) -> Sequence[tuple[int, bool]]:
    batches = PUSHED_BATCHES.c
    with engine.begin() as connection:
        found = connection.execute(sql.select(batches.sequence, batches.payload).order_by(batches.sequence))
        return [(row.sequence, row.payload is not None) for row in found]


def test_a_request_key_is_answered_once(engine: sql.Engine) -> None:
    log = PushedLog(engine)
    first = log.append("digits", SCHEMA, records(["a", "b"]), request_key="k")
    again = log.append("digits", SCHEMA, records(["a", "b"]), request_key="k")
    other = log.append("prices", SCHEMA, records(["a"]), request_key="k")
    after = log.append("digits", SCHEMA, records(["c"]))
    assert first == Receipt(1, 2, duplicate=False)
    assert again == Receipt(1, 2, duplicate=True)
    assert other == Receipt(1, 1, duplicate=False)
    assert after.sequence == 2, "a repeated request takes no sequence"
    assert read(opened(engine))[0] == ["a", "b", "c"]


def test_a_request_key_with_other_records_is_refused(engine: sql.Engine) -> None:
    log = PushedLog(engine)
    first = log.append("digits", SCHEMA, records(["a", "b"]), request_key="k")
    assert log.recall("digits", SCHEMA, records(["a", "b"]), request_key="k") == Receipt(1, 2, duplicate=True)
    assert log.recall("digits", SCHEMA, records(["a", "b"]), request_key="new") is None
    for names in (["a", "c"], ["b", "a"], ["a"]):
        with pytest.raises(RequestKeyReusedError, match="batch 1 with other records"):
            log.append("digits", SCHEMA, records(names), request_key="k")
        with pytest.raises(RequestKeyReusedError):
            log.recall("digits", SCHEMA, records(names), request_key="k")
    opened(engine).trim({"pushed": "2:0"})
    assert kept(engine) == [(first.sequence, False)]
    with pytest.raises(RequestKeyReusedError):
        log.append("digits", SCHEMA, records(["c"]), request_key="k")


def test_nothing_to_store_is_a_mistake(engine: sql.Engine) -> None:
    with pytest.raises(ValueError, match="at least one record"):
        PushedLog(engine).append("digits", SCHEMA, records([]))


@pytest.mark.parametrize("most", [1, 3, 1_000])
def test_opens_at_every_cursor(engine: sql.Engine, most: int) -> None:
    names = push(engine, 3, 1, 4)
    ids, positions = read(opened(engine), most)
    assert ids == names
    assert positions == ["1:1", "1:2", "1:3", "2:1", "3:1", "3:2", "3:3", "3:4"]
    for index, cursor in enumerate(positions):
        assert read(opened(engine, cursor), most) == (names[index + 1 :], positions[index + 1 :])


def test_threads_append_without_a_gap(engine: sql.Engine) -> None:
    log = PushedLog(engine)

    def send(thread: int) -> list[Receipt]:
        return [
            log.append(
                "digits", SCHEMA, records([f"{thread % 2}-{turn}"]), request_key=f"{thread % 2}-{turn}"
            )
            for turn in range(12)
        ]

    with ThreadPoolExecutor(4) as pool:
        receipts = [receipt for sent in pool.map(send, range(4)) for receipt in sent]
    stored = sorted(receipt.sequence for receipt in receipts if not receipt.duplicate)
    assert stored == list(range(1, 25)), "two threads share each key"
    assert len(read(opened(engine))[0]) == 24


def test_pending_counts_from_the_committed_cursor(engine: sql.Engine) -> None:
    manifest = Manifest(engine)
    assert manifest.pending_records("digits") == 0
    push(engine, 3, 5)
    assert manifest.pending_records("digits") == 8
    manifest.commit("digits", Commit(0, {"pushed": Span("", "1:2")}))
    assert manifest.pending_records("digits") == 6
    manifest.commit("digits", Commit(1, {"pushed": Span("1:2", "1:3")}))
    assert manifest.pending_records("digits") == 5
    manifest.commit("digits", Commit(2, {"pushed": Span("1:3", "2:5")}))
    opened(engine, "2:5").trim({"pushed": "2:5"})
    assert manifest.pending_records("digits") == 0


def test_trim_keeps_what_is_not_consumed(engine: sql.Engine) -> None:
    names = push(engine, 3, 3, 3)
    source = opened(engine)
    source.trim({})
    source.trim({"pushed": "2:1"})
    source.trim({"pushed": "2:1"})
    assert kept(engine) == [(2, True), (3, True)]
    assert read(opened(engine, "2:1"))[0] == names[4:]
    source.trim({"pushed": "3:3"})
    assert read(opened(engine, "3:3")) == ([], [])
    assert push(engine, 1) == ["r0"]
    assert read(opened(engine, "3:3")) == (["r0"], ["4:1"]), "sequences go on after a trim"


def test_a_key_outlives_its_payload_for_a_day(engine: sql.Engine) -> None:
    now = 0.0
    log = PushedLog(engine, clock=lambda: now)
    for name in ("a", "b"):
        log.append("digits", SCHEMA, records([name]), request_key=name)
    source = PushedSource("digits", SCHEMA, engine=engine, clock=lambda: now)
    source.trim({"pushed": "2:1"})
    assert kept(engine) == [(1, False), (2, True)]
    assert log.append("digits", SCHEMA, records(["a"]), request_key="a").duplicate
    now = REQUEST_KEY_SECONDS + 1
    later = PushedSource("digits", SCHEMA, engine=engine, clock=lambda: now)
    later.trim({"pushed": "2:1"})
    assert kept(engine) == [(2, True)]


@pytest.mark.parametrize("cursor", ["", "1:2", "1:3", "9:1"])
def test_a_missing_batch_stops_the_source(engine: sql.Engine, cursor: str) -> None:
    push(engine, 3, 3, 3)
    with engine.begin() as connection:
        connection.execute(sql.delete(PUSHED_BATCHES).where(PUSHED_BATCHES.c.sequence == 2))
    with pytest.raises(DataLostError):
        opened(engine, cursor)
    assert len(read(opened(engine, "3:1"))[0]) == 2


def test_a_batch_lost_while_reading_stops_the_source(engine: sql.Engine) -> None:
    push(engine, 2, 2)
    source = opened(engine)
    assert len(source.poll(2, 0.0)) == 1
    with engine.begin() as connection:
        connection.execute(sql.delete(PUSHED_BATCHES).where(PUSHED_BATCHES.c.sequence == 2))
    with pytest.raises(DataLostError, match="batch 2"):
        source.poll(10, 0.0)


def test_many_requests_are_read_at_once_and_bounded_by_records(engine: sql.Engine) -> None:
    names = push(engine, *[1] * 40, 7, 5)
    source = opened(engine)
    sizes = []
    while batches := source.poll(10, 0.0):
        sizes.append([len(batch.positions) for batch in batches])
    assert sizes == [[1] * 10] * 4 + [[7], [5]]
    assert read(opened(engine, "41:3"), 10)[0] == names[43:]


def test_what_came_before_a_batch_that_cannot_be_read_is_given_out_first(engine: sql.Engine) -> None:
    push(engine, 2, 1, 1)
    with engine.begin() as connection:
        broken = sql.update(PUSHED_BATCHES).where(PUSHED_BATCHES.c.sequence == 2)
        connection.execute(broken.values(payload=b"broken"))
    source = opened(engine)
    assert [len(batch.positions) for batch in source.poll(10, 0.0)] == [2]
    for _ in range(2):
        with pytest.raises(SourceError, match="batch 2"):
            source.poll(10, 0.0)


def test_a_trim_reads_only_what_was_consumed_since_the_last(engine: sql.Engine) -> None:
    log = PushedLog(engine)
    for number in range(30):
        log.append("digits", SCHEMA, records([f"r{number}"]), request_key=f"k{number}")
    source = opened(engine)
    statements: list[tuple[str, object]] = []
    sql.event.listen(engine, "before_cursor_execute", lambda *each: statements.append(each[2:4]))
    for before in (10, 10, 20):
        source.trim({"pushed": f"{before}:0"})
    ranges = [values for text, values in statements if text.startswith("DELETE") and "BETWEEN" in text]
    assert ranges == [("digits", 0, 9), ("digits", 10, 19)]
    assert [sequence for sequence, stored in kept(engine) if stored] == list(range(20, 31))


def test_a_batch_of_another_schema_stops_the_source(engine: sql.Engine) -> None:
    push(engine, 2)
    source = PushedSource("digits", SCHEMA.model_copy(update={"minimum": 0.0}), engine=engine)
    source.open({})
    with pytest.raises(SourceError, match=r"batch 1.*another|batch 1.*declares"):
        source.poll(10, 0.0)


def test_a_cursor_of_another_source_is_refused(engine: sql.Engine) -> None:
    with pytest.raises(SourceError, match="not a cursor"):
        opened(engine, "page-3")


def test_a_poll_waits_for_a_push(engine: sql.Engine) -> None:
    source = opened(engine)
    with ThreadPoolExecutor(1) as pool:
        polled = pool.submit(source.poll, 10, 20.0)
        push(engine, 2)
        assert len(polled.result(timeout=20)) == 1
