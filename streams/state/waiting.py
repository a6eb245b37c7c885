"""Rows of waiting parts: stored files of unmatched records."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sql
from numpy.typing import NDArray

from streams.joining import WaitingPart
from streams.state.experiences import Part
from streams.state.tables import WAITING_PARTS


@dataclass(frozen=True)
class WaitingCommit:
    """The waiting parts that a commit adds and changes."""

    new: Part | None
    touched: Sequence[WaitingPart]
    """Parts of which more records are gone than their rows say. One that is all gone loses its row."""
    aged_out: int
    """Unmatched records that waited too long: added to the stream's count."""


def read(connection: sql.Connection, pipeline: str) -> list[WaitingPart]:
    """All waiting parts of a pipeline, oldest first."""
    query = sql.select(WAITING_PARTS).where(WAITING_PARTS.c.pipeline == pipeline)
    rows = connection.execute(query.order_by(WAITING_PARTS.c.sequence)).all()
    return [
        WaitingPart(row.sequence, row.digest, _unpacked(row.gone, row.rows), row.stored_at) for row in rows
    ]


def save(connection: sql.Connection, pipeline: str, change: WaitingCommit, now: float) -> WaitingPart | None:
    """Apply the changes of a commit; the new part, if there is one."""
    table = WAITING_PARTS
    for part in change.touched:
        where = (table.c.pipeline == pipeline, table.c.sequence == part.sequence)
        if part.gone.all():
            connection.execute(sql.delete(table).where(*where))
        else:
            connection.execute(sql.update(table).where(*where).values(gone=_packed(part.gone)))
    if change.new is None:
        return None
    last = sql.select(sql.func.max(table.c.sequence)).where(table.c.pipeline == pipeline)
    sequence = 1 + (connection.execute(last).scalar() or 0)
    gone = np.zeros(change.new.rows, dtype=np.bool_)
    connection.execute(
        sql.insert(table).values(
            pipeline=pipeline,
            sequence=sequence,
            digest=change.new.digest,
            rows=change.new.rows,
            gone=_packed(gone),
            stored_at=now,
        )
    )
    return WaitingPart(sequence, change.new.digest, gone, now)


def _packed(gone: NDArray[np.bool_]) -> bytes:
    return np.packbits(gone).tobytes()


def _unpacked(stored: bytes, rows: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(stored, np.uint8), count=rows).astype(np.bool_)
