"""Request bodies of records, by media type, as batches of payloads for the decoder."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from service.errors import BatchTooLargeError, RecordsInvalidError
from streams.base import LazyTexts, RawBatch

PARTITION = "request"
MAX_BODY_BYTES = 256 * 2**20


MOST_RECORDS = 5_000_000
SHOWN_ERRORS = 20
"""Records that do not fit which a refusal names; no body is read further than one more."""

_SHORTEST = {"json": 16, "msgpack": 12}
"""Bytes of the shortest record that could fit: an id, and a label."""

_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_DEPTH = 4


def _nested(opening: bytes, closing: bytes) -> bytes:
    """What stands between two brackets, which may hold such brackets; the texts in it may hold any."""
    found = b""
    for _ in range(_DEPTH):
        inside = b"|" + found if found else b""
        found = opening + rb'(?:[^"' + opening + closing + rb"]++|" + _TEXT + inside + rb")*+" + closing
    return found


_BEGIN = re.compile(rb'\s*\{\s*"records"\s*:\s*\[\s*')
_OBJECT = re.compile(_nested(rb"\{", rb"\}"), re.DOTALL)
_OTHER = re.compile(rb'[^\s",\[\]{}]++|' + _TEXT + rb"|" + _nested(rb"\[", rb"\]"), re.DOTALL)
_GAP = re.compile(rb"\s*,\s*")
_LIST_END = re.compile(rb"\s*\]")
_END = re.compile(rb"\s*\}\s*")
_LINE = re.compile(rb"[^\r\n]+")


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    records: list[msgspec.Raw]


class _Anything(msgspec.Struct, gc=False):
    """Any object; nothing of it is kept."""


class _Objects(msgspec.Struct):
    records: list[_Anything]


class _Empty(msgspec.Struct, forbid_unknown_fields=True):
    """An envelope of no record: its first record is an error, so that no more are read."""

    records: list[Literal["-"]]


def batch(body: bytes, content_type: str, *, most: int = MOST_RECORDS) -> RawBatch:
    """The records of a body; a position is the index in it: "0", "1" ...

    A body is walked before its records are held, so that a small one of very many records takes no memory.

    Args:
        most: records that it may hold.

    Raises:
        RecordsInvalidError: the type is not understood, the body is not of it, holds no record, or too many
            that are none.
        BatchTooLargeError: it holds more than `most` records.
    """
    media_type = content_type.split(";")[0].strip().lower() or "application/json"
    if media_type not in MEDIA_TYPES:
        raise RecordsInvalidError(
            f"Records of type {media_type!r} are not understood.",
            fix=f"Send {', '.join(MEDIA_TYPES)}.",
        )
    found = MEDIA_TYPES[media_type](body, most)
    if not len(found.positions):
        raise RecordsInvalidError(
            "The batch is empty: there is no record in it.",
            fix="Send at least one record, or nothing at all.",
        )
    return found


class _Count:
    """Counts the records of a body as it is walked, and ends the walk where there are too many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._records = 0
        self._errors: list[dict[str, object]] = []

    def take(self, *, is_object: bool, size: int) -> None:
        """Count one more record of `size` bytes.

        Raises:
            RecordsInvalidError: it is one more than are shown that cannot be a record.
            BatchTooLargeError: it is one too many.
        """
        if not is_object or size < _SHORTEST["json"]:
            detail = "The record is no object with an id, and features or a label."
            self._errors.append({"record": self._records, "reason": "malformed", "detail": detail})
            if len(self._errors) > SHOWN_ERRORS:
                raise RecordsInvalidError(
                    f"At least {len(self._errors)} records do not fit; none was stored. "
                    f"Record {self._errors[0]['record']}: {detail}",
                    fix="Correct or leave out the records under `errors`, and send the batch again.",
                    members={"errors": self._errors[:SHOWN_ERRORS], "rejected": len(self._errors)},
                )
        self._records += 1
        if self._records > self._most:
            raise too_many(self._most)


def too_many(most: int) -> BatchTooLargeError:
    """The refusal of a request that holds more records than may ever wait."""
    return BatchTooLargeError(
        f"The request holds more records than may ever wait: {most}.", fix="Send fewer records a request."
    )


def _json(body: bytes, most: int) -> RawBatch:
    # Fewer brackets than the shortest records have: then objects alone cannot be too many for the memory.
    if body.count(b"{") * _SHORTEST["json"] > len(body) or not _holds_objects(body):
        _walk(body, _Count(most))
    try:
        raws = msgspec.json.decode(body, type=_Envelope).records
    except msgspec.DecodeError as error:
        raise _no_envelope(error) from error
    if len(raws) > most:
        raise too_many(most)
    records = [bytes(raw) for raw in raws]
    if not _is_all(body, records):
        raise _twice()
    return _of(records)


def _holds_objects(body: bytes) -> bool:
    """Whether a body is a list of objects, however often; decoding ends at the first that is none."""
    try:
        msgspec.json.decode(body, type=_Objects)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _is_all(body: bytes, records: Sequence[bytes]) -> bool:
    """Whether a body is one list of these records and nothing else: of two lists, the decoder drops one."""
    if len(body) - sum(map(len, records)) == len(b'{"records":[]}') + max(0, len(records) - 1):
        # Nothing but what one list needs has room between them.
        return True
    begin = _BEGIN.match(body)
    if begin is None:
        return False
    position = begin.end()
    for place, record in enumerate(records):
        gap = _GAP.match(body, position) if place else begin
        if gap is None or not body.startswith(record, gap.end()):
            return False
        position = gap.end() + len(record)
    end = _LIST_END.match(body, position)
    return end is not None and _END.fullmatch(body, end.end()) is not None


def _walk(body: bytes, count: _Count) -> None:
    """Walk over the records of a body, without holding any.

    Raises:
        RecordsInvalidError: it is not one list of records, and nothing else.
    """
    begin = _BEGIN.match(body)
    if begin is None:
        _require_empty(body)
        return
    at, first = begin.end(), True
    while (end := _LIST_END.match(body, at)) is None:
        gap = begin if first else _GAP.match(body, at)
        start = at if gap is None else gap.end()
        found = _OBJECT.match(body, start)
        is_object = found is not None
        found = found or _OTHER.match(body, start)
        if gap is None or found is None:
            raise _unwalkable(body, start)
        at, first = found.end(), False
        count.take(is_object=is_object, size=at - start)
    if _END.fullmatch(body, end.end()) is None:
        _require_empty(b'{"records":[]' + body[end.end() :], more=True)


def _require_empty(body: bytes, *, more: bool = False) -> None:
    """Say what is wrong with a body that does not begin, or end, as one list of records does."""
    try:
        msgspec.json.decode(body, type=_Empty)
    except msgspec.DecodeError as error:
        if "$.records[" not in str(error):
            raise _no_envelope(error) from error
    else:
        if not more:
            return
    raise _twice()


def _twice() -> RecordsInvalidError:
    return RecordsInvalidError(
        "The body has the field records more than once, or writes its name with escapes.",
        fix='Send all records in one list: {"records": [{"id": "a1", ...}, ...]}.',
    )


def _unwalkable(body: bytes, start: int) -> RecordsInvalidError:
    """Why a body cannot be read on from a record that begins at byte `start`."""
    try:
        msgspec.json.decode(body[start : start + _PROBED])
    except msgspec.DecodeError as error:
        cut = len(body) - start > _PROBED and "truncated" in str(error)
        if "trailing" not in str(error) and not cut:
            return _no_envelope(msgspec.DecodeError(f"in the record at byte {start}: {error}"))
    except RecursionError:
        pass
    return RecordsInvalidError(
        f"The body is nested too deeply to be a list of records, in the record at byte {start}.",
        fix="Nest features no deeper than the pipeline's shape, or send them flat.",
    )


_PROBED = 64 * 1024
"""Bytes of a record that are looked at to say what is wrong with it."""


def _no_envelope(error: msgspec.DecodeError) -> RecordsInvalidError:
    if not isinstance(error, msgspec.ValidationError):
        return RecordsInvalidError(
            f"The body is not JSON: {error}.",
            fix="Send UTF-8 text as RFC 8259 has it; NaN and Infinity are no numbers there.",
        )
    return RecordsInvalidError(
        f"The body is not an object with a list of records: {error}.",
        fix='Send {"records": [{"id": "a1", "features": [...], "label": "..."}, ...]}.',
    )


def _ndjson(body: bytes, most: int) -> RawBatch:
    count = _Count(most)
    lines = []
    for match in _LINE.finditer(body):
        line = match.group()
        if text := line.strip():
            count.take(is_object=text.startswith(b"{"), size=len(text))
            lines.append(line)
    return _of(lines)


def _msgpack(body: bytes, most: int) -> RawBatch:
    declared = _declared(body)
    if declared > SHOWN_ERRORS and declared * _SHORTEST["msgpack"] > len(body):
        raise RecordsInvalidError(
            f"The body declares {declared} records and has {len(body)} bytes, too few for so many.",
            fix='Send one array of maps, such as [{"id": "a1", "features": ..., "label": "..."}].',
        )
    if declared > most:
        raise too_many(most)
    try:
        records = msgspec.msgpack.decode(body, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise RecordsInvalidError(
            f"The body is not a msgpack array of records: {error}.",
            fix='Send one array of maps, such as [{"id": "a1", "features": ..., "label": "..."}].',
        ) from error
    return RawBatch(PARTITION, "", [bytes(raw) for raw in records], _positions(len(records)), wire="msgpack")


def _declared(body: bytes) -> int:
    """How many elements the msgpack array has that a body begins with; 0 where it begins with none."""
    head = body[:1]
    if head and 0x90 <= head[0] <= 0x9F:
        return head[0] & 0x0F
    width = {b"\xdc": 2, b"\xdd": 4}.get(head, 0)
    return int.from_bytes(body[1 : 1 + width], "big")


def _arrow(body: bytes, most: int) -> RawBatch:
    rows = rows_of_stream(body)
    if rows > most:
        raise too_many(most)
    return RawBatch(PARTITION, "", [body], _positions(rows), wire="arrow")


def rows_of_stream(body: bytes) -> int:
    """How many rows an Arrow IPC stream has.

    Raises:
        RecordsInvalidError: it is none, or unpacks to more than is read.
    """
    import pyarrow as pa

    from streams.wire.arrow_sizes import size_of

    try:
        size = size_of(body)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RecordsInvalidError(
            f"The body is not an Arrow IPC stream: {error}.",
            fix="Send what an Arrow stream writer wrote, whole.",
        ) from error
    problem = size.problem(body)
    if problem is not None:
        raise RecordsInvalidError(
            f"The body is too large: {problem}.", fix="Send fewer records in a request."
        )
    return size.rows


def _of(payloads: Sequence[bytes]) -> RawBatch:
    return RawBatch(PARTITION, "", payloads, _positions(len(payloads)))


def _positions(count: int) -> LazyTexts:
    return LazyTexts(str, range(count))


MEDIA_TYPES: Mapping[str, Callable[[bytes, int], RawBatch]] = {
    "application/json": _json,
    "application/x-ndjson": _ndjson,
    "application/msgpack": _msgpack,
    "application/vnd.apache.arrow.stream": _arrow,
}
"""Every type of body that records may come in."""
