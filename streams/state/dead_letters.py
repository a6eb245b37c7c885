"""Dead letters: payloads that did not become records, kept with their reason until a person has looked."""

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
"""Names in one query: SQLite and PostgreSQL both take so many."""


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
    """What was sent; of a long one only the head."""
    whole_bytes: int = -1
    """Size of what was sent; -1: as long as `payload`."""
    form: Mapping[str, Any] = field(default_factory=dict)
    """How the payload is written, as JSON: what `batch_of` needs."""
    created_at: float = 0.0
    """Epoch seconds; set when it is stored."""
    replayed_at: float | None = None
    """Epoch seconds; None: it was not replayed."""
    rows: int = 1
    """Records that were refused with it; more than one only of a whole Arrow payload. Not stored."""
    stored_as: str = ""
    """The name that it was stored under; empty before it is."""
    earlier: int = 0
    """How many partitions of that name, each forgotten since, had the same payload at the same place."""

    @property
    def letter(self) -> str:
        """Its name within the pipeline: 16 hex digits that follow from where it stood, and what it holds.

        By its place alone, the letters of a file would hide those of a later file of the same name.
        """
        if self.stored_as:
            return self.stored_as
        place = f"{self.partition}\0{self.position}\0".encode("utf-8", "surrogatepass")
        again = b"" if not self.earlier else b"\0%d" % self.earlier
        return hashlib.sha256(place + self.payload + again).hexdigest()[:16]

    @property
    def whole(self) -> bool:
        """Whether all of what was sent is here."""
        return self.whole_bytes in (-1, len(self.payload))


def letter_of(batch: RawBatch, bad: Rejected) -> DeadLetter:
    """What is kept of a payload of this batch that was refused, or of a row of an Arrow payload."""
    many = batch.wire == "arrow"
    whole = not many or bad.whole is batch.payloads[0]
    return DeadLetter(
        partition=batch.partition,
        position=batch.places[bad.place] if len(batch.places) else bad.position,
        reason=bad.reason,
        detail=bad.detail,
        payload=bad.payload,
        whole_bytes=len(bad.whole),
        rows=len(batch.positions) if many and whole else 1,
        form=_form_of(batch, bad.place, whole=whole),
    )


def _form_of(batch: RawBatch, place: int, *, whole: bool) -> dict[str, Any]:
    """What must be known to read a payload again. A row of an Arrow payload is kept as a JSON record."""
    if not whole:
        return {"wire": "json"}
    form: dict[str, Any] = {"wire": batch.wire}
    if batch.wire in ("csv", "arrow"):
        table = batch.table
        form["table"] = [table.id, table.label, table.time, table.split_key]
    if batch.wire == "csv":
        form["header"] = list(batch.header)
        if batch.table.id is None:
            form["id"] = batch.ids[place]
    elif batch.wire == "arrow":
        # Other letters may hold the rest of the payload.
        form |= {"skip": batch.skip, "rows": len(batch.positions)}
    return form


def batch_of(letter: DeadLetter, *, payload: bytes | None = None) -> RawBatch:
    """The letter as a batch of one payload, to be decoded again; `payload` replaces what was sent.

    A replacement is of the same form, or a JSON record, which a person writes more easily.
    """
    form = letter.form
    if payload is not None and payload.lstrip().startswith(b"{"):
        form = {"wire": "json"}
    wire = form.get("wire", "json")
    skip, rows = int(form.get("skip", 0)), int(form.get("rows", 1))
    if wire == "arrow" and payload is not None:
        skip, rows = 0, count_records(payload) or 1
    return RawBatch(
        partition=letter.partition,
        start="",
        payloads=[letter.payload if payload is None else payload],
        positions=[letter.position] * rows,
        wire=wire,
        skip=skip,
        header=form.get("header", ()),
        table=TableColumns(*form["table"]) if "table" in form else TableColumns(),
        # Of records without an id of their own: short, and the same whenever the letter is replayed.
        ids=[form["id"]] if "id" in form else [f"{letter.letter}.{row}" for row in range(rows)],
    )


def add(connection: sql.Connection, pipeline: str, letters: Sequence[DeadLetter], now: float) -> int:
    """Store letters; those that are stored already stay as they are. Answers how many records are new."""
    if not letters:
        return 0
    # A dead letter may be stored before its offset can move, and is then met again after a restart.
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    named: dict[str, DeadLetter] = {}
    asked = {letter.letter: letter for letter in letters}
    while asked:
        stored = _stored(connection, pipeline, list(asked))
        named |= {name: letter for name, letter in asked.items() if name not in stored}
        others = [
            replace(letter, earlier=letter.earlier + 1) for name, letter in asked.items() if stored.get(name)
        ]
        asked = {letter.letter: letter for letter in others}
    rows = [
        {
            "pipeline": pipeline,
            "partition": letter.partition,
            "position": letter.position,
            "letter": name,
            "reason": letter.reason,
            "detail": letter.detail.replace("\0", "\\0"),
            "payload": letter.payload,
            "whole_bytes": len(letter.payload) if letter.whole_bytes < 0 else letter.whole_bytes,
            "form": dict(letter.form),
            "created_at": now,
        }
        for name, letter in named.items()
    ]
    if rows:
        connection.execute(insert(DEAD_LETTERS).on_conflict_do_nothing(), rows)
    return sum(letter.rows for letter in named.values())


def _stored(connection: sql.Connection, pipeline: str, names: Sequence[str]) -> dict[str, bool]:
    """Which of these are stored, and whether each is closed."""
    columns = DEAD_LETTERS.c
    found: dict[str, bool] = {}
    for at in range(0, len(names), _ASKED):
        query = sql.select(columns.letter, columns.closed).where(
            columns.pipeline == pipeline, columns.letter.in_(names[at : at + _ASKED])
        )
        found |= {name: closed for name, closed in connection.execute(query)}
    return found


def close(connection: sql.Connection, pipeline: str, partitions: Sequence[str]) -> None:
    """These partitions are forgotten: what comes under their names from now on is something else."""
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
    """The latest letters, newest first; of one reason, or replayed or not, where that is asked for.

    `after` is the last letter of the page before.
    """
    letters = DEAD_LETTERS.c
    query = sql.select(DEAD_LETTERS).where(letters.pipeline == pipeline)
    if reason is not None:
        query = query.where(letters.reason == reason)
    if replayed is not None:
        query = query.where(letters.replayed_at.is_not(None) if replayed else letters.replayed_at.is_(None))
    if after is not None:
        query = query.where(_comes_after(after))
    order = (letters.created_at.desc(), letters.partition, letters.position.desc(), letters.letter)
    query = query.order_by(*order).limit(limit)
    return [_letter(row) for row in connection.execute(query)]


def _comes_after(letter: DeadLetter) -> sql.ColumnElement[bool]:
    """In the order that letters are listed in."""
    columns = DEAD_LETTERS.c
    later = columns.letter > letter.letter
    for column, value, comes_first in (
        (columns.position, letter.position, columns.position < letter.position),
        (columns.partition, letter.partition, columns.partition > letter.partition),
        (columns.created_at, letter.created_at, columns.created_at < letter.created_at),
    ):
        later = comes_first | ((column == value) & later)
    return later


def get(connection: sql.Connection, pipeline: str, letter: str) -> DeadLetter | None:
    """One letter by its name; None when there is none."""
    query = sql.select(DEAD_LETTERS).where(
        DEAD_LETTERS.c.pipeline == pipeline, DEAD_LETTERS.c.letter == letter
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else _letter(row)


def counts(connection: sql.Connection, pipeline: str, *, replayed: bool = False) -> dict[str, int]:
    """How many letters there are, by reason: those that were not replayed, or those that were."""
    mark = DEAD_LETTERS.c.replayed_at
    query = (
        sql.select(DEAD_LETTERS.c.reason, sql.func.count())
        .where(DEAD_LETTERS.c.pipeline == pipeline, mark.is_not(None) if replayed else mark.is_(None))
        .group_by(DEAD_LETTERS.c.reason)
        .order_by(DEAD_LETTERS.c.reason)
    )
    return {reason: count for reason, count in connection.execute(query)}


def mark_replayed(connection: sql.Connection, pipeline: str, letter: str, now: float) -> bool:
    """Note that a letter became a record after all; False when that was noted before."""
    changed = (
        sql.update(DEAD_LETTERS)
        .where(
            DEAD_LETTERS.c.pipeline == pipeline,
            DEAD_LETTERS.c.letter == letter,
            DEAD_LETTERS.c.replayed_at.is_(None),
        )
        .values(replayed_at=now)
    )
    return connection.execute(changed).rowcount == 1


def _letter(row: sql.Row[Any]) -> DeadLetter:
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
        stored_as=row.letter,
    )
