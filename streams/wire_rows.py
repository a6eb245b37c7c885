"""JSON and msgpack: one object, or map, of the fields of `JsonRecord` a payload."""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain, starmap
from operator import itemgetter
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.base import RecordInvalidError, RecordSchema
from streams.records import LABEL_ONLY, UNLABELLED, Records, not_plain
from streams.wire_base import PAYLOAD_CAP_BYTES, Faults, difference
from streams.wire_rules import Draft, carried, nulls, stored

# Nested lists one level deeper than the deepest shape in use, so that a wrong nesting is reported as a wrong
# shape. Features of more dimensions can always be sent flat.
_Row = list[float | list[float | list[float | list[float | list[float]]]]]
_AwareDatetime = Annotated[datetime, msgspec.Meta(tz=True)]
_Features = _Row | bytes | dict[str, float] | None

BLOCK = 256
"""Records that are decoded at once: their lists are gone again before the collector of cycles looks for them,
and their numbers are packed while the processor still holds them close."""

_NOT_FINITE = re.compile(rb"[\[,:\s]-?(NaN|Infinity)\b")
_SURROGATE = re.compile("[\ud800-\udfff]")

_DecodeOne = Callable[[bytes], "JsonRecord"]
_Malformed = Callable[[bytes, Exception], RecordInvalidError]
_Reader = Callable[[Sequence[Any], Sequence[int], RecordSchema, Faults, list[int]], NDArray[Any]]


class JsonRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One record as it is sent: what the JSON object may hold."""

    id: str
    features: _Features = None
    """Nested lists of the schema's shape, a flat list of its size, base64 text of the values' little-endian
    bytes in the schema's dtype, or, where the schema names columns, an object of a number for each column.
    Left out only where labels may come late, by a record that brings the label."""
    label: str | int | None = None
    """The name of the class; the number 3 means the class named "3". Left out only where it may come late."""
    time: float | _AwareDatetime | None = None
    """Epoch seconds, or RFC 3339 text with an offset."""
    groups: dict[str, str | int] | None = None
    split_key: str | None = None
    """Records that share it always land in the same part; the id when absent."""


_UNREADABLE = JsonRecord(id="-")
"""Fills the row of a payload that cannot be read."""


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
    for place, record_id in enumerate(ids):
        bare = records.carries is not None and records.carries[place] == LABEL_ONLY
        fields: dict[str, Any] = {"id": record_id}
        if not bare:
            fields["features"] = rows[place]
        if records.labels[place] != UNLABELLED:
            fields["label"] = classes[records.labels[place]]
        if not np.isnan(records.times[place]):
            fields["time"] = float(records.times[place])
        if schema.groups and not bare:
            fields["groups"] = {name: column[place] for name, column in groups.items()}
        if split_keys[place] != record_id:
            fields["split_key"] = split_keys[place]
        found.append(fields)
    return found


class _Sent:
    """What was sent, apart from features, as columns."""

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
    blocks: list[NDArray[Any]] = [np.empty((0, schema.size), dtype=schema.dtype)]
    bare: list[int] = []
    for first in range(0, len(payloads), BLOCK):
        block = payloads[first : first + BLOCK]
        try:
            rows = [decode_one(payload) for payload in block]
        except _BROKEN:
            rows = _one_by_one(block, first, faults, decode_one=decode_one, malformed=malformed)
        blocks.append(_matrix([row.features for row in rows], first, schema, faults, bare=bare))
        sent.extend(rows)
        del rows
    return _columns(sent, np.concatenate(blocks), bare, schema, faults)


def _one_by_one(
    block: Sequence[bytes], first: int, faults: Faults, *, decode_one: _DecodeOne, malformed: _Malformed
) -> list[JsonRecord]:
    rows = []
    for row, payload in enumerate(block, first):
        try:
            rows.append(decode_one(payload))
        except _BROKEN as error:
            faults.add(row, malformed(payload, error))
            rows.append(_UNREADABLE)
    return rows


def _matrix(
    features: Sequence[Any], first: int, schema: RecordSchema, faults: Faults, *, bare: list[int]
) -> NDArray[np.float32] | NDArray[np.uint8]:
    """The features (k, size) of a block that begins at row `first`; `bare` learns which rows have none."""
    kinds = set(map(type, features))
    if len(kinds) == 1:
        places: Sequence[int] = range(first, first + len(features))
        return stored(
            _READERS[kinds.pop()](features, places, schema, faults, bare), schema, faults, first=first
        )
    values = np.zeros((len(features), schema.size), dtype=np.float64)
    for kind in kinds:
        at = [place for place, found in enumerate(features) if type(found) is kind]
        chosen = [features[place] for place in at]
        values[at] = _READERS[kind](chosen, [first + place for place in at], schema, faults, bare)
    return stored(values, schema, faults, first=first)


def _from_nothing(
    features: Sequence[Any], at: Sequence[int], schema: RecordSchema, faults: Faults, bare: list[int]
) -> NDArray[Any]:
    bare.extend(at)
    return np.zeros((len(features), schema.size), dtype=schema.dtype)


def _from_lists(
    features: Sequence[Any], at: Sequence[int], schema: RecordSchema, faults: Faults, bare: list[int]
) -> NDArray[Any]:
    for shape in {(schema.size,): None, schema.shape: None}:
        try:
            return _regular(features, shape, schema)
        except (struct.error, TypeError):
            continue
    return _each(features, at, schema, faults, lambda one: _any_list(one, schema))


def _from_bytes(
    features: Sequence[Any], at: Sequence[int], schema: RecordSchema, faults: Faults, bare: list[int]
) -> NDArray[Any]:
    stored_type = np.dtype(schema.dtype).newbyteorder("<")
    wanted = schema.size * stored_type.itemsize

    def values(chosen: Sequence[bytes]) -> NDArray[Any]:
        for one in chosen:
            if len(one) != wanted:
                raise RecordInvalidError(
                    f"The features are {len(one)} bytes; {schema.size} of {schema.dtype} are {wanted}.",
                    "wrong-shape",
                )
        return np.frombuffer(b"".join(chosen), dtype=stored_type).reshape(-1, schema.size)

    try:
        return values(features)
    except RecordInvalidError:
        return _each(features, at, schema, faults, lambda one: values([one]))


def _from_columns(
    features: Sequence[Any], at: Sequence[int], schema: RecordSchema, faults: Faults, bare: list[int]
) -> NDArray[Any]:
    pick = _picker(schema.columns)

    def values(chosen: Sequence[dict[str, float]]) -> NDArray[Any]:
        try:
            if set(map(len, chosen)) == {len(schema.columns)}:
                return _regular([pick(one) for one in chosen], (schema.size,), schema)
        except KeyError:
            pass
        raise _other_columns(chosen[0], schema)

    try:
        return values(features)
    except RecordInvalidError:
        return _each(features, at, schema, faults, lambda one: values([one]))


def _picker(columns: Sequence[str]) -> Callable[[dict[str, float]], Sequence[float]]:
    if len(columns) > 1:
        return itemgetter(*columns)
    return lambda one: [one[name] for name in columns]


def _other_columns(sent: Mapping[str, float], schema: RecordSchema) -> RecordInvalidError:
    if not schema.columns:
        return RecordInvalidError(
            f"The features are an object, and the pipeline declares no columns; {_wanted_shape(schema)}.",
            "wrong-shape",
        )
    missing = [name for name in schema.columns if name not in sent]
    unknown = [name for name in sent if name not in schema.columns]
    told = difference(missing=missing, unknown=unknown)
    return RecordInvalidError(f"The features have not the declared columns: {told}.", "schema-mismatch")


def _each(
    features: Sequence[Any],
    at: Sequence[int],
    schema: RecordSchema,
    faults: Faults,
    values: Callable[[Any], NDArray[Any]],
) -> NDArray[Any]:
    """One by one: zeros where it fails."""
    found = np.zeros((len(features), schema.size), dtype=np.float64)
    for place, one in enumerate(features):
        try:
            found[place] = values(one)[0]
        except RecordInvalidError as error:
            faults.add(at[place], error)
    return found


def _regular(features: Sequence[Any], shape: Sequence[int], schema: RecordSchema) -> NDArray[np.float64]:
    """Values (k, size) of nested lists that all have one shape.

    Raises:
        struct.error, TypeError: one of them has another shape.
    """
    lists = features
    for extent in shape[:-1]:
        if set(map(len, lists)) != {extent}:
            raise TypeError("a list has another length")
        lists = list(chain.from_iterable(lists))
    # It refuses lists of another length, and lists within.
    packed = b"".join(starmap(_packer(shape[-1]), lists))
    return np.frombuffer(packed, dtype="<f8").reshape(-1, schema.size)


def _any_list(features: Any, schema: RecordSchema) -> NDArray[np.float64]:
    try:
        values = np.array([features], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise RecordInvalidError(
            f"The features are not a regular array; {_wanted_shape(schema)}.", "wrong-shape"
        ) from error
    if values.shape[1:] not in {schema.shape, (schema.size,)}:
        raise RecordInvalidError(
            f"The features have shape {list(values.shape[1:])}; {_wanted_shape(schema)}.", "wrong-shape"
        )
    return values.reshape(-1, schema.size)


@lru_cache(maxsize=64)
def _packer(size: int) -> Callable[..., bytes]:
    return struct.Struct(f"<{size}d").pack


def _wanted_shape(schema: RecordSchema) -> str:
    return f"the pipeline declares {list(schema.shape)}, or a flat list of {schema.size}"


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
    return RecordInvalidError(f"The record cannot be read: {str(error)[:300]}.")


_BROKEN = (msgspec.MsgspecError, ValueError, RecursionError)
_READERS: Mapping[type, _Reader] = {
    list: _from_lists,
    bytes: _from_bytes,
    dict: _from_columns,
    type(None): _from_nothing,
}
_JSON = msgspec.json.Decoder(JsonRecord)
_MSGPACK = msgspec.msgpack.Decoder(JsonRecord)
