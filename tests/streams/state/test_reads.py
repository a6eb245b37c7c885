"""No read of the data side waits for a writer: on SQLite, a read that took the write lock would."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from streams.base import FencedError
from streams.sources.pushed import PushedSource
from streams.state.manifest import Commit, CutExperience, DeadLetter, ExperienceRow, Manifest, Part, Span
from streams.state.pushed import PushedLog, StoredBatch
from tests.support.stream_parts import SCHEMA, records, sqlite_engine

PIPELINE = "digits"
LETTER = DeadLetter("p", "1", "malformed", "It cannot be read.", b"x")
CUT = CutExperience(
    Part("a" * 64, 3), Part("b" * 64, 1), Part("c" * 64, 0), schema_fingerprint="f" * 64, cut_reason="Enough."
)
WRITES: Mapping[type[object], set[str]] = {
    Manifest: {"commit", "forget"},
    PushedLog: {"append", "forget_requests", "trim"},
}
"""Public methods that must take the lock."""
WITHIN: Mapping[type[object], set[str]] = {
    Manifest: {"experiences_in", "remove_train"},
    PushedLog: {"append_in"},
}
"""Public methods that work in the transaction of their caller."""


def _row(found: Any) -> bool:
    return isinstance(found, ExperienceRow) and found.rows == 4


MANIFEST: Mapping[str, tuple[Callable[[Manifest], Any], Callable[[Any], bool]]] = {
    "cursors": (lambda m: m.cursors(PIPELINE), lambda found: found == {"pushed": "1:1"}),
    "trigger_state": (lambda m: m.trigger_state(PIPELINE), lambda found: found == {}),
    "revision": (lambda m: m.revision(PIPELINE), lambda found: found == 1),
    "check": (lambda m: m.check(PIPELINE, revision=1), lambda found: found is None),
    "classes": (lambda m: m.classes(PIPELINE), lambda found: found == ["cat"]),
    "waiting": (lambda m: m.waiting(PIPELINE), lambda found: found == []),
    "count_waiting": (lambda m: m.count_waiting(PIPELINE), lambda found: found == 0),
    "experiences": (lambda m: m.experiences(PIPELINE), lambda found: _row(*found)),
    "latest": (lambda m: m.latest(PIPELINE), lambda found: _row(*found)),
    "totals": (lambda m: m.totals(PIPELINE), lambda found: found == (1, 4)),
    "experience": (lambda m: m.experience(PIPELINE, 0), _row),
    "digests": (lambda m: m.digests(), lambda found: len(found) == 3),
    "dead_letters": (lambda m: m.dead_letters(PIPELINE), lambda found: found[0].payload == b"x"),
    "count_dead_letters": (
        lambda m: m.count_dead_letters(PIPELINE),
        lambda found: found == {"malformed": 1},
    ),
    "pending_records": (lambda m: m.pending_records(PIPELINE), lambda found: found == 1),
}
PUSHED: Mapping[str, tuple[Callable[[PushedLog], Any], Callable[[Any], bool]]] = {
    "recall": (
        lambda log: log.recall(PIPELINE, SCHEMA, records(["a", "b"]), request_key="k"),
        lambda found: found.duplicate and found.records == 2,
    ),
    "ensure": (lambda log: log.ensure(PIPELINE), lambda found: found is None),
    "sequences": (lambda log: log.sequences(PIPELINE, first=0), lambda found: found == (1, {1})),
    "batches": (
        lambda log: log.batches(PIPELINE, 1, most_rows=10, most_bytes=1000),
        lambda found: isinstance(found[0], StoredBatch),
    ),
}


def _public(kind: type[object]) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize(("kind", "reads"), [(Manifest, MANIFEST), (PushedLog, PUSHED)])
def test_every_public_method_is_a_tried_read_or_a_named_write(
    kind: type[object], reads: Mapping[str, Any]
) -> None:
    assert reads.keys() | WRITES[kind] | WITHIN[kind] == _public(kind)
    assert not reads.keys() & (WRITES[kind] | WITHIN[kind])


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sql.Engine]:
    """A database that gives up at once where it would have to wait, while a writer holds its lock."""
    engine = sqlite_engine(tmp_path / "holdfast.db", busy_milliseconds=0)
    PushedLog(engine).append(PIPELINE, SCHEMA, records(["a", "b"]), request_key="k")
    commit = Commit(0, {"pushed": Span("", "1:1")}, dead_letters=[LETTER], experience=CUT, classes=["cat"])
    Manifest(engine).commit(PIPELINE, commit)
    with engine.begin() as writer:
        writer.exec_driver_sql("UPDATE offsets SET cursor = cursor")
        yield engine
    engine.dispose()


@pytest.mark.parametrize("name", MANIFEST)
def test_a_read_of_the_manifest_answers_while_a_writer_holds_the_lock(engine: sql.Engine, name: str) -> None:
    read, expected = MANIFEST[name]
    assert expected(read(Manifest(engine)))


@pytest.mark.parametrize("name", PUSHED)
def test_a_read_of_the_pushed_log_answers_while_a_writer_holds_the_lock(
    engine: sql.Engine, name: str
) -> None:
    read, expected = PUSHED[name]
    assert expected(read(PushedLog(engine)))


def test_the_pushed_source_reads_while_a_writer_holds_the_lock(engine: sql.Engine) -> None:
    source = PushedSource(PIPELINE, SCHEMA, engine=engine)
    source.open({"pushed": "1:1"})
    (batch,) = source.poll(10, 0.0)
    assert list(batch.positions) == ["1:2"]


def test_a_fenced_process_learns_of_it_while_a_writer_holds_the_lock(engine: sql.Engine) -> None:
    with pytest.raises(FencedError, match="another ingest process"):
        Manifest(engine).check(PIPELINE, revision=0)


def test_a_write_would_have_to_wait(engine: sql.Engine) -> None:
    with pytest.raises(sql.exc.OperationalError, match="locked"):
        Manifest(engine).commit(PIPELINE, Commit(1))
    with pytest.raises(sql.exc.OperationalError, match="locked"):
        PushedLog(engine).append(PIPELINE, SCHEMA, records(["c"]))
