"""Counts the records of an Arrow IPC payload, and the memory it needs, from its headers alone.

A compressed buffer begins with the size it unpacks to, and a few bytes can claim any size. The library
allocates whatever is claimed, so the claims are summed first. The layout is that of Message.fbs of the Arrow
format (https://arrow.apache.org/docs/format/Columnar.html), read by the rules of FlatBuffers.
"""

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

MAX_UNPACKED_BYTES = 2**30
"""Most bytes that one compressed payload may unpack to."""

_FILE_MAGIC = b"ARROW1\0\0"
_DICTIONARY, _RECORDS = 2, 3
"""Kinds of a message's header; the schema and others have no buffers."""
_HEADER_TYPE, _HEADER = 1, 2
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3
_DICTIONARY_DATA = 1
_UNPACKED_AS_IT_IS = -1


@dataclass(frozen=True)
class Size:
    """The size of a payload, by its headers."""

    rows: int
    """Rows of all its record batches."""
    unpacked_bytes: int
    """Bytes of all buffers once they are unpacked."""

    def problem(self, payload: bytes) -> str | None:
        """Why a payload of this size is refused; None where it is not."""
        if self.unpacked_bytes > max(MAX_UNPACKED_BYTES, len(payload)):
            most = MAX_UNPACKED_BYTES / 2**30
            return f"it unpacks to {self.unpacked_bytes / 2**30:,.1f} GB, and {most:.0f} GB is the most"
        # Null columns can claim any length, and every record has an id or a label of at least one byte.
        if self.rows > self.unpacked_bytes:
            return f"it claims {self.rows} records in {self.unpacked_bytes} bytes"
        return None


def size_of(payload: bytes) -> Size:
    """The size of an IPC stream or file, by its headers; nothing of it is unpacked.

    Raises:
        pyarrow.ArrowException, OSError, ValueError: its headers cannot be read.
    """
    buffer = pa.py_buffer(payload)
    if not payload.startswith(_FILE_MAGIC):
        return _sum(_size(message) for message in _messages(buffer))
    # A file is a stream between magic bytes and a footer, and old writers did not end the stream.
    found = []
    with suppress(pa.ArrowException, OSError, ValueError):
        for message in _messages(buffer.slice(len(_FILE_MAGIC))):
            found.append(_size(message))
    return _sum(found)


def _sum(sizes: Iterable[Size]) -> Size:
    found = list(sizes)
    if not found:
        raise ValueError("there is nothing in it")
    return Size(sum(size.rows for size in found), sum(size.unpacked_bytes for size in found))


def _messages(buffer: Any) -> Iterator[Any]:
    reader = pa.ipc.MessageReader.open_stream(buffer)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        yield message


def _size(message: Any) -> Size:
    body = memoryview(message.body) if message.body is not None else memoryview(b"")
    metadata = memoryview(message.metadata)
    try:
        batch, is_dictionary = _batch(metadata)
        if batch is None:
            return Size(0, len(body))
        spans = _compressed_spans(metadata, batch)
        size = len(body) if spans is None else sum(_claimed(body, *span) for span in spans)
        return Size(0 if is_dictionary else _length(metadata, batch), size)
    except (struct.error, IndexError) as error:
        raise ValueError(f"a header of it is damaged ({error})") from error


def _claimed(body: memoryview, offset: int, length: int) -> int:
    if length == 0:
        return 0
    if offset < 0:
        raise ValueError("a buffer begins before its message")
    (claimed,) = struct.unpack_from("<q", body, offset)
    if claimed == _UNPACKED_AS_IT_IS:
        return length
    if claimed < 0:
        raise ValueError("a buffer claims a negative size")
    return int(claimed)


def _batch(metadata: memoryview) -> tuple[int | None, bool]:
    """Where the header of a message's record batch is, if it has one, and whether it is of a dictionary."""
    (root,) = struct.unpack_from("<I", metadata, 0)
    kind_at, header_at = _field(metadata, root, _HEADER_TYPE), _field(metadata, root, _HEADER)
    if kind_at is None or header_at is None or metadata[kind_at] not in (_DICTIONARY, _RECORDS):
        return None, False
    header = _follow(metadata, header_at)
    if metadata[kind_at] == _RECORDS:
        return header, False
    data_at = _field(metadata, header, _DICTIONARY_DATA)
    return None if data_at is None else _follow(metadata, data_at), True


def _length(metadata: memoryview, batch: int) -> int:
    length_at = _field(metadata, batch, _LENGTH)
    if length_at is None:
        return 0
    (length,) = struct.unpack_from("<q", metadata, length_at)
    if length < 0:
        raise ValueError("a header of it claims fewer records than none")
    return int(length)


def _compressed_spans(metadata: memoryview, batch: int) -> list[tuple[int, int]] | None:
    """Offset and length of every buffer in the body; None where they are not compressed."""
    buffers_at = _field(metadata, batch, _BUFFERS)
    if _field(metadata, batch, _COMPRESSION) is None or buffers_at is None:
        return None
    vector = _follow(metadata, buffers_at)
    (count,) = struct.unpack_from("<I", metadata, vector)
    if 16 * count > len(metadata):
        raise ValueError("a header of it claims more buffers than it holds")
    return [struct.unpack_from("<qq", metadata, vector + 4 + 16 * index) for index in range(count)]


def _follow(data: memoryview, at: int) -> int:
    (offset,) = struct.unpack_from("<I", data, at)
    return at + int(offset)


def _field(data: memoryview, table: int, number: int) -> int | None:
    """The offset of a field of a table; None: it is not set."""
    (back,) = struct.unpack_from("<i", data, table)
    layout = table - back
    if layout < 0:
        raise ValueError("a header of it points before its beginning")
    (size,) = struct.unpack_from("<H", data, layout)
    at = 4 + 2 * number
    if at + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", data, layout + at)
    return table + int(offset) if offset else None
