"""Rows of experiences: the spans of partitions that were cut, and the files of their parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql

from streams.base import FencedError
from streams.state.tables import EXPERIENCES


@dataclass(frozen=True)
class Part:
    """One stored file of an experience."""

    digest: str
    rows: int


@dataclass(frozen=True)
class Span:
    """A range of one partition: from just after `start` up to and including `end`."""

    start: str
    end: str


@dataclass(frozen=True)
class CutExperience:
    """An experience whose files are written and whose row is not."""

    train: Part
    gate: Part
    audit: Part
    schema_fingerprint: str
    cut_reason: str
    trigger_state: Mapping[str, Any] = field(default_factory=dict)
    decision: Mapping[str, Any] = field(default_factory=dict)
    """The numbers that made the trigger cut."""


@dataclass(frozen=True)
class ExperienceRow:
    """One committed experience."""

    pipeline: str
    index: int
    train: Part
    gate: Part
    audit: Part
    schema_fingerprint: str
    positions: Mapping[str, Span]
    cut_reason: str
    created_at: float
    """Epoch seconds."""
    decision: Mapping[str, Any] = field(default_factory=dict)
    train_removed_at: float | None = None
    """Epoch seconds when the retention policy removed the train part; None: it is there."""

    @property
    def rows(self) -> int:
        """Records in all three parts."""
        return self.train.rows + self.gate.rows + self.audit.rows


def add(
    connection: sql.Connection,
    pipeline: str,
    moves: Mapping[str, Span],
    experience: CutExperience,
    now: float,
) -> ExperienceRow:
    """Insert an experience under the next index.

    Raises:
        FencedError: another process has written one of that index.
    """
    last = sql.select(sql.func.max(EXPERIENCES.c.index)).where(EXPERIENCES.c.pipeline == pipeline)
    index = connection.execute(last).scalar()
    row = ExperienceRow(
        pipeline=pipeline,
        index=0 if index is None else index + 1,
        train=experience.train,
        gate=experience.gate,
        audit=experience.audit,
        schema_fingerprint=experience.schema_fingerprint,
        positions=dict(moves),
        cut_reason=experience.cut_reason,
        created_at=now,
        decision=dict(experience.decision),
    )
    try:
        connection.execute(sql.insert(EXPERIENCES).values(_values(row)))
    except sql.exc.IntegrityError as error:
        raise FencedError(
            f"Experience {row.index} of pipeline {pipeline!r} was written by another ingest process: keep "
            "one of them and restart it."
        ) from error
    return row


def _values(row: ExperienceRow) -> dict[str, Any]:
    return {
        "pipeline": row.pipeline,
        "index": row.index,
        "train_digest": row.train.digest,
        "train_rows": row.train.rows,
        "gate_digest": row.gate.digest,
        "gate_rows": row.gate.rows,
        "audit_digest": row.audit.digest,
        "audit_rows": row.audit.rows,
        "schema_fingerprint": row.schema_fingerprint,
        "positions": {name: [span.start, span.end] for name, span in row.positions.items()},
        "cut_reason": row.cut_reason,
        "decision": dict(row.decision),
        "created_at": row.created_at,
    }


def read(row: sql.Row[Any]) -> ExperienceRow:
    """An experience from its row."""
    return ExperienceRow(
        pipeline=row.pipeline,
        # `row.index` would be the method of a tuple.
        index=row._mapping["index"],
        train=Part(row.train_digest, row.train_rows),
        gate=Part(row.gate_digest, row.gate_rows),
        audit=Part(row.audit_digest, row.audit_rows),
        schema_fingerprint=row.schema_fingerprint,
        positions={name: Span(start, end) for name, (start, end) in row.positions.items()},
        cut_reason=row.cut_reason,
        created_at=row.created_at,
        decision=dict(row.decision),
        train_removed_at=row.train_removed_at,
    )
