"""Freezes: an audit that did not pass stops promotion until a person lifts the freeze or rolls back."""

from dataclasses import replace

import sqlalchemy as sa

from service.gate.base import Freeze
from service.state import ledger
from service.state.database import ledger as entries
from service.state.ledger import By


def current(connection: sa.Connection, pipeline: str) -> Freeze | None:
    """The freeze in force; None: promotion is allowed."""
    last = connection.execute(
        sa.select(entries.c.action, entries.c.update_id, entries.c.version)
        .where(entries.c.pipeline == pipeline, entries.c.action.in_(["freeze", "unfreeze"]))
        .order_by(entries.c.sequence.desc())
        .limit(1)
    ).first()
    if last is None or last.action == "unfreeze":
        return None
    return Freeze(update_id=last.update_id, last_audited=last.version)


def begin(
    connection: sa.Connection,
    pipeline: str,
    *,
    last_audited: int | None,
    champion: int | None,
    by: By,
) -> ledger.Entry:
    """Freeze promotion; the entry's version is the last whose audit passed."""
    return ledger.append(
        connection,
        pipeline,
        action="freeze",
        by=by,
        version=last_audited,
        previous_version=champion,
    )


def lift(
    connection: sa.Connection, pipeline: str, *, freeze: Freeze, champion: int | None, by: By
) -> ledger.Entry:
    """Allow promotion again."""
    return ledger.append(
        connection,
        pipeline,
        action="unfreeze",
        by=replace(by, update_id=freeze.update_id),
        version=freeze.last_audited,
        previous_version=champion,
    )
