"""Redis cursors, and the counters that detect trimmed entries.

Redis deletes entries without notice to readers: XTRIM, MAXLEN, XDEL, a restart without its newest data. But
it counts all entries ever added to a stream, and so does a cursor: where the two counts disagree, entries
were deleted unread.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from streams.base import SourceError

EntryId = tuple[int, int]

ZERO: EntryId = (0, 0)
"""Before every entry: Redis gives no entry this id."""

_CURSOR = re.compile(r"(\d{1,20})-(\d{1,20})(?::(\d{1,20}))?(?::(\d{1,20})-(\d{1,20}))?", re.ASCII)


class RedisCursor(NamedTuple):
    """Just after an entry: "ms-seq:added". A bare "ms-seq" is accepted too, and detects less."""

    entry: EntryId = ZERO
    added: int | None = 0
    """How many entries had been added to the stream, this one included; None: not known."""
    forgiven: EntryId = ZERO
    """Deletions up to this id are no loss: they came before reading began at the oldest entry."""
    begun: bool = False
    """Whether the stream existed: "0-0:added" means that it did, before any entry of it is committed."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor that `str` wrote, or the beginning for an empty text.

        Raises:
            SourceError: the text is not a cursor of a Redis stream.
        """
        if not text:
            return cls()
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise SourceError(
                f"{text[:80]!r} is not a cursor of a Redis stream, such as '1700000000000-0:12'."
            )
        entry, added, forgiven = (found[1], found[2]), found[3], (found[4] or "0", found[5] or "0")
        return cls(
            (int(entry[0]), int(entry[1])),
            None if added is None else int(added),
            (int(forgiven[0]), int(forgiven[1])),
            True,
        )

    def __str__(self) -> str:
        if not self.begun:
            return ""
        added = "" if self.added is None else f":{self.added}"
        forgiven = f":{id_text(self.forgiven)}" if added and self.forgiven > self.entry else ""
        return f"{id_text(self.entry)}{added}{forgiven}"

    def after(self, entry: EntryId, count: int) -> "RedisCursor":
        """The cursor after `count` more entries, `entry` being the last of them."""
        added = None if self.added is None else self.added + count
        return RedisCursor(entry, added, self.forgiven, begun=True)

    def problem(self, state: "StreamState | None", *, present: bool) -> str | None:
        """Why entries after this one may be gone, as the end of a sentence; None when all of them are there.

        `present` is whether its own entry is still in the stream. Trimming takes entries strictly from the
        oldest on, so while that one is there, or an older one, nothing after it was trimmed.
        """
        if state is None:
            return "the whole stream is gone" if self.begun else None
        if state.last < self.entry:
            return f"its newest id is {id_text(state.last)}, so the server has gone back to an older state"
        if state.deleted > max(self.entry, self.forgiven):
            return f"{id_text(state.deleted)} was deleted before it was read"
        if present:
            return None
        if state.first is not None and state.first <= self.entry:
            if state.deleted >= self.entry:
                return None
            return (
                f"the entry {id_text(self.entry)} itself was never deleted and is not there, so data was lost"
            )
        begins = "it is empty" if state.first is None else f"it begins at {id_text(state.first)}"
        if self.added is None:
            return None if state.last == self.entry else f"{begins}, and what was in between is not known"
        missing = state.added - self.added - state.length
        if missing > 0:
            return f"{begins}, and {missing:,} entries before that were trimmed or deleted unread"
        if missing < 0:
            return f"{begins}, and it was given fewer entries than were read of it, so it was created again"
        return None


@dataclass(frozen=True)
class StreamState:
    """The answer to XINFO STREAM at the moment of a read."""

    length: int
    added: int
    """Entries ever added, including those that are gone."""
    first: EntryId | None
    """The oldest entry; None when there is none."""
    last: EntryId
    """The newest id ever given."""
    deleted: EntryId
    """The highest id that XDEL deleted; trimming does not count."""

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Self:
        """The state from the answer to XINFO STREAM.

        Raises:
            KeyError: the server is older than version 7 and does not count.
        """
        oldest = answer["first-entry"]
        return cls(
            length=int(answer["length"]),
            added=int(answer["entries-added"]),
            first=id_of(oldest[0]) if oldest else None,
            last=id_of(answer["last-generated-id"]),
            deleted=id_of(answer["max-deleted-entry-id"]),
        )


def id_of(text: bytes) -> EntryId:
    """The two numbers of an entry id, which order like the entries."""
    ms, _, sequence = text.partition(b"-")
    return int(ms), int(sequence)


def id_text(entry: EntryId) -> str:
    """An entry id as Redis writes it."""
    return f"{entry[0]}-{entry[1]}"
