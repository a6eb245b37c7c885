"""The rows of stored halves that wait for their other half."""

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
    """Halves that wait for their label, or for their features, and must outlive the process."""

    new: Part | None
    touched: Sequence[WaitingPart]
    """Of these more is gone than the manifest knows."""
    aged_out: int
    """Features, or labels, whose other half never came: added to the stream's count."""


def read(connection: sql.Connection, pipeline: str) -> list[WaitingPart]:
    """All of a pipeline, oldest first."""
    query = sql.select(WAITING_PARTS).where(WAITING_PARTS.c.pipeline == pipeline)
    rows = connection.execute(query.order_by(WAITING_PARTS.c.sequence)).all()
    return [
        WaitingPart(row.sequence, row.digest, _unpacked(row.gone, row.rows), row.stored_at) for row in rows
    ]


def save(connection: sql.Connection, pipeline: str, change: WaitingCommit, now: float) -> WaitingPart | None:
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
