"""Rows of golden sets, and the fence that makes ingest read them again, on both databases."""

import pytest
import sqlalchemy as sa

from service.state import golden
from streams.base import FencedError
from streams.state import status
from streams.state.manifest import Commit, Manifest, Part
from tests.support.service_parts import NAME, add_version, declare, promote


def add(engine: sa.Engine, name: str, *, champion: int | None = None, digit: str = "a") -> golden.GoldenSet:
    with engine.begin() as connection:
        part = Part(digit * 64, 30)
        return golden.add(connection, NAME, name=name, part=part, margin=0.05, champion=champion)


def sets(engine: sa.Engine) -> list[golden.GoldenSet]:
    with engine.begin() as connection:
        return golden.of_pipeline(connection, NAME)


def test_sets_are_numbered_and_changed_one_by_one(database: sa.Engine) -> None:
    declare(database)
    first, second = add(database, "one"), add(database, "two", champion=4, digit="b")
    assert sets(database) == [first, second]
    assert (first.number, second.number, second.anchor_version) == (0, 1, 4)
    with database.begin() as connection:
        golden.set_retired(connection, NAME, 1, retired=True)
        golden.set_margin(connection, NAME, 0, margin=None)
        golden.set_anchor(connection, NAME, [0, 1], version=6)
        assert golden.named(connection, NAME, "three") is None
        assert golden.digests(connection) == {"a" * 64, "b" * 64}
    one, two = sets(database)
    assert (one.margin, one.retired, one.anchor_version, one.since_version) == (None, False, 6, None)
    assert (two.margin, two.retired, two.anchor_version, two.since_version) == (0.05, True, 6, 4)
    with pytest.raises(sa.exc.IntegrityError):
        add(database, "one")


def test_the_first_version_that_is_promoted_is_the_anchor_of_what_came_before_it(database: sa.Engine) -> None:
    declare(database)
    add(database, "early")
    add_version(database, 1, parent=None, learnt=[0])
    assert sets(database)[0].anchor_version is None
    add_version(database, 2, parent=None, learnt=[0])
    promote(database, 2, base_revision=None)
    add_version(database, 3, parent=2, learnt=[0, 1])
    promote(database, 3, base_revision=1)
    assert sets(database)[0].anchor_version == 2


def test_a_fence_refuses_the_next_commit_of_whoever_read_before_it(database: sa.Engine) -> None:
    manifest = Manifest(database)
    before = manifest.revision("p")
    for _ in range(2):
        with database.begin() as connection:
            status.fence(connection, "p")
        with pytest.raises(FencedError):
            manifest.commit("p", Commit(before))
        before = manifest.revision("p")
    manifest.commit("p", Commit(before, held_out=3, duplicates=1))
    manifest.commit("p", Commit(before + 1, held_out=4))
    with database.begin() as connection:
        state = status.read(connection, "p")
    assert (state.held_out, state.duplicates, state.revision) == (7, 1, before + 2)
