"""Which files of a location are read, and the state that the source keeps of each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from streams.base import DataLostError, SourceStoppedError
from streams.sources.files.cursor import FORMATS, ZIPPED, FileCursor, format_of
from streams.store.objects import ObjectInfo

MAX_NAME = 400
"""Longest name of a file with its folders, in characters: the name is the partition."""

_SHOWN_NAMES = 5
_UNFINISHED_ENDS = (".tmp", ".part", ".crswap")


@dataclass
class ListedFile:
    """The state of one file."""

    cursor: str
    """The cursor just after the last record that was read."""
    info: ObjectInfo | None = None
    """As it was last listed; None when it is gone."""
    since: float = 0.0
    """When this version was first seen, by the monotonic clock."""
    exhausted: str = ""
    """The version that was read to its end."""
    waits: bool = False
    """Whether something of that version is read only once the file has settled."""
    begun: str = ""
    """The cursor that commits that the file exists, or that it holds no record; empty before either."""

    @property
    def unread(self) -> bool:
        """Whether no record of it was read."""
        parsed = FileCursor.parse(self.cursor)
        return parsed is None or parsed.end == 0

    @property
    def reached(self) -> str:
        """The cursor of what was read, or of the beginning once the file must be read."""
        return self.begun or self.cursor if self.unread else self.cursor


def is_read(name: str, pattern: re.Pattern[str]) -> bool:
    """Whether a file of that name is read: a known format, matching the pattern, finished and not hidden."""
    if format_of(name) is None or not pattern.match(name):
        return False
    return not _is_aside(name)


def _is_aside(name: str) -> bool:
    """Whether a name, or that of a folder above, says that it is hidden or unfinished."""
    steps = name.split("/")
    return any(step.startswith((".", "_")) or step.endswith(_UNFINISHED_ENDS) for step in steps)


def passed_over(names: Sequence[str], pattern: re.Pattern[str]) -> str | None:
    """A sentence on the files that are not read because of their endings; None where there are none.

    Hidden and unfinished files, and those that the pattern leaves out, are meant to be passed over.
    """
    odd = [name for name in names if format_of(name) is None and pattern.match(name) and not _is_aside(name)]
    if not odd:
        return None
    shown = ", ".join(repr(name[:100]) for name in sorted(odd)[:_SHOWN_NAMES])
    more = f" and {len(odd) - _SHOWN_NAMES} more" if len(odd) > _SHOWN_NAMES else ""
    return (
        f"{len(odd)} files are passed over, because their names end in nothing that is read: {shown}{more}. "
        f"Files that end in {', '.join(FORMATS)} are read, text also with {ZIPPED}: rename them, or keep "
        "them elsewhere."
    )


def check_gone(name: str, file: ListedFile) -> None:
    """Check that a file that is gone was read to its end.

    Raises:
        DataLostError: it was not.
    """
    parsed = FileCursor.parse(file.reached)
    if parsed is None:
        return
    grown = file.info is not None and file.info.size > parsed.size
    if parsed.last and not grown:
        return
    read = f"was read up to byte or row {parsed.end} only" if parsed.end else "nothing of it was read"
    raise DataLostError(
        f"The file {name!r} is gone and {read}: put it back, or make a new pipeline "
        "for what is there. A file may go once its records are in experiences."
    )


def check_name(name: str) -> None:
    """Check that a file's name can be the name of a partition.

    Raises:
        SourceStoppedError: it is too long, or is not UTF-8.
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
