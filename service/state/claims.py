"""Leases of workers on updates: claims, heartbeats that extend them, and the last check before MLflow."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from service.state.database import now, updates
from service.state.endings import give_up, silent
from service.state.jobs import RECORDING, Update, get, write
from streams.state.tables import reading


def claim(engine: sa.Engine, owner: str, *, lease_seconds: float, max_attempts: int) -> Update | None:
    """The oldest update that may run now, leased to `owner`; None when there is none.

    An update whose worker went silent is claimed again, as the next attempt, until `max_attempts` failed.
    """
    with reading(engine) as connection:
        if connection.execute(_claimable_or_silent(now(connection))).scalar() is None:
            return None
    for exhausted in _exhausted(engine, max_attempts):
        give_up(engine, exhausted, max_attempts)
    try:
        with engine.begin() as connection:
            moment = now(connection)
            update_id = connection.execute(_claimable(moment, max_attempts)).scalar()
            if update_id is None:
                return None
            connection.execute(
                sa.update(updates)
                .where(updates.c.id == update_id)
                .values(
                    state="running",
                    attempt=updates.c.attempt + 1,
                    failures=updates.c.failures + sa.case((updates.c.state == "running", 1), else_=0),
                    owner=owner,
                    lease_until=moment + lease_seconds,
                    progress=None,
                    started_at=sa.func.coalesce(updates.c.started_at, moment),
                )
            )
            return get(connection, update_id)
    except sa.exc.IntegrityError:
        # Another dispatcher claimed an update of the same pipeline between our read and our write.
        return None


def _claimable(moment: float, max_attempts: int) -> sa.Select[Any]:
    free = _free(moment)
    abandoned = sa.and_(silent(moment), updates.c.failures + 1 < max_attempts)
    return (
        sa.select(updates.c.id)
        .where(sa.or_(free, abandoned))
        .order_by(updates.c.created_at, updates.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def _claimable_or_silent(moment: float) -> sa.Select[Any]:
    """A first query that takes no lock: most find nothing."""
    return sa.select(updates.c.id).where(sa.or_(_free(moment), silent(moment))).limit(1)


def _free(moment: float) -> sa.ColumnElement[bool]:
    """Updates that wait for nothing, not even for another one of their pipeline."""
    other = updates.alias("other")
    held = sa.exists().where(
        other.c.pipeline == updates.c.pipeline,
        other.c.id != updates.c.id,
        other.c.state.in_(["running", "review"]),
    )
    waiting = (updates.c.state == "queued", sa.not_(updates.c.wants_cut), updates.c.not_before <= moment)
    return sa.and_(*waiting, sa.not_(held))


def _exhausted(engine: sa.Engine, max_attempts: int) -> list[Update]:
    """Updates whose worker went silent in the last attempt."""
    with reading(engine) as connection:
        rows = connection.execute(
            sa.select(updates).where(silent(now(connection)), updates.c.failures + 1 >= max_attempts)
        )
        return [Update(**row._mapping) for row in rows]


def heartbeat(
    engine: sa.Engine, update: Update, *, lease_seconds: float, progress: Mapping[str, Any] | None
) -> None:
    """Extend the lease and record progress.

    Raises:
        LostLeaseError: the update is no longer this attempt's.
    """
    with engine.begin() as connection:
        write(connection, update, {"lease_until": now(connection) + lease_seconds, "progress": progress})


def confirm(engine: sa.Engine, update: Update) -> None:
    """Check that the update is still this attempt's, before something is done that cannot be fenced.

    From now on it cannot be cancelled, because what follows could not be undone.

    Raises:
        LostLeaseError: it is not.
    """
    with engine.begin() as connection:
        write(connection, update, {"owner": update.owner, "progress": {"stage": RECORDING}})
