"""Request bodies of records, by media type, as batches of payloads for the decoder."""

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from service.errors import RecordsInvalidError
from streams.base import LazyTexts, RawBatch

PARTITION = "request"
MAX_BODY_BYTES = 256 * 2**20


_BEGIN = re.compile(rb'\s*\{\s*"records"\s*:\s*\[\s*')
_GAP = re.compile(rb"\s*,\s*")
_END = re.compile(rb"\s*\]\s*\}\s*")


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    records: list[msgspec.Raw]


def batch(body: bytes, content_type: str) -> RawBatch:
    """The records of a body; a position is the index in it: "0", "1" ...

    Raises:
        RecordsInvalidError: the type is not understood, the body is not of it, or holds no record.
    """
    media_type = content_type.split(";")[0].strip().lower() or "application/json"
    if media_type not in MEDIA_TYPES:
        raise RecordsInvalidError(
            f"Records of type {media_type!r} are not understood.",
            fix=f"Send {', '.join(MEDIA_TYPES)}.",
        )
    found = MEDIA_TYPES[media_type](body)
    if not len(found.positions):
        raise RecordsInvalidError(
            "The batch is empty: there is no record in it.",
            fix="Send at least one record, or nothing at all.",
        )
    return found


def _json(body: bytes) -> RawBatch:
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
    except msgspec.DecodeError as error:
        if not isinstance(error, msgspec.ValidationError):
            raise RecordsInvalidError(
                f"The body is not JSON: {error}.",
                fix="Send UTF-8 text as RFC 8259 has it; NaN and Infinity are no numbers there.",
            ) from error
        raise RecordsInvalidError(
            f"The body is not an object with a list of records: {error}.",
            fix='Send {"records": [{"id": "a1", "features": [...], "label": "..."}, ...]}.',
        ) from error
    records = [bytes(raw) for raw in envelope.records]
    if not _is_all(body, records):
        raise RecordsInvalidError(
            "The body has the field records more than once, or writes its name with escapes.",
            fix='Send all records in one list: {"records": [{"id": "a1", ...}, ...]}.',
        )
    return _of(records)


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
    return _END.fullmatch(body, position) is not None


def _ndjson(body: bytes) -> RawBatch:
    return _of([line for line in body.splitlines() if line.strip()])


def _msgpack(body: bytes) -> RawBatch:
    try:
        records = msgspec.msgpack.decode(body, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise RecordsInvalidError(
            f"The body is not a msgpack array of records: {error}.",
            fix='Send one array of maps, such as [{"id": "a1", "features": ..., "label": "..."}].',
        ) from error
    return RawBatch(PARTITION, "", [bytes(raw) for raw in records], _positions(len(records)), wire="msgpack")


def _arrow(body: bytes) -> RawBatch:
    return RawBatch(PARTITION, "", [body], _positions(rows_of_stream(body)), wire="arrow")


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


MEDIA_TYPES: Mapping[str, Callable[[bytes], RawBatch]] = {
    "application/json": _json,
    "application/x-ndjson": _ndjson,
    "application/msgpack": _msgpack,
    "application/vnd.apache.arrow.stream": _arrow,
}
"""Every type of body that records may come in."""
