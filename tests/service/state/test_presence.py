"""Signs of life of roles: who is seen, and for how long; on SQLite and on PostgreSQL."""

import pytest
import sqlalchemy as sa

from service.state import presence
from service.state.database import now, roles
from service.state.presence import SILENT_SECONDS, Presence, Seen, instance_name
from streams.state.tables import reading
from tests.support.running import wait_for


def seen(engine: sa.Engine) -> list[Seen]:
    with reading(engine) as connection:
        return presence.seen(connection)


def add(engine: sa.Engine, *, seconds_ago: float) -> None:
    with engine.begin() as connection:
        at = now(connection) - seconds_ago
        connection.execute(sa.insert(roles).values(role="dispatch", instance="other:1", seen_at=at))


def test_a_role_is_seen_from_entry_to_exit(database: sa.Engine) -> None:
    with Presence(database, "ingest"):
        (found,) = seen(database)
        assert (found.role, found.instance) == ("ingest", instance_name())
        assert 0 <= found.seconds_ago < SILENT_SECONDS
    assert seen(database) == []


def test_two_roles_of_one_process_are_told_apart(database: sa.Engine) -> None:
    with Presence(database, "ingest"), Presence(database, "dispatch"):
        assert [each.role for each in seen(database)] == ["dispatch", "ingest"]


@pytest.mark.parametrize(("seconds_ago", "there"), [(SILENT_SECONDS - 5, True), (SILENT_SECONDS + 1, False)])
def test_a_silent_process_is_forgotten(database: sa.Engine, seconds_ago: float, there: bool) -> None:
    add(database, seconds_ago=seconds_ago)
    assert bool(seen(database)) is there


def test_rows_of_killed_processes_are_removed_after_an_hour(database: sa.Engine) -> None:
    add(database, seconds_ago=3700)
    with Presence(database, "ingest"), reading(database) as connection:
        assert connection.execute(sa.select(roles.c.role)).scalars().all() == ["ingest"]


def test_a_beat_renews_what_was_seen(database: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.05)
    with Presence(database, "ingest"):
        with database.begin() as connection:
            connection.execute(sa.update(roles).values(seen_at=0))
        wait_for(lambda: len(seen(database)) == 1, seconds=20, hint="a beat")
