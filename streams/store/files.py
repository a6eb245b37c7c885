"""Writes and reads the experience file format: an uncompressed Arrow IPC file with one record batch.

The features come first and begin at a multiple of 64 bytes, so that a mapped file is as fast as memory. The
same records give the same bytes.
"""

import hashlib
import json
import threading
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.base import Experience, RecordSchema
from streams.records import Records
from streams.wire.decode import from_arrow, to_arrow

_SHAPE_KEY = b"holdfast.shape"
_DTYPE_KEY = b"holdfast.dtype"
_PADDING_KEY = b"holdfast.padding"
_ALIGNMENT = 64
"""The size of a cache line, and the alignment that vector instructions are fastest with."""
_GROUP_PREFIX = "group:"
_WORTH_A_THREAD = 2**20
"""Bytes: hashing fewer takes less time than starting a thread."""


class HashingSink:
    """A sink for Arrow: counts and hashes the bytes written, and passes them to a file if there is one.

    Arrow passes its buffers without copying them.
    """

    def __init__(self, file: BinaryIO | None = None) -> None:
        self.closed = False
        self.first_buffer: int | None = None
        """Offset of the first column's memory."""
        self._file = file
        self._hash = hashlib.sha256()
        self._hashing: threading.Thread | None = None
        self._size = 0

    def write(self, data: Any) -> int:
        """Write bytes, or an Arrow buffer."""
        if isinstance(data, pa.Buffer) and self.first_buffer is None:
            self.first_buffer = self._size
        size = memoryview(data).nbytes
        if self._file is not None:
            self._join()
            if size >= _WORTH_A_THREAD:
                # Hashing and writing both release the interpreter's lock, and take about as long.
                self._hashing = threading.Thread(target=self._hash.update, args=(data,))
                self._hashing.start()
            else:
                self._hash.update(data)
            self._file.write(data)
        self._size += size
        return size

    def _join(self) -> None:
        if self._hashing is not None:
            self._hashing.join()
            self._hashing = None

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def flush(self) -> None:
        """Does nothing: the file is flushed by its owner."""

    def close(self) -> None:
        """End the writing; the file stays open."""
        self.closed = True

    def hexdigest(self) -> str:
        """sha256 of the bytes written."""
        self._join()
        return self._hash.hexdigest()


def write_part(sink: HashingSink, records: Records, schema: RecordSchema) -> None:
    """Write the file of these records, with padding that puts the features at a multiple of 64 bytes."""
    metadata = {_SHAPE_KEY: json.dumps(schema.shape).encode(), _DTYPE_KEY: schema.dtype.encode()}
    batch = to_arrow(records, schema, metadata={**metadata, _PADDING_KEY: b""})
    # The features come first, so that only the metadata is before them.
    names = ["features", *(name for name in batch.schema.names if name != "features")]
    batch = batch.select(names)
    measured = HashingSink()
    _write_batch(measured, batch)
    padding = b" " * (-(measured.first_buffer or 0) % _ALIGNMENT)
    _write_batch(sink, batch.replace_schema_metadata({**batch.schema.metadata, _PADDING_KEY: padding}))


def _write_batch(sink: HashingSink, batch: Any) -> None:
    with pa.ipc.new_file(pa.PythonFile(sink, "w"), batch.schema) as writer:
        writer.write_batch(batch)


def read_records(mapped: Any, schema: RecordSchema) -> Records:
    """The records in a mapped file, as they were written; their columns are views of the map.

    Raises:
        ValueError, KeyError, TypeError, pyarrow.ArrowException: the file has another format.
    """
    return from_arrow(_batch(mapped), schema)


def _batch(mapped: Any) -> Any:
    mapped.seek(0)
    reader = pa.ipc.open_file(mapped)
    if reader.num_record_batches != 1:
        raise ValueError(f"{reader.num_record_batches} record batches instead of one")
    return reader.get_batch(0)


def read_part(mapped: Any, digest: str, *, index: int) -> Experience:
    """The experience in a mapped file; its inputs and labels are views of the map.

    Raises:
        ValueError, KeyError, pyarrow.ArrowException: the file has another format.
    """
    batch = _batch(mapped)
    metadata = batch.schema.metadata
    shape = tuple(json.loads(metadata[_SHAPE_KEY]))
    dtype = np.dtype(metadata[_DTYPE_KEY].decode())
    inputs = _view(batch.column("features").flatten())
    if inputs.dtype != dtype:
        raise ValueError(f"the features are {inputs.dtype} and the metadata says {dtype}")
    return Experience(
        index=index,
        inputs=inputs.reshape(batch.num_rows, *shape),
        labels=_view(batch.column("label")),
        record_ids=_texts(batch.column("id")),
        groups={
            name.removeprefix(_GROUP_PREFIX): _texts(batch.column(name))
            for name in batch.schema.names
            if name.startswith(_GROUP_PREFIX)
        },
        digest=digest,
    )


def _texts(column: Any) -> NDArray[np.str_]:
    return np.array(column.to_pylist(), dtype=np.str_)


def _view(column: Any) -> NDArray[Any]:
    """A read-only view of the column's memory, which it keeps alive."""
    view: NDArray[Any] = column.to_numpy(zero_copy_only=True)
    view.flags.writeable = False
    return view
