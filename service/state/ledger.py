"""The ledger: an append-only, hash-chained list of decisions, one chain a pipeline."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import sqlalchemy as sa

from service.state.database import champions, ledger, lock_pipeline, now

Action = Literal[
    "promote",
    "review",
    "reject",
    "rollback",
    "freeze",
    "unfreeze",
    "retire",
    "restore",
    "pin",
    "unpin",
    "keep",
    "unkeep",
    "margin",
    "golden",
    "relabel",
    "traffic",
]

GENESIS = "0" * 64

GATE = "gate"
"""The actor of decisions that no person took."""


@dataclass(frozen=True)
class By:
    """Who decides, why, and through which update."""

    actor: str
    """A person's name, or `GATE`."""
    reason: str
    update_id: str | None = None
    """The update decided on; None where the decision concerns no single update."""


@dataclass(frozen=True)
class Entry:
    """One decision: what was done, by whom and why."""

    pipeline: str
    sequence: int
    action: Action
    actor: str
    reason: str
    update_id: str | None
    version: int | None
    """The version decided on."""
    previous_version: int | None
    """The champion before the decision."""
    at: float
    """Seconds since the epoch."""
    previous_hash: str
    hash: str

    def computed_hash(self) -> str:
        """sha256 over every other field; a changed field, or a changed predecessor, gives another hash."""
        content = {name: value for name, value in asdict(self).items() if name != "hash"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def append(
    connection: sa.Connection,
    pipeline: str,
    *,
    action: Action,
    by: By,
    version: int | None,
    previous_version: int | None,
) -> Entry:
    """Add one entry, in the caller's transaction.

    Appends to one chain follow one another: the second waits until the first has committed, and continues
    from its entry. The primary key would refuse a fork all the same.
    """
    lock_pipeline(connection, pipeline)
    last = connection.execute(
        sa.select(ledger.c.sequence, ledger.c.hash)
        .where(ledger.c.pipeline == pipeline)
        .order_by(ledger.c.sequence.desc())
        .limit(1)
    ).first()
    draft = Entry(
        pipeline=pipeline,
        sequence=last.sequence + 1 if last else 1,
        action=action,
        actor=by.actor,
        reason=by.reason,
        update_id=by.update_id,
        version=version,
        previous_version=previous_version,
        at=now(connection),
        previous_hash=last.hash if last else GENESIS,
        hash="",
    )
    entry = Entry(**{**asdict(draft), "hash": draft.computed_hash()})
    connection.execute(sa.insert(ledger).values(**asdict(entry)))
    return entry


def entries(connection: sa.Connection, pipeline: str, *, after: int = 0, limit: int = 1000) -> list[Entry]:
    """Entries in order, from the one after `after`."""
    rows = connection.execute(
        sa.select(ledger)
        .where(ledger.c.pipeline == pipeline, ledger.c.sequence > after)
        .order_by(ledger.c.sequence)
        .limit(limit)
    )
    return [Entry(**row._mapping) for row in rows]


def first_break(chain: Sequence[Entry], *, after: Entry | None = None) -> int | None:
    """The sequence of the first entry that does not follow from the one before it; None: the chain holds.

    `chain` starts right after `after`, whose own hash is checked too; None: at the pipeline's first entry.
    Entries taken off its end leave a shorter chain that holds: see `ends_at_champion`.
    """
    if after is not None and after.hash != after.computed_hash():
        return after.sequence
    last, previous_hash = (after.sequence, after.hash) if after else (0, GENESIS)
    for sequence, entry in enumerate(chain, start=last + 1):
        intact = entry.sequence == sequence and entry.previous_hash == previous_hash
        if not intact or entry.hash != entry.computed_hash():
            return sequence
        previous_hash = entry.hash
    return None


def ends_at_champion(connection: sa.Connection, pipeline: str) -> bool:
    """Whether the newest entry that moved the champion is about the version in use: else its end is missing.

    In one statement: a champion that moves meanwhile moves with its entry.
    """
    moved = (
        sa.select(ledger.c.version)
        .where(ledger.c.pipeline == pipeline, ledger.c.action.in_(("promote", "rollback")))
        .order_by(ledger.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )
    present = sa.select(champions.c.version).where(champions.c.pipeline == pipeline).scalar_subquery()
    row = connection.execute(sa.select(moved.label("moved"), present.label("present"))).one()
    return bool(row.moved == row.present)
