"""How much memory an Arrow IPC payload asks for, told from its headers before any of it is unpacked.

A compressed buffer begins with the size it unpacks to, and a few bytes can claim any. The library unpacks
whatever is claimed, so the claims are summed first. The layout is that of Message.fbs of the Arrow format
(https://arrow.apache.org/docs/format/Columnar.html), read by the rules of FlatBuffers.
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

MAX_UNPACKED_BYTES = 2**30
"""Of one payload that is compressed."""

_FILE_MAGIC = b"ARROW1\0\0"
_DICTIONARY, _RECORDS = 2, 3
"""Kinds of a message's header; the schema and others have no buffers."""
_HEADER_TYPE, _HEADER = 1, 2
_BUFFERS, _COMPRESSION = 2, 3
_DICTIONARY_DATA = 1
_UNPACKED_AS_IT_IS = -1


def unpacked_bytes(payload: bytes) -> int:
    """Bytes of all buffers of an IPC stream or file once they are unpacked, as the payload itself says.

    Raises:
        pyarrow.ArrowException, OSError, ValueError: the payload cannot be read so far.
    """
    buffer = pa.py_buffer(payload)
    if not payload.startswith(_FILE_MAGIC):
        return sum(_unpacked(message) for message in _messages(buffer))
    # A file is a stream between a magic word and a footer, which old writers did not mark off.
    size = 0
    with suppress(pa.ArrowException, OSError, ValueError):
        for message in _messages(buffer.slice(len(_FILE_MAGIC))):
            size += _unpacked(message)
    return size


def too_large(payload: bytes) -> str | None:
    """What is wrong with a payload that asks for too much memory; None where nothing is.

    Raises:
        pyarrow.ArrowException, OSError, ValueError: as `unpacked_bytes`.
    """
    size = unpacked_bytes(payload)
    if size <= max(MAX_UNPACKED_BYTES, len(payload)):
        return None
    return f"it unpacks to {size / 2**30:,.1f} GB, and {MAX_UNPACKED_BYTES / 2**30:.0f} GB is the most"


def _messages(buffer: Any) -> Iterator[Any]:
    reader = pa.ipc.MessageReader.open_stream(buffer)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        yield message


def _unpacked(message: Any) -> int:
    body = memoryview(message.body) if message.body is not None else memoryview(b"")
    try:
        spans = _compressed_spans(memoryview(message.metadata))
        if spans is None:
            return len(body)
        return sum(_claimed(body, offset, length) for offset, length in spans)
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


def _compressed_spans(metadata: memoryview) -> list[tuple[int, int]] | None:
    """Offset and length of every buffer in the body; None where they are not compressed, or not there."""
    (root,) = struct.unpack_from("<I", metadata, 0)
    kind_at, header_at = _field(metadata, root, _HEADER_TYPE), _field(metadata, root, _HEADER)
    if kind_at is None or header_at is None or metadata[kind_at] not in (_DICTIONARY, _RECORDS):
        return None
    batch = _follow(metadata, header_at)
    if metadata[kind_at] == _DICTIONARY:
        data_at = _field(metadata, batch, _DICTIONARY_DATA)
        if data_at is None:
            return None
        batch = _follow(metadata, data_at)
    buffers_at = _field(metadata, batch, _BUFFERS)
    if _field(metadata, batch, _COMPRESSION) is None or buffers_at is None:
        return None
    vector = _follow(metadata, buffers_at)
    (count,) = struct.unpack_from("<I", metadata, vector)
    if 16 * count > len(metadata):
        raise ValueError("a header of it claims more buffers than it holds")
    return [struct.unpack_from("<qq", metadata, vector + 4 + 16 * place) for place in range(count)]


def _follow(data: memoryview, at: int) -> int:
    (offset,) = struct.unpack_from("<I", data, at)
    return at + int(offset)


def _field(data: memoryview, table: int, number: int) -> int | None:
    """Where a field of a table lies; None: it is not set."""
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
