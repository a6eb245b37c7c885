"""Rows of dead letters: payloads that did not become records, with the reason."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite

from streams.base import RawBatch, TableColumns
from streams.state.tables import DEAD_LETTERS
from streams.wire.decode import Rejected, count_records

_ASKED = 500
"""Names in one query, which both SQLite and PostgreSQL accept."""


@dataclass(frozen=True)
class DeadLetter:
    """A payload that did not become a record."""

    partition: str
    position: str
    reason: str
    """A code, one of `streams.wire.decode.Reason`."""
    detail: str
    """A sentence that the sender can act on."""
    payload: bytes
    """The payload as it was sent; of a long one only the head."""
    whole_bytes: int = -1
    """Size of what was sent; -1: as long as `payload`."""
    form: Mapping[str, Any] = field(default_factory=dict)
    """How the payload is encoded, as JSON: `batch_of` needs it to decode the payload again."""
    created_at: float = 0.0
    """Epoch seconds; set when it is stored."""
    replayed_at: float | None = None
    """Epoch seconds; None: it is not replayed."""
    rows: int = 1
    """Records refused with it; more than one only for a whole Arrow payload. Not stored."""
    stored_as: str = ""
    """The name that it is stored under; empty while it is not."""
    earlier: int = 0
    """How many forgotten partitions of that name had the same payload at the same position."""

    @property
    def name(self) -> str:
        """Its name within the pipeline: 16 hex digits of a hash of its position and its payload.

        By the position alone, the dead letters of a file would hide those of a later file of the same name.
        """
        if self.stored_as:
            return self.stored_as
        position = f"{self.partition}\0{self.position}\0".encode("utf-8", "surrogatepass")
        again = b"" if not self.earlier else b"\0%d" % self.earlier
        return hashlib.sha256(position + self.payload + again).hexdigest()[:16]

    @property
    def whole(self) -> bool:
        """Whether the payload is all of what was sent."""
        return self.whole_bytes in (-1, len(self.payload))


def dead_letter_of(batch: RawBatch, bad: Rejected) -> DeadLetter:
    """The dead letter of a refused payload of this batch, or of a refused row of an Arrow payload."""
    many = batch.wire == "arrow"
    whole = not many or bad.whole is batch.payloads[0]
    return DeadLetter(
        partition=batch.partition,
        position=batch.stable_positions[bad.index] if len(batch.stable_positions) else bad.position,
        reason=bad.reason,
        detail=bad.detail,
        payload=bad.payload,
        whole_bytes=len(bad.whole),
        rows=len(batch.positions) if many and whole else 1,
        form=_form_of(batch, bad.index, whole=whole),
    )


def _form_of(batch: RawBatch, index: int, *, whole: bool) -> dict[str, Any]:
    """How a payload is encoded. A row of an Arrow payload is kept as a JSON record."""
    if not whole:
        return {"wire": "json"}
    form: dict[str, Any] = {"wire": batch.wire}
    if batch.wire in ("csv", "arrow"):
        table = batch.table
        form["table"] = [table.id, table.label, table.time, table.split_key]
    if batch.wire == "csv":
        form["header"] = list(batch.header)
        if batch.table.id is None:
            form["id"] = batch.ids[index]
    elif batch.wire == "arrow":
        # Other dead letters may hold the rest of the payload.
        form |= {"skip": batch.skip, "rows": len(batch.positions)}
    return form


def batch_of(dead_letter: DeadLetter, *, payload: bytes | None = None) -> RawBatch:
    """A dead letter as a batch of one payload, to be decoded again; `payload` replaces what was sent.

    A replacement has the same encoding, or is a JSON record, which is easier to write by hand.
    """
    form = dead_letter.form
    if payload is not None and payload.lstrip().startswith(b"{"):
        form = {"wire": "json"}
    wire = form.get("wire", "json")
    skip, rows = int(form.get("skip", 0)), int(form.get("rows", 1))
    if wire == "arrow" and payload is not None:
        skip, rows = 0, count_records(payload) or 1
    return RawBatch(
        partition=dead_letter.partition,
        start="",
        payloads=[dead_letter.payload if payload is None else payload],
        positions=[dead_letter.position] * rows,
        wire=wire,
        skip=skip,
        header=form.get("header", ()),
        table=TableColumns(*form["table"]) if "table" in form else TableColumns(),
        # Ids of records that have none: short, and the same whenever the dead letter is replayed.
        ids=[form["id"]] if "id" in form else [f"{dead_letter.name}.{row}" for row in range(rows)],
    )


def add(connection: sql.Connection, pipeline: str, new: Sequence[DeadLetter], now: float) -> int:
    """Store dead letters; those stored already stay as they are. Returns how many records are new."""
    if not new:
        return 0
    # A dead letter may be stored before its offset can move, and is then read again after a restart.
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    named: dict[str, DeadLetter] = {}
    asked = {each.name: each for each in new}
    while asked:
        stored = _stored(connection, pipeline, list(asked))
        named |= {name: each for name, each in asked.items() if name not in stored}
        others = [replace(each, earlier=each.earlier + 1) for name, each in asked.items() if stored.get(name)]
        asked = {each.name: each for each in others}
    rows = [
        {
            "pipeline": pipeline,
            "partition": each.partition,
            "position": each.position,
            "name": name,
            "reason": each.reason,
            "detail": each.detail.replace("\0", "\\0"),
            "payload": each.payload,
            "whole_bytes": len(each.payload) if each.whole_bytes < 0 else each.whole_bytes,
            "form": dict(each.form),
            "created_at": now,
        }
        for name, each in named.items()
    ]
    if rows:
        connection.execute(insert(DEAD_LETTERS).on_conflict_do_nothing(), rows)
    return sum(each.rows for each in named.values())


def _stored(connection: sql.Connection, pipeline: str, names: Sequence[str]) -> dict[str, bool]:
    """Which of these names are stored, and whether each is closed."""
    columns = DEAD_LETTERS.c
    found: dict[str, bool] = {}
    for at in range(0, len(names), _ASKED):
        query = sql.select(columns.name, columns.closed).where(
            columns.pipeline == pipeline, columns.name.in_(names[at : at + _ASKED])
        )
        found |= {name: closed for name, closed in connection.execute(query)}
    return found


def close(connection: sql.Connection, pipeline: str, partitions: Sequence[str]) -> None:
    """Close the dead letters of forgotten partitions: a later partition of that name is another one."""
    columns = DEAD_LETTERS.c
    where = (columns.pipeline == pipeline, columns.partition.in_(partitions), ~columns.closed)
    connection.execute(sql.update(DEAD_LETTERS).where(*where).values(closed=True))


def latest(
    connection: sql.Connection,
    pipeline: str,
    *,
    limit: int,
    reason: str | None = None,
    replayed: bool | None = None,
    after: DeadLetter | None = None,
) -> list[DeadLetter]:
    """The latest dead letters, newest first; of one reason, or replayed or not, where that is given.

    `after` is the last dead letter of the page before.
    """
    columns = DEAD_LETTERS.c
    query = sql.select(DEAD_LETTERS).where(columns.pipeline == pipeline)
    if reason is not None:
        query = query.where(columns.reason == reason)
    if replayed is not None:
        query = query.where(columns.replayed_at.is_not(None) if replayed else columns.replayed_at.is_(None))
    if after is not None:
        query = query.where(_comes_after(after))
    order = (columns.created_at.desc(), columns.partition, columns.position.desc(), columns.name)
    query = query.order_by(*order).limit(limit)
    return [_read(row) for row in connection.execute(query)]


def _comes_after(dead_letter: DeadLetter) -> sql.ColumnElement[bool]:
    """The condition that a row comes after this dead letter in the order of `latest`."""
    columns = DEAD_LETTERS.c
    later = columns.name > dead_letter.name
    for column, value, comes_first in (
        (columns.position, dead_letter.position, columns.position < dead_letter.position),
        (columns.partition, dead_letter.partition, columns.partition > dead_letter.partition),
        (columns.created_at, dead_letter.created_at, columns.created_at < dead_letter.created_at),
    ):
        later = comes_first | ((column == value) & later)
    return later


def get(connection: sql.Connection, pipeline: str, name: str) -> DeadLetter | None:
    """One dead letter by its name; None when there is none."""
    query = sql.select(DEAD_LETTERS).where(DEAD_LETTERS.c.pipeline == pipeline, DEAD_LETTERS.c.name == name)
    row = connection.execute(query).one_or_none()
    return None if row is None else _read(row)


def counts(connection: sql.Connection, pipeline: str, *, replayed: bool = False) -> dict[str, int]:
    """How many dead letters there are, by reason: those not replayed, or those that were."""
    mark = DEAD_LETTERS.c.replayed_at
    query = (
        sql.select(DEAD_LETTERS.c.reason, sql.func.count())
        .where(DEAD_LETTERS.c.pipeline == pipeline, mark.is_not(None) if replayed else mark.is_(None))
        .group_by(DEAD_LETTERS.c.reason)
        .order_by(DEAD_LETTERS.c.reason)
    )
    return {reason: count for reason, count in connection.execute(query)}


def mark_replayed(connection: sql.Connection, pipeline: str, name: str, now: float) -> bool:
    """Mark a dead letter as replayed; False when it was marked before."""
    changed = (
        sql.update(DEAD_LETTERS)
        .where(
            DEAD_LETTERS.c.pipeline == pipeline,
            DEAD_LETTERS.c.name == name,
            DEAD_LETTERS.c.replayed_at.is_(None),
        )
        .values(replayed_at=now)
    )
    return connection.execute(changed).rowcount == 1


def _read(row: sql.Row[Any]) -> DeadLetter:
    return DeadLetter(
        partition=row.partition,
        position=row.position,
        reason=row.reason,
        detail=row.detail,
        payload=row.payload,
        whole_bytes=row.whole_bytes,
        form=dict(row.form),
        created_at=row.created_at,
        replayed_at=row.replayed_at,
        stored_as=row.name,
    )
