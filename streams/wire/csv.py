"""Decodes CSV: one line a payload, under the header of the batch.

All lines are parsed at once; where that fails, the lines are bisected. Only the parser decides what a line
means, so that it means the same among any other lines.
"""

import csv
from collections.abc import Sequence, Set

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from streams.base import RecordInvalidError, RecordSchema, TableColumns
from streams.wire.base import Faults
from streams.wire.rules import Draft
from streams.wire.tables import columns_problem, feature_columns, table_draft

_FEW = 256
"""Up to this many lines are checked one by one when they cannot be parsed together."""


def draft_csv(
    lines: Sequence[bytes], header: Sequence[str], schema: RecordSchema, table: TableColumns
) -> Draft:
    """The rows of CSV lines.

    Raises:
        RecordInvalidError: the header has not the declared columns (schema-mismatch).
    """
    problem = columns_problem([(name, None) for name in header], schema, table)
    if problem is not None:
        raise RecordInvalidError(f"The header has not the declared columns: {problem}.", "schema-mismatch")
    faults = Faults()
    found = _Parser(header, frozenset(feature_columns(schema))).table(lines, faults)
    return table_draft(found, schema, table, faults)


class _Parser:
    """Parses lines under one header to tables."""

    def __init__(self, header: Sequence[str], numbers: Set[str]) -> None:
        """`numbers` are the columns that hold numbers; the others hold texts."""
        self._header = list(header)
        self._numbers = numbers
        self._types = {name: pa.float64() if name in numbers else pa.string() for name in header}
        self._parse_options = arrow_csv.ParseOptions(ignore_empty_lines=False)
        # Only an empty cell is null; "NA", for example, is a label like any other.
        self._convert_options = arrow_csv.ConvertOptions(
            column_types=self._types, null_values=[""], strings_can_be_null=True
        )

    def table(self, lines: Sequence[bytes], faults: Faults) -> pa.Table:
        """One row a line: empty, and named in the faults, for those that cannot be parsed."""
        parts = self._parts(lines, range(len(lines)), faults) if lines else []
        if len(parts) == 1 and len(parts[0][0]) == len(lines):
            return parts[0][1]
        if not parts:
            return pa.table({name: pa.nulls(len(lines), kind) for name, kind in self._types.items()})
        rows = [row for some, _ in parts for row in some]
        indices = np.zeros(len(lines), dtype=np.int64)
        empty = np.ones(len(lines), dtype=np.bool_)
        indices[rows] = np.arange(len(rows))
        empty[rows] = False
        return pa.concat_tables([part for _, part in parts]).take(pa.array(indices, mask=empty))

    def _parts(
        self, lines: Sequence[bytes], rows: Sequence[int], faults: Faults
    ) -> list[tuple[Sequence[int], pa.Table]]:
        """The parts of these rows that can be parsed, in order."""
        parsed = self._parse([lines[row] for row in rows])
        if parsed is not None:
            return [(rows, parsed)]
        if len(rows) == 1:
            faults.add(rows[0], self._fault(lines[rows[0]]))
            return []
        if len(rows) <= _FEW:
            left = [row for row in rows if not self._plainly_bad(row, lines[row], faults)]
            if 0 < len(left) < len(rows):
                return self._parts(lines, left, faults)
            if not left:
                return []
        half = len(rows) // 2
        return [*self._parts(lines, rows[:half], faults), *self._parts(lines, rows[half:], faults)]

    def _parse(self, lines: Sequence[bytes]) -> pa.Table | None:
        """One row a line; None unless all of them can be parsed."""
        joined = b"\n".join(lines)
        if b"\r" in joined:
            joined = b"\n".join([line.removesuffix(b"\r") for line in lines])
        # A line with a line break or an open quote may give as many extra rows as other lines lose.
        if joined.count(b"\n") != len(lines) - 1 or b"\r" in joined:
            return None
        # The empty line in front makes a byte order mark in the first line an ordinary character. The row at
        # the end is missing from the result where the last line leaves a quote open.
        data = b"\n" + joined + b"\n" + b"," * (len(self._header) - 1) + b"\n"
        read_options = arrow_csv.ReadOptions(
            column_names=self._header, skip_rows=1, use_threads=False, block_size=len(data) + 1
        )
        try:
            found = arrow_csv.read_csv(
                pa.BufferReader(data),
                read_options=read_options,
                parse_options=self._parse_options,
                convert_options=self._convert_options,
            )
        except (pa.ArrowException, OSError, ValueError, OverflowError):
            return None
        return found.slice(0, len(lines)) if found.num_rows == len(lines) + 1 else None

    def _plainly_bad(self, row: int, line: bytes, faults: Faults) -> bool:
        """Whether a line has a fault that needs no parser to be seen."""
        text = line.decode("utf-8", "replace").removesuffix("\r")
        try:
            # Its lenient mode finds the same fields as the parser; an open quote is left to the parser.
            fields = next(csv.reader([text]), []) if '"' in text else text.split(",")
        except csv.Error:
            return False
        fault = self._fault_of_fields(fields)
        if fault is not None:
            faults.add(row, fault)
        return fault is not None

    def _fault(self, line: bytes) -> RecordInvalidError:
        """Why a line cannot be parsed, as far as can be found out."""
        try:
            rows = list(csv.reader([line.decode()], strict=True))
        except UnicodeDecodeError as error:
            return RecordInvalidError(f"The line is not UTF-8: {error}.")
        except csv.Error as error:
            return RecordInvalidError(f"The line is not CSV: {error}.")
        fault = self._fault_of_fields(rows[0]) if len(rows) == 1 else None
        return fault or RecordInvalidError("The line is not one row of CSV.")

    def _fault_of_fields(self, fields: Sequence[str]) -> RecordInvalidError | None:
        count = len(self._header)
        if len(fields) != count:
            return RecordInvalidError(f"The line has {len(fields)} fields; the header names {count}.")
        for name, cell in zip(self._header, fields, strict=True):
            if name in self._numbers and cell and not _is_number(cell):
                return RecordInvalidError(f"The column {name!r} holds {cell[:100]!r}, which is no number.")
        return None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
