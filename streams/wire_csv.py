"""CSV: one line a payload, whose fields the header of the batch names.

All lines are parsed at once. Where that fails, those that are plainly bad are set aside, and the rest is
parsed by halves; the parser alone decides what a line means, so that it means the same among any neighbours.
"""

import csv
from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from streams.base import RecordInvalidError, RecordSchema, TableColumns
from streams.wire_base import Faults
from streams.wire_rules import Draft
from streams.wire_tables import feature_columns, schema_difference, table_draft


def draft_csv(
    lines: Sequence[bytes], header: Sequence[str], schema: RecordSchema, table: TableColumns
) -> Draft:
    """The rows of CSV lines.

    Raises:
        RecordInvalidError: the header has not the declared columns (schema-mismatch).
    """
    told = schema_difference([(name, None) for name in header], schema, table)
    if told is not None:
        raise RecordInvalidError(f"The header has not the declared columns: {told}.", "schema-mismatch")
    numbers = frozenset(feature_columns(schema))
    faults = Faults()
    found = _parse(lines, header, numbers)
    if found is None:
        found = _rescued(lines, header, numbers, faults)
    # An empty cell is no label, and no time; what is empty otherwise breaks a rule on texts.
    for name in (table.label, table.time):
        if name is not None and name in header:
            found = _empty_as_null(found, name)
    return table_draft(found, schema, table, faults)


def _parse(lines: Sequence[bytes], header: Sequence[str], numbers: Set[str]) -> pa.Table | None:
    """One row a line; None unless all of them can be parsed."""
    joined = b"\n".join(lines)
    if b"\r" in joined:
        joined = b"\n".join([line.removesuffix(b"\r") for line in lines])
    # A line that holds a line break, or an open quote, may become as many rows as its neighbours lose.
    if not lines or joined.count(b"\n") != len(lines) - 1 or b"\r" in joined:
        return None if lines else _nothing(0, header, numbers)
    # The empty line in front keeps a byte order mark from meaning more in the first line than in others.
    data = b"\n" + joined + b"\n"
    try:
        found = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(
                column_names=list(header), skip_rows=1, use_threads=False, block_size=len(data) + 1
            ),
            parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types=_types(header, numbers), null_values=[""], strings_can_be_null=False
            ),
        )
    except (pa.ArrowException, OSError, ValueError, OverflowError):
        return None
    return found if found.num_rows == len(lines) else None


def _types(header: Sequence[str], numbers: Set[str]) -> dict[str, Any]:
    return {name: pa.float64() if name in numbers else pa.string() for name in header}


def _nothing(count: int, header: Sequence[str], numbers: Set[str]) -> pa.Table:
    return pa.table({name: pa.nulls(count, kind) for name, kind in _types(header, numbers).items()})


def _rescued(lines: Sequence[bytes], header: Sequence[str], numbers: Set[str], faults: Faults) -> pa.Table:
    """One row a line, empty for those that cannot be parsed."""
    for row, line in enumerate(lines):
        fault = _plain_fault(line, header, numbers)
        if fault is not None:
            faults.add(row, fault)
    left = [row for row in range(len(lines)) if row not in faults]
    parts = _by_halves(lines, left, header, numbers, faults)
    if not parts:
        return _nothing(len(lines), header, numbers)
    parsed = pa.concat_tables([part for _, part in parts])
    places = np.zeros(len(lines), dtype=np.int64)
    empty = np.ones(len(lines), dtype=np.bool_)
    rows = [row for some, _ in parts for row in some]
    places[rows] = np.arange(len(rows))
    empty[rows] = False
    return parsed.take(pa.array(places, mask=empty))


def _by_halves(
    lines: Sequence[bytes], rows: Sequence[int], header: Sequence[str], numbers: Set[str], faults: Faults
) -> list[tuple[Sequence[int], pa.Table]]:
    """The parts of these rows that can be parsed, in order."""
    if not rows:
        return []
    parsed = _parse([lines[row] for row in rows], header, numbers)
    if parsed is not None:
        return [(rows, parsed)]
    if len(rows) == 1:
        faults.add(rows[0], _fault(lines[rows[0]], header, numbers))
        return []
    half = len(rows) // 2
    return [
        *_by_halves(lines, rows[:half], header, numbers, faults),
        *_by_halves(lines, rows[half:], header, numbers, faults),
    ]


def _plain_fault(line: bytes, header: Sequence[str], numbers: Set[str]) -> RecordInvalidError | None:
    """A fault of a line without quotes that needs no parser to be seen."""
    if b'"' in line:
        return None
    return _fault_of_fields(line.decode("utf-8", "replace").removesuffix("\r").split(","), header, numbers)


def _fault(line: bytes, header: Sequence[str], numbers: Set[str]) -> RecordInvalidError:
    """Why a line cannot be parsed, as well as can be told."""
    try:
        rows = list(csv.reader([line.decode()], strict=True))
    except UnicodeDecodeError as error:
        return RecordInvalidError(f"The line is not UTF-8: {error}.")
    except csv.Error as error:
        return RecordInvalidError(f"The line is not CSV: {error}.")
    fault = _fault_of_fields(rows[0], header, numbers) if len(rows) == 1 else None
    return fault or RecordInvalidError("The line is not one row of CSV.")


def _fault_of_fields(
    fields: Sequence[str], header: Sequence[str], numbers: Set[str]
) -> RecordInvalidError | None:
    if len(fields) != len(header):
        return RecordInvalidError(f"The line has {len(fields)} fields; the header names {len(header)}.")
    for name, cell in zip(header, fields, strict=True):
        if name in numbers and cell and not _is_number(cell):
            return RecordInvalidError(f"The column {name!r} holds {cell[:100]!r}, which is no number.")
    return None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _empty_as_null(found: pa.Table, name: str) -> pa.Table:
    column = found.column(name)
    empty = pc.equal(column, "")
    place = found.column_names.index(name)
    return found.set_column(place, name, pc.if_else(empty, pa.scalar(None, pa.string()), column))
