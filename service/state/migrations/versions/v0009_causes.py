"""Updates: the guard of the finding that decided stands in a column, and an index leads to the latest ones.

It follows from each stored verdict, so updates of earlier releases get it too.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_AT_A_TIME = 100
"""A verdict has up to some hundred findings, so not all are read at once."""


def upgrade() -> None:
    op.add_column("updates", sa.Column("cause", sa.String(length=64), nullable=True))
    updates = sa.table(
        "updates", sa.column("id"), sa.column("outcome"), sa.column("verdict", sa.JSON), sa.column("cause")
    )
    connection, last = op.get_bind(), ""
    judged = sa.select(updates.c.id, updates.c.verdict).where(updates.c.outcome.in_(["review", "reject"]))
    in_order = judged.order_by(updates.c.id).limit(_AT_A_TIME)
    while rows := connection.execute(in_order.where(updates.c.id > last)).all():
        for update_id, verdict in rows:
            values = {"cause": _cause(verdict)}
            connection.execute(sa.update(updates).where(updates.c.id == update_id).values(values))
        last = rows[-1].id
    op.create_index("ix_updates_pipeline_finished_at", "updates", ["pipeline", "finished_at"], unique=False)


def _cause(verdict: Mapping[str, Any] | None) -> str | None:
    """The guard of the finding whose sentence is the verdict's reason; None: there is none."""
    if not verdict:
        return None
    open_ = (each for each in verdict["findings"] if each["answer"] != "pass")
    return next((each["guard"][:64] for each in open_ if each["sentence"] == verdict["reason"]), None)


def downgrade() -> None:
    op.drop_index("ix_updates_pipeline_finished_at", table_name="updates")
    op.drop_column("updates", "cause")
