"""Encodes and decodes Arrow: one IPC stream, or file, of many records a payload.

Payloads written here carry the fingerprint of their schema, and are read without a copy. Those of other
programs are tables, read by the names of their columns.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.base import RawBatch, RecordInvalidError, RecordSchema, TableColumns
from streams.records import LABEL_ONLY, MAX_TEXT_LENGTH, UNLABELLED, LabelMap, Records, compact, empty_records
from streams.wire.arrow_sizes import size_of
from streams.wire.base import Decoded, Faults, all_refused, assemble
from streams.wire.rules import Draft, accept, carried, examine
from streams.wire.tables import FEATURES, feature_columns, group_column, table_draft

FINGERPRINT_KEY = b"holdfast.schema"

_BROKEN = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
)
_SHOWN_VALUES = 1000
_SHOWN_BYTES = 4 * (MAX_TEXT_LENGTH + 1)
"""Bytes shown of a text, enough that a text that is too long remains too long."""
_WHOLE_VALUES = 16_384
"""Largest record that is shown whole: a larger one would exceed what is kept of a payload."""


def encode_batch(records: Records, schema: RecordSchema, names: Sequence[str] | None = None) -> bytes:
    """Arrow IPC stream of one record batch; `decode_batch` with the same schema gives the records back.

    The labels of open classes are written as texts. `names` are the classes by id; by default those that the
    schema declares.
    """
    batch = to_arrow(records, schema, metadata={})
    if schema.open_classes:
        known = pa.array(schema.classes if names is None else names, pa.string())
        labels = pa.array(records.labels, mask=records.labels == UNLABELLED)
        index = batch.schema.get_field_index("label")
        batch = batch.set_column(index, "label", known.take(labels))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def decode_batch(payload: bytes, schema: RecordSchema, labels: LabelMap | None = None) -> Records:
    """Records from what `encode_batch` wrote. Where classes are open, new ones join `labels`.

    Raises:
        RecordInvalidError: the bytes are not such a batch (malformed), were written for another schema
            (schema-mismatch), or hold a record that breaks a rule of this one. No class is new then.
    """
    labels = LabelMap(schema) if labels is None else labels
    draft = _drafted(_open(payload), schema, None)
    accept(draft, schema, LabelMap(schema, labels.names))
    for _, fault in draft.faults.in_order():
        raise RecordInvalidError(fault.detail, fault.reason)
    return accept(draft, schema, labels)[0]


def to_arrow(records: Records, schema: RecordSchema, *, metadata: Mapping[bytes, bytes]) -> pa.RecordBatch:
    """One Arrow record batch; its metadata is the fingerprint and what is given. Labels are ids.

    Split keys that are the ids, and times of which there are none, are left out.
    """
    flat = np.ascontiguousarray(records.features).reshape(-1)
    columns: dict[str, Any] = {
        "id": compact(records.ids),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(flat), schema.size),
        "label": pa.array(records.labels, pa.int64()),
    }
    if not np.isnan(records.times).all():
        columns["time"] = pa.array(records.times, pa.float64())
    # Compared by value: the bytes must not depend on how the records were built.
    if not (records.split_keys is records.ids or records.split_keys.equals(records.ids)):
        columns["split_key"] = compact(records.split_keys)
    for name in schema.groups:
        columns[f"group:{name}"] = compact(records.groups[name])
    if records.carries is not None:
        columns["carries"] = pa.array(records.carries, pa.uint8())
    batch = pa.RecordBatch.from_pydict(columns)
    return batch.replace_schema_metadata({FINGERPRINT_KEY: schema.fingerprint().encode(), **metadata})


def from_arrow(batch: pa.RecordBatch, schema: RecordSchema) -> Records:
    """Records over the memory of a batch that `to_arrow` made; features, labels and times are not copied.

    Raises:
        ValueError, KeyError, TypeError, pyarrow.ArrowException: the batch is not of `to_arrow`'s form.
        RecordInvalidError: a record breaks a rule of the schema.
    """
    draft = examine(_own_draft(batch, schema, pa.int64()), schema)
    records, _ = accept(draft, schema, LabelMap(schema))
    for _, fault in draft.faults.in_order():
        raise RecordInvalidError(fault.detail, fault.reason)
    return records


def check_fingerprint(metadata: Mapping[bytes, bytes] | None, schema: RecordSchema) -> None:
    """Check that Arrow metadata has the fingerprint of the schema.

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


def count_records(payload: bytes) -> int | None:
    """How many records an Arrow payload holds, by its headers; None where they cannot be read.

    A payload that can be counted may still be unreadable. One that is readable has exactly this many records.
    """
    try:
        size = size_of(payload)
    except _BROKEN:
        return None
    return None if size.problem(payload) else size.rows


@dataclass(frozen=True)
class _Whole:
    """A payload that was read, with the schema and columns it was read by."""

    payload: bytes
    schema: RecordSchema
    table: TableColumns
    columns: pa.Table
    draft: Draft


class _LastRead:
    """Caches the payload that is being read in steps, so that a step costs no more than its own records.

    One payload is enough: a source gives the rest of it before it begins the next one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: _Whole | None = None

    def find(self, batch: RawBatch, schema: RecordSchema) -> _Whole | None:
        """The cached payload, if it is this very object and was read by the same schema and columns."""
        with self._lock:
            held = self._held
        if held is None or held.payload is not batch.payloads[0]:
            return None
        return held if held.schema == schema and held.table == batch.table else None

    def hold(self, whole: _Whole) -> None:
        """Cache this payload instead of any other."""
        with self._lock:
            self._held = whole

    def drop(self, whole: _Whole) -> None:
        """Release the payload, unless another one is cached by now."""
        with self._lock:
            if self._held is whole:
                self._held = None


_LAST_READ = _LastRead()


def decode_arrow(batch: RawBatch, schema: RecordSchema, labels: LabelMap) -> Decoded:
    """Decode the rows of one payload that `skip` and `positions` select.

    A payload that cannot be read at all is one rejection at the last of its positions.
    """
    (payload,) = batch.payloads
    stop = batch.skip + len(batch.positions)
    try:
        whole = _LAST_READ.find(batch, schema) or _read(payload, schema, batch.table)
        rows = whole.columns.num_rows
        if rows < stop:
            raise RecordInvalidError(f"The payload holds {rows} records and {stop} were announced.")
    except RecordInvalidError as error:
        return all_refused(batch, schema, error)
    if stop < rows:
        _LAST_READ.hold(whole)
    else:
        _LAST_READ.drop(whole)
    draft = whole.draft.rows(batch.skip, stop)
    if batch.table.id is None and not _is_own(whole.columns):
        draft = draft.named(batch.ids)
    records, indices = accept(draft, schema, labels)
    return assemble(
        records,
        indices,
        draft.faults,
        positions=batch.positions,
        payload_of=lambda index: _row_as_record(
            whole.columns,
            batch.skip + index,
            schema,
            batch.table,
            named=batch.ids[index] if len(batch.ids) else None,
        ),
    )


def _read(payload: bytes, schema: RecordSchema, table: TableColumns) -> _Whole:
    columns = _open(payload)
    return _Whole(payload, schema, table, columns, _drafted(columns, schema, table))


def _open(payload: bytes) -> pa.Table:
    """The table of an IPC stream or file.

    Raises:
        RecordInvalidError: the bytes are neither (malformed).
    """
    source = pa.py_buffer(payload)
    is_file = payload.startswith(b"ARROW1")
    try:
        size = size_of(payload)
        problem = size.problem(payload)
        if problem is not None:
            raise ValueError(problem)
        found = (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()
        # The source announced as many records as were counted: any more would never be read.
        if found.num_rows != size.rows:
            raise ValueError(f"its parts hold {size.rows} records and its footer names {found.num_rows}")
        # Until the table is validated, its buffers must not be read.
        found.validate(full=True)
    except _BROKEN as error:
        raise RecordInvalidError(
            f"The payload is not an Arrow stream of records: {str(error)[:300]}."
        ) from error
    return found


def _drafted(columns: pa.Table, schema: RecordSchema, table: TableColumns | None) -> Draft:
    """All rows, examined. Without `table`, only a batch with our fingerprint is read.

    Raises:
        RecordInvalidError: they are not of the declared form.
    """
    try:
        if table is None or _is_own(columns):
            check_fingerprint(columns.schema.metadata, schema)
            batches = columns.combine_chunks().to_batches()
            if not batches:
                return Draft(empty_records(schema), None, Faults())
            label_type = pa.string() if schema.open_classes else pa.int64()
            return examine(_own_draft(batches[0], schema, label_type), schema)
        return examine(table_draft(columns, schema, table), schema)
    except _BROKEN as error:
        raise RecordInvalidError(
            f"The payload is not an Arrow stream of records: {str(error)[:300]}."
        ) from error


def _is_own(columns: pa.Table) -> bool:
    return FINGERPRINT_KEY in (columns.schema.metadata or {})


def _own_draft(batch: pa.RecordBatch, schema: RecordSchema, label_type: Any) -> Draft:
    nullable = {"label"} if label_type == pa.string() else set()
    given = dict(zip(batch.schema.names, batch.columns, strict=True))
    for name, column in given.items():
        if column.null_count and name not in nullable:
            raise ValueError(f"the column {name!r} holds nulls")
    features = given["features"]
    if features.type != pa.list_(pa.from_numpy_dtype(schema.dtype), schema.size):
        raise ValueError(f"the features are {features.type}")
    values = features.flatten()
    if values.null_count:
        raise ValueError("the features hold nulls")
    count = batch.num_rows
    ids = _texts(given, "id")
    label = given["label"]
    if label.type != label_type:
        raise ValueError(f"the labels are {label.type}")
    named = label_type == pa.string()
    labels = np.full(count, UNLABELLED) if named else label.to_numpy(zero_copy_only=True)
    faults = Faults()
    labelled = ~label.is_null().to_numpy(zero_copy_only=False) if named else labels != UNLABELLED
    bare = _numbers(given, "carries", pa.uint8()) == LABEL_ONLY if "carries" in given else None
    featured = np.ones(count, dtype=np.bool_) if bare is None else ~bare
    records = Records(
        ids=ids,
        features=values.to_numpy(zero_copy_only=True).reshape(count, *schema.shape),
        labels=labels,
        times=_numbers(given, "time", pa.float64()) if "time" in given else np.full(count, np.nan),
        split_keys=_texts(given, "split_key") if "split_key" in given else ids,
        groups={name: _texts(given, f"group:{name}") for name in schema.groups},
        carries=carried(labelled, featured, schema, faults),
    )
    return Draft(records, label if named else None, faults)


def _texts(given: Mapping[str, Any], name: str) -> pa.StringArray:
    column = given[name]
    if column.type != pa.string():
        raise ValueError(f"the column {name!r} is {column.type}")
    return column


def _numbers(given: Mapping[str, Any], name: str, wanted: Any) -> NDArray[Any]:
    column = given[name]
    if column.type != wanted:
        raise ValueError(f"the column {name!r} is {column.type}")
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return numbers


def _row_as_record(
    columns: pa.Table, row: int, schema: RecordSchema, table: TableColumns, *, named: str | None
) -> bytes:
    """A row as a JSON record, which a person can read and correct, and which can be decoded again.

    A row larger than any record may be is cut, and so remains refused. `named` is the id, where the table has
    none.
    """
    own = _is_own(columns)
    most = schema.size + 1 if schema.size <= _WHOLE_VALUES else _SHOWN_VALUES
    table = TableColumns(id="id", split_key="split_key", time="time") if own else table

    def cell(name: str | None) -> Any:
        present = name is not None and name in columns.column_names
        return _cell(columns.column(name)[row], most=most) if present else None

    features = cell(FEATURES) if own or FEATURES not in schema.columns else None
    if features is None:
        by_name = {name: cell(name) for name in feature_columns(schema)}
        if any(value is not None for value in by_name.values()):
            features = by_name if schema.columns else list(by_name.values())
    label = cell(table.label)
    if own and isinstance(label, int):
        label = None if label == UNLABELLED else dict(enumerate(schema.classes)).get(label, label)
    record = {
        "id": cell(table.id) if named is None else named,
        "features": features,
        "label": label,
        "time": _with_offset(cell(table.time)),
        "split_key": cell(table.split_key),
        "groups": {name: cell(group_column(name, columns.column_names)) for name in schema.groups} or None,
    }
    given = {name: value for name, value in record.items() if value is not None}
    return msgspec.json.encode(given, enc_hook=str)


def _with_offset(time: Any) -> Any:
    """A time of a table without an offset is UTC."""
    if isinstance(time, datetime) and time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    return time


def _cell(scalar: Any, *, most: int) -> Any:
    """Contents of a cell, with a limit on the values of a list and the characters of a text."""
    if isinstance(scalar, pa.DictionaryScalar):
        scalar = scalar.value
    try:
        if not scalar.is_valid:
            return None
        if isinstance(scalar, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
            return scalar.values.slice(0, most).to_pylist()
        if isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):
            # A text that many rows refer to may be long: copy only the part that is shown.
            return bytes(memoryview(scalar.as_buffer())[:_SHOWN_BYTES]).decode("utf-8", "replace")
        value = scalar.as_py()
        return value[: 8 * most] if isinstance(value, bytes) else value
    except (pa.ArrowException, ValueError, OverflowError, ImportError):
        return f"({scalar.type})"
