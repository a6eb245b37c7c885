"""Reads the rows of one version of one Parquet or Arrow file, as Arrow record batches."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from streams.base import LazyTexts, SourceError
from streams.sources.files.cursor import FileCursor, FormatName, read_exactly, table_fingerprint
from streams.sources.files.lines import FileRecords, UnfinishedError
from streams.sources.files.text import ObjectFile
from streams.store.objects import ObjectInfo, ObjectStore
from streams.wire.base import PAYLOAD_CAP_BYTES

_MAGIC: dict[FormatName, bytes] = {"parquet": b"PAR1", "arrow": b"ARROW1"}
_BATCH_BYTES = 32 * 1024 * 1024
_BATCH_ROWS = 65_536
_BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError)
"""Whatever Arrow raises about bytes that it cannot read."""


class TableReader:
    """Reads some rows at a time: of Parquet about 32 MB are in memory, of Arrow one record batch."""

    def __init__(
        self,
        objects: ObjectStore,
        info: ObjectInfo,
        cursor: FileCursor | None,
        *,
        form: FormatName,
        check_schema: Callable[[Any], None],
    ) -> None:
        """`check_schema` gets the file's Arrow schema, and raises where it is wrong.

        Raises:
            UnfinishedError: the magic bytes at its beginning or end are missing, so it is not complete.
            SourceError: it is complete, and cannot be read.
        """
        self.waits = False
        self._name = info.name
        self._form = form
        _check_whole(objects, info, _MAGIC[form], form)
        self._fingerprint = table_fingerprint(objects, info)
        self._row = 0 if cursor is None else cursor.end
        source = pa.PythonFile(ObjectFile(objects, info), "r")
        try:
            if form == "parquet":
                file = _parquet_file(source)
                schema, self._batches = file.schema_arrow, _parquet_batches(file, self._row)
            else:
                reader = pa.ipc.open_file(source)
                schema, self._batches = reader.schema, _arrow_batches(reader, self._row)
        except _BROKEN as error:
            raise self._unreadable(error) from error
        check_schema(schema)
        self._size = info.size
        self._batch: Any = None
        self._bytes = 0
        self._ends = False
        self._at = 0

    def read(self, most: int, *, settled: bool) -> FileRecords | None:
        """See `Reader`."""
        try:
            while self._batch is None or self._at == self._batch.num_rows:
                (self._batch, self._ends), self._at = next(self._batches), 0
                self._batch.validate(full=True)
                self._batch = _cut(self._batch)
                self._bytes = _spread_bytes(self._batch)
        except StopIteration:
            return None
        except _BROKEN as error:
            raise self._unreadable(error) from error
        row, at = self._row, self._at
        stop = min(at + most, self._batch.num_rows, at + _rows_of(self._bytes, self._batch.num_rows))
        payload = _encoded(self._batch.slice(at, stop - at))
        self._at, self._row = stop, row + stop - at
        final = self._row - 1 if self._ends and stop == self._batch.num_rows else -1
        size, print_of_file = self._size, self._fingerprint

        def position(row: int) -> str:
            return str(FileCursor(row, row + 1, size, print_of_file, row == final))

        starts = np.arange(row, self._row, dtype=np.int64)
        return FileRecords("arrow", [payload], LazyTexts(position, range(row, self._row)), starts)

    def _unreadable(self, error: Exception) -> SourceError:
        # Not its words: they quote what the file holds.
        reason = type(error).__name__
        return SourceError(
            f"The file {self._name!r} cannot be read as {self._form.capitalize()} ({reason}): let it arrive "
            "again under a new name, and take this one away."
        )


def _check_whole(objects: ObjectStore, info: ObjectInfo, magic: bytes, form: str) -> None:
    size = len(magic)
    whole = info.size >= 2 * size and magic == read_exactly(objects, info, 0, size)
    if not whole or magic != read_exactly(objects, info, info.size - size, info.size):
        raise UnfinishedError(
            f"The file {info.name!r} is not a whole {form.capitalize()} file: let it arrive again under a "
            "new name, and take this one away."
        )


def _rows_of(size: int, rows: int) -> int:
    """How many rows of a table of that size, in bytes, are read at a time."""
    return min(_BATCH_ROWS, max(1, _BATCH_BYTES * rows // max(size, 1)))


def _parquet_file(source: Any) -> Any:
    """A Parquet file whose texts stay in dictionaries, as it stores them: a long one is not repeated."""
    file = parquet.ParquetFile(source)
    texts = [
        field.name
        for field in file.schema_arrow
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    return parquet.ParquetFile(source, metadata=file.metadata, read_dictionary=texts) if texts else file


def _cut(batch: Any) -> Any:
    """The batch, with the texts of dictionaries no longer than what is kept of a refused record."""
    columns = list(batch.columns)
    for at, column in enumerate(columns):
        if not _is_text_dictionary(column.type) or not len(column.dictionary):
            continue
        if (pc.max(pc.binary_length(column.dictionary)).as_py() or 0) > PAYLOAD_CAP_BYTES:
            cut = pc.utf8_slice_codeunits(column.dictionary, 0, PAYLOAD_CAP_BYTES)
            columns[at] = pa.DictionaryArray.from_arrays(column.indices, cut)
    return pa.RecordBatch.from_arrays(
        columns,
        schema=pa.schema(
            [field.with_type(column.type) for field, column in zip(batch.schema, columns, strict=True)],
            batch.schema.metadata,
        ),
    )


def _spread_bytes(batch: Any) -> int:
    """Bytes of a batch once each row has its own texts: that is how a refused row is kept."""
    size = int(batch.nbytes)
    for column in batch.columns:
        if _is_text_dictionary(column.type):
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            size += int(pc.sum(lengths).as_py() or 0)
    return size


def _is_text_dictionary(kind: Any) -> bool:
    if not pa.types.is_dictionary(kind):
        return False
    return bool(pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type))


def _unpacked_bytes(group: Any) -> int:
    """About what a row group takes in memory; its own size is of values that may stand for many."""
    values = sum(group.column(index).num_values for index in range(group.num_columns))
    return max(int(group.total_byte_size), 8 * int(values))


def _parquet_batches(file: Any, row: int) -> Iterator[tuple[Any, bool]]:
    """The rows from `row` on, and with each batch whether it is the last."""
    left = file.metadata.num_rows - row
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        if row >= group.num_rows:
            row -= group.num_rows
            continue
        size = _rows_of(_unpacked_bytes(group), group.num_rows)
        for batch in file.iter_batches(batch_size=size, row_groups=[index]):
            passed = min(row, batch.num_rows)
            row -= passed
            left -= batch.num_rows - passed
            if passed < batch.num_rows:
                yield batch.slice(passed), left == 0


def _arrow_batches(reader: Any, row: int) -> Iterator[tuple[Any, bool]]:
    """The rows from `row` on, and with each batch whether it is the last."""
    count = reader.num_record_batches
    while count and not reader.get_batch(count - 1).num_rows:
        count -= 1  # empty batches may follow the last row
    for index in range(count):
        batch = reader.get_batch(index)
        passed = min(row, batch.num_rows)
        row -= passed
        if passed < batch.num_rows:
            yield batch.slice(passed), index == count - 1


def _encoded(batch: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())
