"""The files of a location: which of them are read, and what the source knows of each."""

import re
from dataclasses import dataclass

from streams.base import DataLostError, SourceStoppedError
from streams.sources.files.cursor import Place, form_of
from streams.store.objects import ObjectInfo

MAX_NAME = 400
"""Longest name of a file with its folders, in characters: the name is the partition."""

_UNFINISHED_ENDS = (".tmp", ".part", ".crswap")


@dataclass
class ListedFile:
    """What the source knows of one file."""

    cursor: str
    """Just after the last record given."""
    info: ObjectInfo | None = None
    """As it was listed last; None when it is gone."""
    since: float = 0.0
    """When it was first seen so, by the monotonic clock."""
    exhausted: str = ""
    """The version that held nothing more."""
    waits: bool = False
    """Whether that version holds something that must settle."""
    begun: str = ""
    """The cursor that says that it is there, once it is owed, or that it holds no record."""

    @property
    def unread(self) -> bool:
        """Whether no record of it was given."""
        place = Place.parse(self.cursor)
        return place is None or place.end == 0

    @property
    def reached(self) -> str:
        """The cursor of what was read, or of the beginning once the file is owed."""
        return self.begun or self.cursor if self.unread else self.cursor


def is_read(name: str, pattern: re.Pattern[str]) -> bool:
    """Whether a file of that name is read: a known format, matching the pattern, finished and not hidden."""
    if form_of(name) is None or not pattern.match(name):
        return False
    steps = name.split("/")
    return not any(step.startswith((".", "_")) or step.endswith(_UNFINISHED_ENDS) for step in steps)


def check_gone(name: str, file: ListedFile) -> None:
    """Hold a file that is not there any more to what is owed of it.

    Raises:
        DataLostError: it was not read to its end.
    """
    place = Place.parse(file.reached)
    if place is None:
        return
    grown = file.info is not None and file.info.size > place.size
    if place.last and not grown:
        return
    read = f"was read up to byte or row {place.end} only" if place.end else "nothing of it was read"
    raise DataLostError(
        f"The file {name!r} is gone and {read}: put it back, or make a new pipeline "
        "for what is there. A file may go once its records are in experiences."
    )


def check_name(name: str) -> None:
    """Hold a file's name to what a partition may be called.

    Raises:
        SourceStoppedError: it is too long, or is no text.
    """
    if len(name) > MAX_NAME:
        raise SourceStoppedError(
            f"The name of the file {name[:60]!r}... has {len(name)} characters, with its folders, and "
            f"{MAX_NAME} is the most: rename it; nothing was skipped."
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SourceStoppedError(
            f"The name of the file {name!a} is not UTF-8: rename it; nothing was skipped."
        ) from None
