"""Streams: what ingest reports of records without a match is called `unmatched`, as in the API."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _rename("waiting", "unmatched")


def downgrade() -> None:
    _rename("unmatched", "waiting")


def _rename(before: str, after: str) -> None:
    """Rename a key of the JSON in `stream_states.pending`, where it is there."""
    states = sa.table("stream_states", sa.column("pipeline"), sa.column("pending", sa.JSON))
    connection = op.get_bind()
    for pipeline, pending in connection.execute(sa.select(states.c.pipeline, states.c.pending)).all():
        renamed: dict[str, Any] = {after if key == before else key: value for key, value in pending.items()}
        if renamed != pending:
            connection.execute(sa.update(states).where(states.c.pipeline == pipeline).values(pending=renamed))
