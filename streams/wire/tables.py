"""Decodes tables that other programs wrote, CSV or Arrow, by the names of their columns."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streams.base import RecordInvalidError, RecordSchema, TableColumns
from streams.records import MAX_TEXT_LENGTH, UNLABELLED, Records
from streams.wire.base import Faults, difference
from streams.wire.rules import Draft, carried, nulls, stored

FEATURES = "features"
"""The column of an Arrow table that holds all features, where they have no columns of their own."""

_TIME_TEXT = (
    r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[T ]([01]\d|2[0-3]):[0-5]\d:[0-5]\d"
    r"(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$"
)

_Fits = Callable[[Any], bool]
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def feature_columns(schema: RecordSchema) -> Sequence[str]:
    """The names that feature columns must have: those declared, else "0", "1" and so on."""
    return schema.columns or [str(index) for index in range(schema.size)]


def group_column(name: str, present: Iterable[str]) -> str:
    """The column that holds a group: "group:<name>" where there is one, else its own name."""
    return f"group:{name}" if f"group:{name}" in present else name


def columns_problem(
    columns: Sequence[tuple[str, pa.DataType | None]], schema: RecordSchema, table: TableColumns
) -> str | None:
    """How the columns of a table differ from those declared; None when records can be read from them.

    A type is None where it is not known before a value is read, as in CSV. The answer names the columns, such
    as "missing: label; unknown: lable; of another type: age has string, wants numbers". Where labels may come
    late, a table may lack the label column, or all the feature columns, but not both.
    """
    types = dict(columns)
    names = [name for name, _ in columns]
    whole = FEATURES in types and FEATURES not in schema.columns and types[FEATURES] is not None
    features: dict[str, tuple[_Fits, str]]
    if whole:
        features = {FEATURES: (_fits_features(schema), "lists of numbers, or the bytes of the values")}
    else:
        features = dict.fromkeys(feature_columns(schema), (_is_number, "numbers"))
    wanted = features | _other_columns(schema, table, types)
    missing = [name for name in wanted if name not in types]
    if schema.late_labels:
        missing = _required(missing, features, table)
    found = difference(
        missing=missing,
        unknown=[name for name in types if name not in wanted],
        twice=sorted({name for name in names if names.count(name) > 1}) if len(types) < len(names) else (),
        other_type=[
            f"{name} has {types[name]}, wants {wants}"
            for name, (fits, wants) in wanted.items()
            if types.get(name) is not None and not (fits(types[name]) or pa.types.is_null(types[name]))
        ],
    )
    return found or None


def table_draft(
    found: pa.Table, schema: RecordSchema, table: TableColumns, faults: Faults | None = None
) -> Draft:
    """The rows of a table. Where `table.id` is None, the ids are null. `faults` are those found before.

    Raises:
        RecordInvalidError: the columns are not those that are declared (schema-mismatch).
    """
    problem = columns_problem([(field.name, field.type) for field in found.schema], schema, table)
    if problem is not None:
        raise RecordInvalidError(f"The table has not the declared columns: {problem}.", "schema-mismatch")
    faults = Faults() if faults is None else faults
    count = found.num_rows
    ids = pa.nulls(count, pa.string()) if table.id is None else _texts(found, table.id)
    names = _texts(found, table.label) if table.label in found.column_names else pa.nulls(count, pa.string())
    features, featured = _features(found, schema, faults)
    records = Records(
        ids=ids,
        features=stored(features, schema, faults).reshape(count, *schema.shape),
        labels=np.full(count, UNLABELLED, dtype=np.int64),
        times=np.full(count, np.nan) if table.time is None else _times(_column(found, table.time), faults),
        split_keys=ids if table.split_key is None else _texts(found, table.split_key),
        groups={name: _texts(found, group_column(name, found.column_names)) for name in schema.groups},
        carries=carried(~nulls(names), featured, schema, faults),
    )
    return Draft(records, names, faults)


def _other_columns(
    schema: RecordSchema, table: TableColumns, present: Iterable[str]
) -> dict[str, tuple[_Fits, str]]:
    text = (_is_text, "text or integers")
    wanted = {table.label: text}
    for name in (table.id, table.split_key):
        if name is not None:
            wanted[name] = text
    if table.time is not None:
        wanted[table.time] = (_is_time, "epoch seconds, a timestamp or text")
    return wanted | {group_column(name, present): text for name in schema.groups}


def _required(missing: Sequence[str], features: Iterable[str], table: TableColumns) -> list[str]:
    """The missing columns, without those that may come late."""
    lacks_features = set(features) <= set(missing)
    if lacks_features and table.label in missing:
        return list(missing)
    late = set(features) if lacks_features else {table.label}
    return [name for name in missing if name not in late]


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind))


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_time(kind: Any) -> bool:
    return bool(pa.types.is_timestamp(kind) or _is_text(kind) or pa.types.is_floating(kind))


def _fits_features(schema: RecordSchema) -> _Fits:
    def fits(kind: Any) -> bool:
        if pa.types.is_fixed_size_binary(kind):
            return bool(kind.byte_width == _row_bytes(schema))
        if pa.types.is_fixed_size_list(kind):
            return bool(kind.list_size == schema.size and _is_number(kind.value_type))
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return _is_number(kind.value_type)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    return fits


def _row_bytes(schema: RecordSchema) -> int:
    return schema.size * np.dtype(schema.dtype).itemsize


def _column(found: pa.Table, name: str) -> Any:
    column = found.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _texts(found: pa.Table, name: str) -> pa.StringArray:
    return _as_texts(_column(found, name))


def _as_texts(column: Any) -> pa.StringArray:
    if pa.types.is_dictionary(column.type):
        # Shortened before it is repeated: a long text that many rows refer to would fill the memory.
        values = pc.utf8_slice_codeunits(column.dictionary.cast(pa.string()), 0, MAX_TEXT_LENGTH + 1)
        return values.take(column.indices)
    return column if column.type == pa.string() else column.cast(pa.string())


def _features(
    found: pa.Table, schema: RecordSchema, faults: Faults
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values (n, size), and which rows (n,) have any."""
    if FEATURES in found.column_names and FEATURES not in schema.columns:
        column = _column(found, FEATURES)
        if pa.types.is_null(column.type):
            return _no_features(found, schema)
        return _packed(column, schema, faults), ~nulls(column)
    columns = feature_columns(schema)
    if columns[0] not in found.column_names:
        return _no_features(found, schema)
    return _spread([_column(found, name) for name in columns], columns, schema, faults)


def _no_features(found: pa.Table, schema: RecordSchema) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    count = found.num_rows
    return np.zeros((count, schema.size), dtype=schema.dtype), np.zeros(count, dtype=np.bool_)


def _spread(
    columns: Sequence[Any], names: Sequence[str], schema: RecordSchema, faults: Faults
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Features with a column each. A row without any has none; one that lacks some is refused."""
    count = len(columns[0])
    kinds = {column.type for column in columns}
    exact = kinds == {pa.from_numpy_dtype(schema.dtype)}
    values = np.empty((count, len(columns)), dtype=schema.dtype if exact else np.float64)
    lacking = np.zeros(count, dtype=np.int64)
    first = np.full(count, -1)
    for index, column in enumerate(columns):
        if column.null_count:
            empty = nulls(column)
            first[empty & (lacking == 0)] = index
            lacking += empty
        values[:, index] = _numbers(column)
    featured = lacking < len(columns)
    partly = featured & (lacking > 0)
    faults.add_where(partly, "malformed", lambda row: f"The column {names[first[row]]!r} holds no number.")
    return values, featured


def _numbers(column: Any) -> NDArray[Any]:
    """The numbers of a column, zeros where it has none."""
    if pa.types.is_decimal(column.type) or pa.types.is_null(column.type):
        column = column.cast(pa.float64())
    if column.null_count:
        column = column.fill_null(0)
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return numbers


def _packed(column: Any, schema: RecordSchema, faults: Faults) -> NDArray[Any]:
    """Features (n, size) in one column, lists or bytes. Zeros where there are none, or too few or many."""
    kind = column.type
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    unit, wanted = ("bytes", _row_bytes(schema)) if binary else ("values", schema.size)
    if binary or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        sizes = (pc.binary_length(column) if binary else pc.list_value_length(column)).fill_null(wanted)
        wrong = sizes.to_numpy() != wanted
        faults.add_where(
            wrong, "wrong-shape", lambda row: f"The features are {sizes[row]} {unit}; {wanted} are declared."
        )
    else:
        wrong = np.zeros(len(column), dtype=np.bool_)
    fine = ~wrong & ~nulls(column)
    chosen = column if fine.all() else column.filter(pa.array(fine))
    values = _joined(chosen, schema, np.flatnonzero(fine), faults)
    if len(values) == len(column):
        return values
    whole = np.zeros((len(column), schema.size), dtype=values.dtype)
    whole[fine] = values
    return whole


def _joined(column: Any, schema: RecordSchema, rows: NDArray[np.int64], faults: Faults) -> NDArray[Any]:
    """The values (k, size) of a column without nulls, all of the right length, over its memory."""
    if not pa.types.is_nested(column.type):
        return _bytes(column, schema)
    flat = column.flatten()
    if flat.null_count:
        holes = nulls(flat).reshape(-1, schema.size).any(axis=1)
        for row in rows[holes].tolist():
            faults.add(row, RecordInvalidError("A feature is null: send a number."))
    return _numbers(flat).reshape(-1, schema.size)


def _bytes(column: Any, schema: RecordSchema) -> NDArray[Any]:
    wanted, count = _row_bytes(schema), len(column)
    stored_type = np.dtype(schema.dtype).newbyteorder("<")
    if not count:
        return np.empty((0, schema.size), dtype=schema.dtype)
    buffers = column.buffers()
    if pa.types.is_fixed_size_binary(column.type):
        start, data = column.offset * wanted, buffers[1]
    else:
        width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
        start, data = int(np.frombuffer(buffers[1], dtype=width)[column.offset]), buffers[2]
    values = np.frombuffer(data, dtype=np.uint8, count=count * wanted, offset=start)
    found = values.view(stored_type).reshape(count, schema.size)
    return found if found.flags.aligned else found.copy()


def _times(column: Any, faults: Faults) -> NDArray[np.float64]:
    """Epoch seconds (n,), NaN where there are none. A timestamp without a zone is UTC."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        ticks: NDArray[np.float64] = (
            column.cast(pa.int64()).cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
        )
        return ticks / _TICKS[kind.unit]
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
        seconds: NDArray[np.float64] = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
        return seconds
    texts, nothing = _as_texts(column), pa.scalar(None, pa.string())
    dates = pc.match_substring_regex(texts, _TIME_TEXT)
    as_dates = _cast(pc.if_else(dates, texts, nothing), pa.timestamp("ns", "UTC"))
    as_numbers = _cast(pc.if_else(dates, nothing, texts), pa.float64())
    bad = ~nulls(texts) & nulls(as_dates) & nulls(as_numbers)
    faults.add_where(bad, "bad-time", "The time is neither epoch seconds nor RFC 3339 text with an offset.")
    from_dates = _times(as_dates, faults)
    return np.where(np.isnan(from_dates), _times(as_numbers, faults), from_dates)


def _cast(texts: Any, kind: Any) -> Any:
    """The texts in another type, null where one cannot be cast; bisects, so that one costs little."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return pa.nulls(1, kind)
    half = len(texts) // 2
    return pa.concat_arrays([_cast(texts.slice(0, half), kind), _cast(texts.slice(half), kind)])
