"""Decodes JSON and msgpack: one object, or map, of the fields of `JsonRecord` a payload."""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.base import RecordInvalidError, RecordSchema
from streams.records import LABEL_ONLY, UNLABELLED, Records, not_plain
from streams.wire.base import PAYLOAD_CAP_BYTES, Faults
from streams.wire.features import feature_matrix
from streams.wire.rules import Draft, carried, nulls

# Nested lists one level deeper than the deepest shape in use, so that a wrong nesting is reported as a wrong
# shape. Features of more dimensions can always be sent flat.
_Row = list[float | list[float | list[float | list[float | list[float]]]]]
_AwareDatetime = Annotated[datetime, msgspec.Meta(tz=True)]
_Features = _Row | bytes | dict[str, float] | None

BLOCK = 256
"""Records decoded at a time: few enough that their lists are freed before a garbage collection, and that
their numbers are packed while they are in the processor's cache."""

_BLOCK_VALUES = 2**22
_BLOCK_BYTES = 4 * 2**20
_TEXTS_BYTES = 2**20
_NUMBER_BYTES = 128
"""What a record may have for its texts, and for each number. As an object, a number of two bytes takes 32."""

_NOT_FINITE = re.compile(rb"[\[,:\s]-?(NaN|Infinity)\b")
_SURROGATE = re.compile("[\ud800-\udfff]")

_DecodeOne = Callable[[bytes], "JsonRecord"]
_Malformed = Callable[[bytes, Exception], RecordInvalidError]


class JsonRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One record as it is sent: the fields of the JSON object."""

    id: str
    features: _Features = None
    """Nested lists of the schema's shape, a flat list of its size, base64 text of the values' little-endian
    bytes in the schema's dtype, or, where the schema names columns, an object of a number for each column.
    Left out only where labels may come late, in a record with a label."""
    label: str | int | None = None
    """The name of the class; the number 3 means the class "3". Left out only where labels may come late."""
    time: float | _AwareDatetime | None = None
    """Epoch seconds, or RFC 3339 text with an offset."""
    groups: dict[str, str | int] | None = None
    split_key: str | None = None
    """Records that share it always land in the same part; the id when absent."""


_TOO_LONG = "a record is longer than one of the pipeline can be"
_UNREADABLE = JsonRecord(id="-")
"""The placeholder for a payload that cannot be read."""


def draft_json(payloads: Sequence[bytes], schema: RecordSchema) -> Draft:
    """The rows of JSON payloads."""
    return _draft(payloads, schema, _JSON.decode, _malformed_json)


def draft_msgpack(payloads: Sequence[bytes], schema: RecordSchema) -> Draft:
    """The rows of msgpack payloads."""
    return _draft(payloads, schema, _MSGPACK.decode, _malformed)


def json_fields(
    records: Records, schema: RecordSchema, names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """One JSON-able dict a record, in the form that callers send.

    `names` are the classes by id; by default those that the schema declares.
    """
    classes = schema.classes if names is None else names
    rows = records.features.tolist()
    ids, split_keys = records.ids.to_pylist(), records.split_keys.to_pylist()
    groups = {name: records.groups[name].to_pylist() for name in schema.groups}
    found: list[dict[str, Any]] = []
    for index, record_id in enumerate(ids):
        bare = records.carries is not None and records.carries[index] == LABEL_ONLY
        fields: dict[str, Any] = {"id": record_id}
        if not bare:
            fields["features"] = rows[index]
        if records.labels[index] != UNLABELLED:
            fields["label"] = classes[records.labels[index]]
        if not np.isnan(records.times[index]):
            fields["time"] = float(records.times[index])
        if schema.groups and not bare:
            fields["groups"] = {name: column[index] for name, column in groups.items()}
        if split_keys[index] != record_id:
            fields["split_key"] = split_keys[index]
        found.append(fields)
    return found


class _Sent:
    """The fields that were sent, except features, as columns."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.labels: list[str | int | None] = []
        self.times: list[float | datetime | None] = []
        self.groups: list[dict[str, str | int] | None] = []
        self.split_keys: list[str | None] = []

    def extend(self, rows: Sequence[JsonRecord]) -> None:
        self.ids += [row.id for row in rows]
        self.labels += [row.label for row in rows]
        self.times += [row.time for row in rows]
        self.groups += [row.groups for row in rows]
        self.split_keys += [row.split_key for row in rows]


def _draft(
    payloads: Sequence[bytes], schema: RecordSchema, decode_one: _DecodeOne, malformed: _Malformed
) -> Draft:
    faults = Faults()
    sent = _Sent()
    # Rows that no record fills are never written, so that bad payloads use no memory.
    features = np.zeros((len(payloads), schema.size), dtype=schema.dtype)
    bare: list[int] = []
    step = max(1, min(BLOCK, _BLOCK_VALUES // schema.size))
    longest = _TEXTS_BYTES + _NUMBER_BYTES * schema.size
    for first, block in _blocks(payloads, step):
        try:
            if max(map(len, block)) > longest:
                raise ValueError(_TOO_LONG)
            rows = [decode_one(payload) for payload in block]
        except _BROKEN:
            rows = _one_by_one(block, first, faults, longest, decode_one=decode_one, malformed=malformed)
        sent_features = [row.features for row in rows]
        if any(one is not None for one in sent_features):
            found = feature_matrix(sent_features, first, schema, faults, bare=bare)
            features[first : first + len(rows)] = found
        else:
            bare += range(first, first + len(rows))
        sent.extend(rows)
        del rows, sent_features
    return _columns(sent, features, bare, schema, faults)


def _blocks(payloads: Sequence[bytes], most: int) -> Iterator[tuple[int, Sequence[bytes]]]:
    """Payloads in blocks, each with the index of its first: few at a time where they are long."""
    first = 0
    while first < len(payloads):
        block = payloads[first : first + most]
        while len(block) > 1 and sum(map(len, block)) > _BLOCK_BYTES:
            block = block[: len(block) // 2]
        yield first, block
        first += len(block)


def _one_by_one(
    block: Sequence[bytes],
    first: int,
    faults: Faults,
    longest: int,
    *,
    decode_one: _DecodeOne,
    malformed: _Malformed,
) -> list[JsonRecord]:
    rows = []
    for row, payload in enumerate(block, first):
        if len(payload) > longest:
            text = f"The record has {len(payload):,} bytes; one of this pipeline has {longest:,} at most."
            faults.add(row, RecordInvalidError(text))
            rows.append(_UNREADABLE)
            continue
        try:
            rows.append(decode_one(payload))
        except _BROKEN as error:
            faults.add(row, malformed(payload, error))
            rows.append(_UNREADABLE)
    return rows


def _columns(
    sent: _Sent, features: NDArray[Any], bare: Sequence[int], schema: RecordSchema, faults: Faults
) -> Draft:
    featured = np.ones(len(features), dtype=np.bool_)
    featured[list(bare)] = False
    ids = _texts(sent.ids, faults, what="id", reason="bad-id")
    names = _names(sent.labels, schema, faults)
    records = Records(
        ids=ids,
        features=features.reshape(-1, *schema.shape),
        labels=np.full(len(features), UNLABELLED, dtype=np.int64),
        times=_times(sent.times),
        split_keys=_split_keys(sent, ids, faults),
        groups=_groups(sent.groups, featured, schema, faults),
        carries=carried(~nulls(names), featured, schema, faults),
    )
    return Draft(records, names, faults)


def _texts(values: Sequence[str | None], faults: Faults, *, what: str, reason: str) -> pa.StringArray:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        plain: list[str | None] = []
        for row, text in enumerate(values):
            broken = text is not None and _SURROGATE.search(text)
            if broken:
                faults.add(row, not_plain(what, reason))
            plain.append(None if broken else text)
        return pa.array(plain, pa.string())


def _names(labels: Sequence[str | int | None], schema: RecordSchema, faults: Faults) -> pa.StringArray:
    reason = "bad-label" if schema.open_classes else "unknown-label"
    try:
        return _texts(labels, faults, what="label", reason=reason)  # type: ignore[arg-type]
    except (pa.ArrowTypeError, pa.ArrowInvalid):  # there are numbers among them
        names = [str(label) if isinstance(label, int) else label for label in labels]
        return _texts(names, faults, what="label", reason=reason)


def _split_keys(sent: _Sent, ids: pa.StringArray, faults: Faults) -> pa.StringArray:
    if sent.split_keys.count(None) == len(sent.split_keys):
        return ids
    pairs = zip(sent.ids, sent.split_keys, strict=True)
    filled = [record_id if key is None else key for record_id, key in pairs]
    return _texts(filled, faults, what="split key", reason="bad-split-key")


def _times(times: list[float | datetime | None]) -> NDArray[np.float64]:
    if times.count(None) == len(times):
        return np.full(len(times), np.nan)
    return np.array([_seconds(time) for time in times], dtype=np.float64)


def _seconds(time: float | datetime | None) -> float:
    if time is None:
        return np.nan
    return time.timestamp() if isinstance(time, datetime) else time


def _groups(
    groups: Sequence[dict[str, str | int] | None],
    featured: NDArray[np.bool_],
    schema: RecordSchema,
    faults: Faults,
) -> dict[str, pa.StringArray]:
    if not schema.groups and not any(groups):
        return {}
    given = [one or {} for one in groups]
    declared = frozenset(schema.groups)
    for row, one in enumerate(given):
        if one and featured[row] and not declared.issuperset(one):
            name = min(one.keys() - declared)
            faults.add(row, RecordInvalidError(f"The group {name[:100]!r} is not declared.", "unknown-group"))
    columns: dict[str, pa.StringArray] = {}
    for name in schema.groups:
        values = [None if (value := one.get(name)) is None else str(value) for one in given]
        columns[name] = _texts(values, faults, what=f"group {name!r}", reason="bad-group")
    return columns


def _malformed_json(payload: bytes, error: Exception) -> RecordInvalidError:
    # Python's own json writes NaN and Infinity, which are not JSON: say so instead of "invalid character".
    if _NOT_FINITE.search(payload[:PAYLOAD_CAP_BYTES]):
        return RecordInvalidError("The record holds NaN or Infinity, which JSON cannot carry.", "not-finite")
    return _malformed(payload, error)


def _malformed(payload: bytes, error: Exception) -> RecordInvalidError:
    if not payload:
        return RecordInvalidError("The payload is empty: what the source reads as the record holds nothing.")
    return RecordInvalidError(f"The record cannot be read: {str(error)[:300]}.")


_BROKEN = (msgspec.MsgspecError, ValueError, RecursionError)
_JSON = msgspec.json.Decoder(JsonRecord)
_MSGPACK = msgspec.msgpack.Decoder(JsonRecord)
