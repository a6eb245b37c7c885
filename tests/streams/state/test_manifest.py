"""The one transaction: all of a commit becomes true, or none of it."""

from pathlib import Path

import pytest
import sqlalchemy as sql

from streams.base import FencedError
from streams.state.manifest import Commit, CutExperience, DeadLetter, ExperienceRow, Manifest, Part, Span
from tests.support.stream_parts import sqlite_engine


def cut(name: str = "a", **state: int) -> CutExperience:
    return CutExperience(
        train=Part(name * 64, 7),
        gate=Part("b" * 64, 2),
        audit=Part("c" * 64, 0),
        schema_fingerprint="f" * 64,
        cut_reason="Enough.",
        trigger_state=state,
    )


def letter(position: str, reason: str = "malformed") -> DeadLetter:
    return DeadLetter("p", position, reason, "It cannot be read.", b"\x00\xff")


@pytest.fixture
def engine(tmp_path: Path) -> sql.Engine:
    return sqlite_engine(tmp_path / "holdfast.db")


@pytest.fixture
def manifest(engine: sql.Engine) -> Manifest:
    return Manifest(engine, clock=lambda: 1000.5)


def test_a_commit_moves_offsets_and_numbers_experiences(manifest: Manifest) -> None:
    moves = {"p": Span("", "10"), "q": Span("", "3")}
    first = manifest.commit("digits", Commit(0, moves, experience=cut(seen=1))).experience
    moves = {"p": Span("10", "20")}
    second = manifest.commit("digits", Commit(1, moves, experience=cut("d", seen=2))).experience
    other = manifest.commit("prices", Commit(0, {"p": Span("", "5")}, experience=cut("e"))).experience
    assert first is not None
    assert second is not None
    assert other is not None
    assert (first.index, second.index, other.index) == (0, 1, 0)
    assert manifest.cursors("digits") == {"p": "20", "q": "3"}
    assert manifest.trigger_state("digits") == {"seen": 2}
    assert manifest.experiences("digits") == [first, second]
    assert manifest.experience("digits", 1) == second
    assert manifest.experience("digits", 2) is None
    assert second.positions == {"p": Span("10", "20")}
    assert (second.rows, second.created_at, second.cut_reason) == (9, 1000.5, "Enough.")
    assert manifest.digests() == {name * 64 for name in "abcde"}


def test_forgotten_partitions_begin_anew_and_only_for_whoever_is_not_fenced(manifest: Manifest) -> None:
    names = [f"{number}.ndjson" for number in range(40_000)]
    manifest.commit("digits", Commit(0, {name: Span("", "10") for name in ("kept", *names[:3])}))
    with pytest.raises(FencedError):
        manifest.forget("digits", names, revision=0)
    assert len(manifest.cursors("digits")) == 4
    manifest.forget("digits", names, revision=1)
    assert manifest.cursors("digits") == {"kept": "10"}
    with pytest.raises(FencedError):
        manifest.commit("digits", Commit(1, {"kept": Span("10", "20")}))
    manifest.commit("digits", Commit(2, {names[0]: Span("", "5")}))


@pytest.mark.parametrize("start", ["", "9", "11"])
def test_a_stale_offset_fences_and_changes_nothing(manifest: Manifest, start: str) -> None:
    manifest.commit("digits", Commit(0, {"p": Span("", "10")}, experience=cut()))
    with pytest.raises(FencedError, match="another ingest process"):
        manifest.commit(
            "digits",
            Commit(
                1,
                {"a": Span("", "1"), "p": Span(start, "20")},
                dead_letters=[letter("15")],
                experience=cut(seen=9),
            ),
        )
    assert manifest.cursors("digits") == {"p": "10"}
    assert len(manifest.experiences("digits")) == 1
    assert manifest.dead_letters("digits") == []
    assert manifest.trigger_state("digits") == {}


def test_a_failing_hook_undoes_the_commit(manifest: Manifest, engine: sql.Engine) -> None:
    def fail(connection: sql.Connection, row: ExperienceRow) -> None:
        assert row.index == 0
        count = sql.select(sql.func.count()).select_from(sql.table("experiences"))
        assert connection.execute(count).scalar() == 1, "the hook sees what it is part of"
        raise LookupError("no queue")

    with pytest.raises(LookupError, match="no queue"):
        manifest.commit(
            "digits",
            Commit(0, {"p": Span("", "10")}, dead_letters=[letter("4")], experience=cut()),
            also=fail,
        )
    assert manifest.cursors("digits") == {}
    assert manifest.experiences("digits") == []
    assert manifest.dead_letters("digits") == []


def test_dead_letters_go_without_an_experience_and_only_once(manifest: Manifest) -> None:
    held = {"p": Span("", "")}
    first = manifest.commit("digits", Commit(0, held, dead_letters=[letter("1"), letter("2")]))
    assert (first.experience, first.new_dead_letters) == (None, 2)
    assert manifest.cursors("digits") == {}, "an offset that was only held is still the beginning"
    again = [letter("2"), letter("3", "bad-id")]
    assert (
        manifest.commit("digits", Commit(1, {"p": Span("", "3")}, dead_letters=again)).new_dead_letters == 1
    )
    found = manifest.dead_letters("digits")
    assert sorted(each.position for each in found) == ["1", "2", "3"]
    assert found[0].payload == b"\x00\xff"
    assert found[0].created_at == 1000.5
    assert len(manifest.dead_letters("digits", limit=2)) == 2
    assert manifest.count_dead_letters("digits") == {"malformed": 2, "bad-id": 1}
    assert manifest.cursors("digits") == {"p": "3"}


def test_a_held_offset_still_fences(manifest: Manifest) -> None:
    manifest.commit("digits", Commit(0, {"p": Span("", "3")}, experience=cut()))
    with pytest.raises(FencedError):
        manifest.commit("digits", Commit(1, {"p": Span("", "")}, dead_letters=[letter("1")]))


@pytest.mark.parametrize("revision", [0, 2])
def test_another_revision_fences_a_commit_of_another_partition_too(manifest: Manifest, revision: int) -> None:
    manifest.commit("digits", Commit(0, {"p": Span("", "3")}, experience=cut()))
    assert manifest.revision("digits") == 1
    with pytest.raises(FencedError, match="another ingest process"):
        manifest.commit("digits", Commit(revision, {"q": Span("", "3")}, experience=cut("d")))
    assert manifest.cursors("digits") == {"p": "3"}
    assert len(manifest.experiences("digits")) == 1


def test_classes_of_an_open_set_keep_their_ids(manifest: Manifest) -> None:
    manifest.commit("digits", Commit(0, classes=["cat", "dog"]))
    manifest.commit("digits", Commit(1, classes=["cat", "dog", "eel"]))
    assert manifest.classes("digits") == ["cat", "dog", "eel"]
    assert manifest.classes("prices") == []
