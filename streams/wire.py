"""Bytes to records. A record that does not fit is set aside with its reason; its neighbours live.

JSON is what callers send: one object a record, with the fields of `JsonRecord`. Arrow is what we write
ourselves: one IPC stream of many records, which carries the fingerprint of the schema it was written for.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.base import RawBatch, RecordInvalidError, RecordSchema, WireName
from streams.records import (
    Records,
    check_texts,
    check_values,
    checked_texts,
    compact,
    join_records,
    stored_features,
)

Reason = Literal[
    "malformed",
    "wrong-shape",
    "not-finite",
    "out-of-range",
    "unknown-label",
    "missing-group",
    "unknown-group",
    "bad-group",
    "bad-id",
    "bad-split-key",
    "bad-time",
    "schema-mismatch",
]
"""Every code that a dead letter can carry."""

PAYLOAD_CAP_BYTES = 64 * 1024
"""How much of a refused payload is kept."""

FINGERPRINT_KEY = b"holdfast.schema"
_NOT_FINITE = re.compile(rb"[\[,:\s]-?(NaN|Infinity)\b")

# Nested lists one level deeper than the deepest shape in use, so that a wrong nesting is reported as a wrong
# shape. Features of more dimensions can always be sent flat.
_Row = list[float | list[float | list[float | list[float | list[float]]]]]
_AwareDatetime = Annotated[datetime, msgspec.Meta(tz=True)]


class JsonRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One record as it is sent: what the JSON object may hold."""

    id: str
    features: _Row
    """Nested lists of the schema's shape, or a flat list of its size."""
    label: str | int
    """The name of the class; the number 3 means the class named "3"."""
    time: float | _AwareDatetime | None = None
    """Epoch seconds, or RFC 3339 text with an offset."""
    groups: dict[str, str | int] | None = None
    split_key: str | None = None
    """Records that share it always land in the same part; the id when absent."""


@dataclass(frozen=True)
class Rejected:
    """A payload that did not become a record."""

    position: str
    """The cursor of the payload."""
    reason: str
    """A code, one of `Reason`."""
    detail: str
    """A sentence that the sender can act on."""
    payload: bytes
    """The first 64 KB of what was sent."""


@dataclass(frozen=True)
class Decoded:
    """What became of a batch of payloads: every position is either accepted or rejected."""

    records: Records
    positions: Sequence[str]
    """One cursor a record."""
    rejected: Sequence[Rejected]


def decode(batch: RawBatch, schema: RecordSchema) -> Decoded:
    """The records of a batch; never raises because of what the payloads hold."""
    return _DECODERS[batch.wire](batch, schema)


def decode_json(payloads: Sequence[bytes], schema: RecordSchema, *, positions: Sequence[str]) -> Decoded:
    """One JSON object a payload. Whatever the bytes are, each becomes a record or a `Rejected`."""
    sent: list[JsonRecord] = []
    sent_at: list[int] = []
    refused: dict[int, RecordInvalidError] = {}
    decode_one = _JSON_DECODER.decode
    for place, payload in enumerate(payloads):
        try:
            sent.append(decode_one(payload))
            sent_at.append(place)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            refused[place] = _malformed(payload, error)
    chunks = _isolate(sent, sent_at, schema, refused)
    return Decoded(
        records=join_records(chunks, schema),
        positions=[positions[place] for place in sent_at if place not in refused],
        rejected=[_rejected(positions[place], refused[place], payloads[place]) for place in sorted(refused)],
    )


def encode_json(records: Records, schema: RecordSchema) -> list[bytes]:
    """One payload a record, such that `decode_json` gives the same records back."""
    return [msgspec.json.encode(fields) for fields in json_fields(records, schema)]


def json_fields(records: Records, schema: RecordSchema) -> list[dict[str, Any]]:
    """One JSON-able dict a record, in the form that callers send."""
    rows = records.features.tolist()
    ids, split_keys = records.ids.to_pylist(), records.split_keys.to_pylist()
    groups = {name: records.groups[name].to_pylist() for name in schema.groups}
    found: list[dict[str, Any]] = []
    for place in range(len(records)):
        fields: dict[str, Any] = {
            "id": ids[place],
            "features": rows[place],
            "label": schema.classes[records.labels[place]],
        }
        if not np.isnan(records.times[place]):
            fields["time"] = float(records.times[place])
        if schema.groups:
            fields["groups"] = {name: column[place] for name, column in groups.items()}
        if split_keys[place] != ids[place]:
            fields["split_key"] = split_keys[place]
        found.append(fields)
    return found


def encode_batch(records: Records, schema: RecordSchema) -> bytes:
    """Arrow IPC stream of one record batch; `decode_batch` with the same schema gives the records back."""
    batch = to_arrow(records, schema, metadata={})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def decode_batch(payload: bytes, schema: RecordSchema) -> Records:
    """Records from what `encode_batch` wrote.

    Raises:
        RecordInvalidError: the bytes are not such a batch (malformed), were written for another schema
            (schema-mismatch), or hold a record that breaks a rule of this one.
    """
    try:
        table = pa.ipc.open_stream(pa.py_buffer(payload)).read_all()
        table.validate(full=True)
        batch = table.combine_chunks().to_batches()
        check_fingerprint(table.schema.metadata, schema)
        found = from_arrow(batch[0], schema) if batch else join_records([], schema)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise RecordInvalidError(f"The payload is not an Arrow stream of records: {error}.") from error
    check_values(found, schema)
    return found


def to_arrow(records: Records, schema: RecordSchema, *, metadata: Mapping[bytes, bytes]) -> pa.RecordBatch:
    """One Arrow record batch; its metadata is the fingerprint and what is given."""
    flat = np.ascontiguousarray(records.features).reshape(-1)
    columns: dict[str, Any] = {
        "id": compact(records.ids),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(flat), schema.size),
        "label": pa.array(records.labels, pa.int64()),
        "time": pa.array(records.times, pa.float64()),
        "split_key": compact(records.split_keys),
    }
    for name in schema.groups:
        columns[f"group:{name}"] = compact(records.groups[name])
    batch = pa.RecordBatch.from_pydict(columns)
    return batch.replace_schema_metadata({FINGERPRINT_KEY: schema.fingerprint().encode(), **metadata})


def from_arrow(batch: pa.RecordBatch, schema: RecordSchema) -> Records:
    """Records over the memory of an Arrow batch; features, labels and times are not copied.

    Raises:
        ValueError, KeyError, TypeError, pyarrow.ArrowException: the batch is not of `to_arrow`'s form.
    """
    if any(column.null_count for column in batch.columns):
        raise ValueError("a column holds nulls")
    features = batch.column("features")
    if features.type != pa.list_(pa.from_numpy_dtype(schema.dtype), schema.size):
        raise ValueError(f"the features are {features.type}")
    values = features.flatten()
    if values.null_count:
        raise ValueError("the features hold nulls")
    return Records(
        ids=_texts(batch.column("id"), what="id", reason="bad-id"),
        features=values.to_numpy(zero_copy_only=True).reshape(batch.num_rows, *schema.shape),
        labels=_numbers(batch.column("label"), pa.int64()),
        times=_numbers(batch.column("time"), pa.float64()),
        split_keys=_texts(batch.column("split_key"), what="split key", reason="bad-split-key"),
        groups={
            name: _texts(batch.column(f"group:{name}"), what=f"group {name!r}", reason="bad-group")
            for name in schema.groups
        },
    )


def check_fingerprint(metadata: Mapping[bytes, bytes] | None, schema: RecordSchema) -> None:
    """Hold Arrow metadata to the schema.

    Raises:
        RecordInvalidError: it names another schema, or none.
    """
    written = (metadata or {}).get(FINGERPRINT_KEY, b"").decode("ascii", "replace")
    expected = schema.fingerprint()
    if written != expected:
        raise RecordInvalidError(
            f"The batch was written for schema {written[:12] or '(none)'} and the pipeline declares "
            f"{expected[:12]}: send it again in the declared form, or use a new pipeline for the new schema.",
            "schema-mismatch",
        )


def _texts(column: Any, *, what: str, reason: str) -> pa.StringArray:
    if column.type != pa.string():
        raise ValueError(f"the {what} column is {column.type}")
    check_texts(column, what=what, reason=reason)
    return column


def _numbers(column: Any, wanted: Any) -> NDArray[Any]:
    if column.type != wanted:
        raise ValueError(f"a column of {wanted} is {column.type}")
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return numbers


def _isolate(
    sent: Sequence[JsonRecord],
    sent_at: Sequence[int],
    schema: RecordSchema,
    refused: dict[int, RecordInvalidError],
) -> list[Records]:
    """All at once where all fit; else by halves, so that one bad record costs its neighbours little.

    What is refused is added to `refused` by its place.
    """
    if not sent:
        return []
    try:
        return [_columns(sent, schema)]
    except RecordInvalidError as error:
        if len(sent) == 1:
            refused[sent_at[0]] = error
            return []
    half = len(sent) // 2
    return [
        *_isolate(sent[:half], sent_at[:half], schema, refused),
        *_isolate(sent[half:], sent_at[half:], schema, refused),
    ]


def _columns(sent: Sequence[JsonRecord], schema: RecordSchema) -> Records:
    """Columns of all records.

    Raises:
        RecordInvalidError: at least one record breaks a rule; of a single record, which rule.
    """
    ids = [record.id for record in sent]
    split_keys = [record.id if record.split_key is None else record.split_key for record in sent]
    records = Records(
        ids=checked_texts(ids, what="id", reason="bad-id"),
        features=stored_features(_features(sent, schema), schema),
        labels=_labels(sent, schema),
        times=np.array([_seconds(record.time) for record in sent], dtype=np.float64),
        split_keys=checked_texts(split_keys, what="split key", reason="bad-split-key"),
        groups=_groups(sent, schema),
    )
    check_values(records, schema)
    return records


def _features(sent: Sequence[JsonRecord], schema: RecordSchema) -> NDArray[np.float64]:
    try:
        values = np.array([record.features for record in sent], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise RecordInvalidError(
            f"The features are not a regular array; {_wanted_shape(schema)}.", "wrong-shape"
        ) from error
    if values.shape[1:] not in {schema.shape, (schema.size,)}:
        raise RecordInvalidError(
            f"The features have shape {list(values.shape[1:])}; {_wanted_shape(schema)}.", "wrong-shape"
        )
    return values.reshape(len(sent), *schema.shape)


def _wanted_shape(schema: RecordSchema) -> str:
    return f"the pipeline declares {list(schema.shape)}, or a flat list of {schema.size}"


def _labels(sent: Sequence[JsonRecord], schema: RecordSchema) -> NDArray[np.int64]:
    class_ids = {name: place for place, name in enumerate(schema.classes)}
    found = [class_ids.get(str(record.label), -1) for record in sent]
    if min(found) < 0:
        name = str(sent[found.index(-1)].label)[:100]
        raise RecordInvalidError(
            f"The label {name!r} is not one of the {len(class_ids)} declared classes.", "unknown-label"
        )
    return np.array(found, dtype=np.int64)


def _seconds(time: float | datetime | None) -> float:
    if time is None:
        return np.nan
    return time.timestamp() if isinstance(time, datetime) else time


def _groups(sent: Sequence[JsonRecord], schema: RecordSchema) -> dict[str, pa.StringArray]:
    columns: dict[str, list[str]] = {name: [] for name in schema.groups}
    for record in sent:
        given = record.groups or {}
        for name in given.keys() - columns.keys():
            raise RecordInvalidError(f"The group {name[:100]!r} is not declared.", "unknown-group")
        for name, column in columns.items():
            if name not in given:
                raise RecordInvalidError(f"The group {name!r} is missing.", "missing-group")
            column.append(str(given[name]))
    return {
        name: checked_texts(column, what=f"group {name!r}", reason="bad-group")
        for name, column in columns.items()
    }


def _malformed(payload: bytes, error: Exception) -> RecordInvalidError:
    # Python's own json writes NaN and Infinity, which are not JSON: say so instead of "invalid character".
    if _NOT_FINITE.search(payload[:PAYLOAD_CAP_BYTES]):
        return RecordInvalidError("The record holds NaN or Infinity, which JSON cannot carry.", "not-finite")
    return RecordInvalidError(f"The record cannot be read: {str(error)[:300]}.")


def _rejected(position: str, error: RecordInvalidError, payload: bytes) -> Rejected:
    return Rejected(position, error.reason, str(error), payload[:PAYLOAD_CAP_BYTES])


def _decode_json_batch(batch: RawBatch, schema: RecordSchema) -> Decoded:
    return decode_json(batch.payloads, schema, positions=batch.positions)


def _decode_arrow_batch(batch: RawBatch, schema: RecordSchema) -> Decoded:
    """The stretch of one payload that `skip` and `positions` name. A payload that cannot be read is one
    rejection at the last of its positions, so that the rest of the partition can still be reached."""
    (payload,) = batch.payloads
    stop = batch.skip + len(batch.positions)
    try:
        records = decode_batch(payload, schema)
        if len(records) < stop:
            raise RecordInvalidError(f"The payload holds {len(records)} records and {stop} were announced.")
    except RecordInvalidError as error:
        return Decoded(join_records([], schema), [], [_rejected(batch.positions[-1], error, payload)])
    return Decoded(records.take(slice(batch.skip, stop)), batch.positions, [])


_JSON_DECODER = msgspec.json.Decoder(JsonRecord)
_DECODERS: Mapping[WireName, Callable[[RawBatch, RecordSchema], Decoded]] = {
    "json": _decode_json_batch,
    "arrow": _decode_arrow_batch,
}
