"""Reads the text of one version of a file, plain or compressed, block by block."""

import gzip
import io
import zlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streams.base import DataLostError
from streams.sources.files.cursor import (
    HEAD,
    WINDOW,
    FileCursor,
    fingerprint,
    fingerprints,
    head_print,
    read_exactly,
    zip_fingerprint,
)
from streams.store.objects import ObjectInfo, ObjectStore

_STEP_BYTES = 1024 * 1024


class Text(Protocol):
    """The text of one version of a file."""

    unfinished: str
    """Why the text ends too early, as a sentence; empty where it does not."""

    def head(self, count: int) -> tuple[bytes, bool]:
        """The first bytes, and whether they are all."""
        ...

    def block(self, start: int, count: int) -> tuple[bytes, bool]:
        """`count` bytes from `start` on, fewer at the end of the text, and whether it ends with them. `start`
        is never before that of the last block."""
        ...

    def prints(self, start: int, ends: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(n,) fingerprints before these ends in the last block, counted from `start`."""
        ...

    def head_print(self, end: int) -> int:
        """The fingerprint of the head, for a record that ends there in the text."""
        ...


class PlainText:
    """Text of a plain file. Each block is read with the bytes before it, which must not have changed."""

    def __init__(self, objects: ObjectStore, info: ObjectInfo, cursor: FileCursor | None) -> None:
        self.unfinished = ""
        self._objects = objects
        self._info = info
        self._expected = None if cursor is None else (cursor.end, cursor.fingerprint)
        self._start = 0
        self._padded = bytes(WINDOW)
        self._head = read_exactly(objects, info, 0, min(HEAD, info.size))

    def head(self, count: int) -> tuple[bytes, bool]:
        stop = min(count, self._info.size)
        return read_exactly(self._objects, self._info, 0, stop), stop == self._info.size

    def block(self, start: int, count: int) -> tuple[bytes, bool]:
        if start > self._start:
            inside = start - self._start + WINDOW
            if inside <= len(self._padded):
                self._expected = (start, fingerprint(self._padded[inside - WINDOW : inside]))
        back, stop = min(WINDOW, start), min(start + count, self._info.size)
        found = read_exactly(self._objects, self._info, start - back, max(start, stop))
        if self._expected is not None and self._expected != (start, fingerprint(found[:back])):
            raise DataLostError(
                f"The file {self._info.name!r} was replaced while it was read: put the first one back, and "
                "let new records arrive in files of new names."
            )
        self._start, self._padded = start, bytes(WINDOW - back) + found
        return found[back:], stop >= self._info.size

    def prints(self, start: int, ends: NDArray[np.int64]) -> NDArray[np.uint32]:
        return fingerprints(self._padded, ends + (start - self._start + WINDOW))

    def head_print(self, end: int) -> int:
        return head_print(self._head[:end])


class ZippedText:
    """Text of a .gz, unpacked from its beginning: to go on at a cursor, all before it is unpacked again."""

    def __init__(self, objects: ObjectStore, info: ObjectInfo, cursor: FileCursor | None) -> None:
        self.unfinished = ""
        self._objects = objects
        self._info = info
        self._print = zip_fingerprint(objects, info, info.size)
        self._head = head_print(read_exactly(objects, info, 0, min(HEAD, info.size)))
        self._stream = self._opened()
        self._held = bytearray()
        self._start = 0
        self._ended = False

    def head(self, count: int) -> tuple[bytes, bool]:
        self._hold(count)
        return bytes(self._held[:count]), self._ended and len(self._held) <= count

    def block(self, start: int, count: int) -> tuple[bytes, bool]:
        while self._start < start and not (self._ended and not self._held):
            self._hold(min(start - self._start, _STEP_BYTES))
            passed = min(start - self._start, len(self._held))
            del self._held[:passed]
            self._start += passed
            if self.unfinished and not passed:
                break
        self._hold(count)
        return bytes(self._held[:count]), self._ended and len(self._held) <= count

    def prints(self, start: int, ends: NDArray[np.int64]) -> NDArray[np.uint32]:
        return np.full(len(ends), self._print, dtype=np.uint32)

    def head_print(self, end: int) -> int:
        return self._head

    def _hold(self, count: int) -> None:
        """Unpack more than `count` bytes, so that it is known whether any follow, or up to the text's end."""
        try:
            while len(self._held) <= count and not self._ended and not self.unfinished:
                found = self._stream.read1(_STEP_BYTES)
                self._held += found
                self._ended = not found
        except (EOFError, OSError, zlib.error) as error:
            reason = type(error).__name__
            self.unfinished = (
                f"The file {self._info.name!r} is not a whole .gz ({reason}): let it arrive again under a "
                "new name, and take this one away."
            )

    def _opened(self) -> gzip.GzipFile:
        raw = io.BufferedReader(ObjectFile(self._objects, self._info), 1024 * 1024)
        return gzip.GzipFile(fileobj=raw, mode="rb")


class ObjectFile(io.RawIOBase):
    """One version of an object as a readable file; a read of another version fails."""

    def __init__(self, objects: ObjectStore, info: ObjectInfo) -> None:
        self._objects = objects
        self._info = info
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, target: Any) -> int:
        stop = min(self._at + len(target), self._info.size)
        found = self._objects.read(self._info.name, self._at, stop, version=self._info.version)
        target[: len(found)] = found
        self._at += len(found)
        return len(found)
