"""Reads the lines of one version of one text file, plain or compressed."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streams.base import LazyTexts, SchemaChangedError, SourceError, SourceStoppedError, WireName
from streams.sources.files.cursor import FileCursor, is_zipped
from streams.sources.files.text import PlainText, Text, ZippedText
from streams.store.objects import ObjectInfo, ObjectStore

MAX_LINE_BYTES = 64 * 1024 * 1024
_HEAD_BYTES = 64 * 1024
_MARK = b"\xef\xbb\xbf"
"""The byte order mark that some programs put before UTF-8."""

_Numbers = NDArray[np.int64]


class UnfinishedError(SourceError):
    """A file is not complete yet. It is read again later; once it no longer changes, this is an error."""


@dataclass(frozen=True)
class FileRecords:
    """Records of one file, in order."""

    wire: WireName
    payloads: Sequence[bytes]
    positions: Sequence[str]
    """One cursor a record."""
    starts: _Numbers
    """(n,) where each record begins: a byte of the text, or a row of the table."""
    header: Sequence[str] = ()


class Reader(Protocol):
    """Reads one version of one file, from a cursor on."""

    waits: bool
    """Whether something is left that is read only once the file has settled."""

    def read(self, most: int, *, settled: bool) -> FileRecords | None:
        """The next records, `most` of them at most; None when this version holds no more for now.

        Raises:
            UnfinishedError: the file is not complete yet.
            DataLostError: the file is another one now.
            SourceError: the file cannot be read.
            ObjectError: the store cannot be read.
        """
        ...


class LineReader:
    """One record a line. Lines end with "\\n" or "\\r\\n"; blank ones are skipped."""

    def __init__(
        self,
        objects: ObjectStore,
        info: ObjectInfo,
        cursor: FileCursor | None,
        *,
        block_bytes: int,
        check_header: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        """`block_bytes`: how much is read at a time. `check_header`: raises where the columns that the first
        line names are wrong; None: the file has no header."""
        self.waits = False
        self._block_bytes = block_bytes
        self._name = info.name
        self._text: Text = (ZippedText if is_zipped(info.name) else PlainText)(objects, info, cursor)
        self._size = info.size
        self._check_header = check_header
        self._header: Sequence[str] | None = None if check_header else ()
        self._next = 0 if cursor is None else cursor.end
        self._lines = _Lines([], np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint32), False)
        self._given = 0

    def read(self, most: int, *, settled: bool) -> FileRecords | None:
        """See `Reader`."""
        if self._header is None:
            self._header = self._read_header(settled=settled)
            if self._header is None:
                return None
        while self._given == len(self._lines.payloads):
            if not self._fill(settled=settled):
                return None
        return self._serve(most)

    def _serve(self, most: int) -> FileRecords:
        lines, size, head_print = self._lines, self._size, self._text.head_print
        start, stop = self._given, min(self._given + most, len(lines.payloads))
        self._given = stop
        starts, ends, prints = lines.starts, lines.ends, lines.prints
        final = len(ends) - 1 if lines.last else -1

        def position(at: int) -> str:
            end = int(ends[at])
            return str(FileCursor(int(starts[at]), end, size, int(prints[at]), at == final, head_print(end)))

        return FileRecords(
            wire="csv" if self._check_header else "json",
            payloads=lines.payloads[start:stop],
            positions=LazyTexts(position, range(start, stop)),
            starts=starts[start:stop],
            header=self._header or (),
        )

    def _fill(self, *, settled: bool) -> bool:
        """Read the next complete lines; False where there is none, blank ones included."""
        wanted = self._block_bytes
        while True:
            block, at_end = self._text.block(self._next, wanted)
            cut = len(block) if at_end and settled else block.rfind(b"\n") + 1
            if cut or at_end or self._text.unfinished:
                break
            self._check_length(len(block))
            wanted = min(wanted * 4, MAX_LINE_BYTES + 1)
        self._check_length(len(block) - cut)
        self.waits = cut < len(block)
        if not cut:
            if self._text.unfinished:
                raise UnfinishedError(self._text.unfinished)
            return False
        lines = block[:cut]
        if self._next == 0 and lines.startswith(_MARK):
            lines, self._next = lines[len(_MARK) :], len(_MARK)
        payloads, starts, ends = _split(lines)
        base = self._next
        prints = self._text.prints(base, ends)
        self._lines = _Lines(payloads, starts + base, ends + base, prints, at_end and cut == len(block))
        self._given = 0
        self._next = base + len(lines)
        return True

    def _check_length(self, length: int) -> None:
        if length > MAX_LINE_BYTES:
            raise SourceStoppedError(
                f"The line of {self._name!r} that begins at byte {self._next} is longer than "
                f"{MAX_LINE_BYTES // 2**20} MB: write one record a line, or take the file away."
            )

    def _read_header(self, *, settled: bool) -> Sequence[str] | None:
        """The names in the first line that is not blank; None where there is no such line yet."""
        count = _HEAD_BYTES
        while True:
            head, at_end = self._text.head(count)
            text = head.removeprefix(_MARK)
            line, end, rest = text.lstrip(b"\r\n").partition(b"\n")
            if end or at_end or self._text.unfinished:
                break
            self._check_length(len(head))
            count = min(count * 4, MAX_LINE_BYTES + 1)
        if not end and not (settled and line):
            if self._text.unfinished:
                raise UnfinishedError(self._text.unfinished)
            self.waits = bool(line)
            return None
        names = _names(line, self._name)
        if self._check_header is not None:
            self._check_header(names)
        self._next = max(self._next, len(head) - len(rest))
        return names


@dataclass(frozen=True)
class _Lines:
    payloads: list[bytes]
    starts: _Numbers
    ends: _Numbers
    prints: NDArray[np.uint32]
    last: bool
    """Whether nothing comes after them."""


def _split(block: bytes) -> tuple[list[bytes], _Numbers, _Numbers]:
    """The lines of a block that are not blank, and where they begin and end in it, line breaks included."""
    if not block.strip():
        # Very many blank lines would be very many objects.
        return [], np.zeros(0, np.int64), np.zeros(0, np.int64)
    lines = block.split(b"\n")
    whole = not lines[-1]
    if whole:
        lines.pop()
    lengths = np.fromiter(map(len, lines), np.int64, len(lines))
    ends = np.cumsum(lengths + 1)
    starts = ends - lengths - 1
    if not whole:
        ends[-1] -= 1
    if b"\r" in block:
        lines = [line.removesuffix(b"\r") for line in lines]
    # Only lines that begin with white space can be blank, and few lines do.
    maybe = np.flatnonzero(np.frombuffer(block, np.uint8)[starts] <= 32)
    blank = [int(at) for at in maybe if not lines[at].strip()]
    if blank:
        kept = np.delete(np.arange(len(lines)), blank)
        lines, starts, ends = [lines[at] for at in kept], starts[kept], ends[kept]
    return lines, starts, ends


def _names(line: bytes, name: str) -> Sequence[str]:
    try:
        return next(csv.reader([line.decode().rstrip("\r")], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        kind = type(error).__name__
        raise SchemaChangedError(
            f"The first line of {name!r} is no header of a CSV file in UTF-8 ({kind}): write the names of "
            "the columns there, separated by commas."
        ) from error
