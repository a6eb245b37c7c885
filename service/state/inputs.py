"""Stores an update's input documents: JSON texts, each with the sha256 of its bytes.

They are written once and never changed. `service.updates.inputs` defines their contents.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from service.errors import InputsUnfitError
from service.state.database import now, update_inputs

Name = Literal["configuration", "plan", "result"]


@dataclass(frozen=True)
class StoredDocument:
    """One document as the database has it now."""

    name: Name
    text: str
    digest: str
    """sha256 of the text, stored with it."""

    @property
    def found(self) -> str:
        """sha256 of the text now."""
        return digest_of(self.text)

    @property
    def intact(self) -> bool:
        """Whether the text still has the stored digest."""
        return self.found == self.digest


def digest_of(text: str) -> str:
    """sha256 of a document's bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def save(connection: sa.Connection, update_id: str, texts: Mapping[Name, str]) -> None:
    """Store documents of an update, in the caller's fenced transaction."""
    moment = now(connection)
    rows = [
        {
            "update_id": update_id,
            "name": name,
            "document": text,
            "digest": digest_of(text),
            "created_at": moment,
        }
        for name, text in texts.items()
    ]
    connection.execute(sa.insert(update_inputs), rows)


def read(connection: sa.Connection, update_id: str) -> dict[Name, StoredDocument]:
    """The documents of an update; empty: it has no plan yet, or an older release planned it."""
    columns = update_inputs.c
    rows = connection.execute(
        sa.select(columns.name, columns.document, columns.digest).where(columns.update_id == update_id)
    )
    return {row.name: StoredDocument(row.name, row.document, row.digest) for row in rows}


def made(connection: sa.Connection, update_id: str) -> dict[str, str]:
    """Files of the checkpoint that an update left -> sha256, as its settlement stored them.

    Empty: it made none, or an older release settled it.

    Raises:
        InputsUnfitError: the row was changed after it was stored.
    """
    result = read(connection, update_id).get("result")
    if result is None:
        return {}
    if not result.intact:
        raise InputsUnfitError(
            f"The stored result of update {update_id} was changed after it was stored.",
            fix="The table update_inputs was changed: restore the database from a backup.",
        )
    found: dict[str, str] = json.loads(result.text)["origin"]["made"]
    return found


def are_kept(connection: sa.Connection) -> bool:
    """Whether the database has the table for them; an older release's has not."""
    return sa.inspect(connection).has_table(update_inputs.name)
