"""How an attempt at an update ends: given back, tried again, failed, cancelled, or decided by a person."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from service.state import backlog
from service.state.database import lock_pipeline, now, updates
from service.state.jobs import Update, ensure_queued, experiences_of_live, get, write
from service.state.ledger import By


def release(engine: sa.Engine, update: Update) -> None:
    """Queue the update again because its worker stops; not counted as a failure.

    Raises:
        LostLeaseError: the update is no longer this attempt's.
    """
    with engine.begin() as connection:
        write(connection, update, {"state": "queued", "owner": None, "lease_until": None, "progress": None})


def retry(
    engine: sa.Engine, update: Update, *, error: str, max_attempts: int, pause_seconds: float = 0.0
) -> bool:
    """Queue the update again after a failure that may pass; False: it has failed for good.

    The pause before the next attempt doubles with each failure, to outlast what caused it.

    Raises:
        LostLeaseError: the update is no longer this attempt's.
    """
    if update.failures + 1 >= max_attempts:
        fail(engine, update, error=error)
        return False
    with engine.begin() as connection:
        values = {
            "state": "queued",
            "owner": None,
            "lease_until": None,
            "progress": None,
            "error": error,
            "failures": update.failures + 1,
            "not_before": now(connection) + pause_seconds * 2**update.failures,
        }
        write(connection, update, values)
    return True


def fail(engine: sa.Engine, update: Update, *, error: str) -> None:
    """End an update that cannot work, and park its experiences for a person.

    Raises:
        LostLeaseError: the update is no longer this attempt's.
    """
    with engine.begin() as connection:
        lock_pipeline(connection, update.pipeline)
        values = {"state": "failed", "finished_at": now(connection), "lease_until": None, "error": error}
        write(connection, update, values)
        _set_aside(connection, update.id, error=error)


def give_up(engine: sa.Engine, update: Update, max_attempts: int) -> None:
    """Fail an update whose worker went silent in its last attempt, unless another process already did."""
    error = f"Its worker died in each of {max_attempts} attempts; the dispatcher's log says why."
    with engine.begin() as connection:
        lock_pipeline(connection, update.pipeline)
        moment = now(connection)
        given_up = connection.execute(
            sa.update(updates)
            .where(updates.c.id == update.id, updates.c.attempt == update.attempt, silent(moment))
            .values(state="failed", finished_at=moment, lease_until=None, error=error)
        )
        if given_up.rowcount == 1:
            # What killed three workers would kill the next update's too.
            _set_aside(connection, update.id, error=error)


def _set_aside(connection: sa.Connection, update_id: str, *, error: str) -> None:
    update = get(connection, update_id)
    note = f"Update {update.id} failed: {error}"
    set_aside(connection, update.pipeline, experiences=update.experiences, note=note)


def set_aside(connection: sa.Connection, pipeline: str, *, experiences: Sequence[int], note: str) -> None:
    """After an update without a result: park what it tried, and queue one for what no update has tried."""
    backlog.park(connection, pipeline, experiences=experiences, note=note)
    if backlog.count_untried(connection, pipeline, excluding=experiences_of_live(connection, pipeline)):
        ensure_queued(connection, pipeline, requested_by="trigger")


def cancel(connection: sa.Connection, update: Update, *, experiences: Sequence[int], by: By) -> None:
    """End an update on a person's request; its worker finds its lease lost.

    The caller holds locks on the pipeline and the update's row, and has checked that it may be cancelled.

    Args:
        experiences: what it learns, or would have learnt; parked for a person.
    """
    moment = now(connection)
    values = {
        "state": "failed",
        "finished_at": moment,
        "lease_until": None,
        "progress": None,
        "decision": {"choice": "cancel", "by": by.actor, "reason": by.reason, "at": moment},
        "error": f"Cancelled by {by.actor}: {by.reason}",
    }
    connection.execute(sa.update(updates).where(updates.c.id == update.id).values(values))
    note = f"Update {update.id} was cancelled by {by.actor}: {by.reason}"
    set_aside(connection, update.pipeline, experiences=experiences, note=note)


def close_review(connection: sa.Connection, update: Update, *, decision: Mapping[str, object]) -> bool:
    """End a review with a person's decision; False if it no longer awaits one.

    Of two people who decide at once, one changes the row and the other gets False.
    """
    changed = connection.execute(
        sa.update(updates)
        .where(updates.c.id == update.id, updates.c.state == "review")
        .values(state="done", decision=decision)
    )
    return bool(changed.rowcount == 1)


def silent(moment: float) -> sa.ColumnElement[bool]:
    """Updates whose worker has let its lease run out."""
    return sa.and_(updates.c.state == "running", updates.c.lease_until < moment)
