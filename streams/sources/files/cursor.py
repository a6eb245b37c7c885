"""Cursors in files, and the fingerprints that show whether a file is still the one that was read.

A cursor such as "1200-1310/99822:8a3f01c2-5f1c07aa" means: the last record was the bytes 1200 to 1310 of a
file that had 99,822 bytes when it was read. Two fingerprints follow, of the bytes before the record's end and
of the file's head. A full stop means that the record was the file's last one then. "0-0" is the beginning of
a file that exists. In Parquet and Arrow files, rows are counted instead of bytes; in a .gz, the bytes are
those of the text, and the size is the file's own.

The first fingerprint covers the 128 bytes before the record's end, which costs the same for lines of any
length; of a .gz the last 128 bytes of the file as it was; of Parquet and Arrow the last 64 KB, which hold the
footer. The head is the first 4 KB up to the record's end, of a .gz the first 4 KB of the file: files often
end alike, and seldom begin alike too.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from streams.base import DataLostError, SourceError
from streams.store.objects import ObjectChangedError, ObjectInfo, ObjectStore

FormatName = Literal["json", "csv", "parquet", "arrow"]

FORMATS: dict[str, FormatName] = {
    ".ndjson": "json",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""The format of a file, by the end of its name. Text files may also end in .gz."""

ZIPPED = ".gz"
WINDOW = 128
"""Bytes that a fingerprint of text covers."""
_TAIL = 64 * 1024
HEAD = 4096
"""Bytes of text that the fingerprint of the head covers."""
_CURSOR = re.compile(r"(\d{1,18})-(\d{1,18})/(\d{1,18}):([0-9a-f]{8})(?:-([0-9a-f]{8}))?(\.?)")
_WEIGHTS = np.array(
    [pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, WINDOW // 8 + 1)], dtype=np.uint64
)


@dataclass(frozen=True, slots=True)
class FileCursor:
    """A position just after one record of a file."""

    start: int
    """Where the record begins."""
    end: int
    """Where it ends, with its line break."""
    size: int
    """Bytes of the file when it was read."""
    fingerprint: int
    last: bool
    """Whether it was the last record of the file then."""
    head: int | None = None
    """Fingerprint of the file's head; None: of a table, or before any record."""

    @classmethod
    def beginning(cls, size: int, *, last: bool) -> Self:
        """The cursor before any record; `last`: a file of that size held no record."""
        return cls(0, 0, size, fingerprint(b""), last)

    @classmethod
    def parse(cls, cursor: str) -> Self | None:
        """The cursor that `str` wrote; None, the beginning, for an empty text.

        Raises:
            SourceError: the text is not a cursor of a file.
        """
        if not cursor:
            return None
        found = _CURSOR.fullmatch(cursor)
        if found is None:
            raise SourceError(
                f"{cursor[:80]!r} is not a cursor of a file, such as '0-110/4200:8a3f01c2': the pipeline's "
                "source was changed; make a new pipeline for it."
            )
        start, end, size, fingerprint, head, stop = found.groups()
        return cls(
            int(start),
            int(end),
            int(size),
            int(fingerprint, 16),
            bool(stop),
            None if head is None else int(head, 16),
        )

    def __str__(self) -> str:
        head = "" if self.head is None else f"-{self.head:08x}"
        return f"{self.start}-{self.end}/{self.size}:{self.fingerprint:08x}{head}{'.' if self.last else ''}"


def format_of(name: str) -> FormatName | None:
    """The format of a file of that name; None where no such file is read."""
    lower = name.lower()
    plain = lower.removesuffix(ZIPPED)
    form = next((form for suffix, form in FORMATS.items() if plain.endswith(suffix)), None)
    return None if plain != lower and form in ("parquet", "arrow") else form


def is_zipped(name: str) -> bool:
    """Whether the file of that name is compressed text."""
    return name.lower().endswith(ZIPPED)


def fingerprints(data: bytes, ends: NDArray[np.int64]) -> NDArray[np.uint32]:
    """(n,) the fingerprint of the 128 bytes before each of `ends` in the data; each end is 128 at least.

    It is the sum of the 64-bit words times odd numbers, modulo 2^64: computed for all ends in a few passes,
    where a checksum of every line would cost as much as the rest of reading.
    """
    windows = np.ndarray((len(data) - WINDOW + 1,), dtype=f"V{WINDOW}", buffer=data, strides=(1,))
    words = windows[ends - WINDOW].view("<u8").reshape(len(ends), WINDOW // 8)
    found = words @ _WEIGHTS
    return (found ^ (found >> np.uint64(32))).astype(np.uint32)


def fingerprint(before: bytes) -> int:
    """The fingerprint of the last 128 bytes; shorter data counts as if zeros came before it."""
    window = before[-WINDOW:].rjust(WINDOW, b"\0")
    return int(fingerprints(window, np.array([WINDOW], dtype=np.int64))[0])


def head_print(text: bytes) -> int:
    """The fingerprint of a file's head, from the first bytes of its text."""
    return zlib.crc32(text[:HEAD])


def read_exactly(objects: ObjectStore, info: ObjectInfo, start: int, stop: int) -> bytes:
    """A range of bytes of a file, all of which it had when it was listed.

    Raises:
        ObjectChangedError: the file is shorter now.
    """
    found = objects.read(info.name, start, stop)
    if len(found) != stop - start:
        raise ObjectChangedError(f"The file {info.name!r} became shorter while it was read.")
    return found


def zip_fingerprint(objects: ObjectStore, info: ObjectInfo, size: int) -> int:
    """The fingerprint of a .gz when it had that size."""
    return fingerprint(read_exactly(objects, info, max(0, size - WINDOW), size))


def table_fingerprint(objects: ObjectStore, info: ObjectInfo) -> int:
    """The fingerprint of a Parquet or Arrow file."""
    tail = read_exactly(objects, info, max(0, info.size - _TAIL), info.size)
    return zlib.crc32(tail, info.size & 0xFFFFFFFF)


def verify(objects: ObjectStore, info: ObjectInfo, cursor: FileCursor) -> None:
    """Check that a file is still the one that was read up to this cursor.

    Raises:
        DataLostError: it was replaced, or is shorter.
        ObjectError: it cannot be read.
    """
    if cursor.end == 0:
        return
    if format_of(info.name) in ("parquet", "arrow"):
        if table_fingerprint(objects, info) != cursor.fingerprint:
            raise _replaced(info.name)
        return
    if info.size < cursor.size:
        raise DataLostError(
            f"The file {info.name!r} has {info.size} bytes and had {cursor.size} when it was read: put the "
            "whole file back, and let new records arrive in files of new names or at a file's end."
        )
    if is_zipped(info.name):
        if zip_fingerprint(objects, info, cursor.size) != cursor.fingerprint:
            raise _replaced(info.name)
        _verify_head(objects, info, cursor, cursor.size)
        return
    first = max(0, cursor.end - WINDOW)
    found = read_exactly(objects, info, first, min(cursor.end + 1, info.size))
    before, after = found[: cursor.end - first], found[cursor.end - first :]
    if fingerprint(before) != cursor.fingerprint:
        raise _replaced(info.name)
    _verify_head(objects, info, cursor, cursor.end)
    if after not in (b"", b"\n", b"\r") and not before.endswith(b"\n"):
        raise DataLostError(
            f"The line of {info.name!r} that ended at byte {cursor.end} was taken so, and has gone on since: "
            "write whole lines or set a longer settle_seconds, and let the record arrive again in a new file."
        )


def _verify_head(objects: ObjectStore, info: ObjectInfo, cursor: FileCursor, stop: int) -> None:
    if cursor.head is not None:
        found = read_exactly(objects, info, 0, min(HEAD, stop))
        if head_print(found) != cursor.head:
            raise _replaced(info.name)


def _replaced(name: str) -> DataLostError:
    return DataLostError(
        f"The file {name!r} is not the one that was read before: put that one back, and let new records "
        "arrive in files of new names."
    )
