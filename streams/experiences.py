"""The store of experience files: immutable, content-addressed, memory-mapped.

One part is one uncompressed Arrow IPC file with exactly one record batch, named by the sha256 of its bytes.
The same records give the same bytes, so writing again after a crash is harmless. A file that no manifest
row names is an orphan; `collect_garbage` removes it.
"""

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.base import Experience, ExperienceDamagedError, RecordSchema
from streams.records import Records
from streams.wire import to_arrow

_SHAPE_KEY = b"holdfast.shape"
_DTYPE_KEY = b"holdfast.dtype"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_GROUP_PREFIX = "group:"

_Identity = tuple[int, int, int]


class ExperienceStore:
    """Experience files under one folder. Safe to use from several processes and threads at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._root.mkdir(parents=True, exist_ok=True)
        # What was verified, as it lay on the disk then: a file that was replaced is verified again.
        self._verified: dict[str, _Identity] = {}

    def path(self, digest: str) -> Path:
        """Where the part of this digest lies, or would lie.

        Raises:
            ExperienceDamagedError: `digest` is not a sha256 in lower-case hex.
        """
        if not _DIGEST.fullmatch(digest):
            raise ExperienceDamagedError(
                f"{digest[:80]!r} is not a sha256: the row that names it is wrong; restore the database."
            )
        return self._root / f"{digest}.arrow"

    def write(self, records: Records, schema: RecordSchema) -> str:
        """Store one part durably and return its digest.

        Idempotent. A file already there is replaced by the same bytes, which heals a damaged one and keeps
        a fresh one out of the garbage collector's reach.
        """
        payload = _file_bytes(records, schema)
        digest = hashlib.sha256(payload).hexdigest()
        temporary = self._root / f"{digest}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            with temporary.open("xb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path(digest))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(self._root)
        return digest

    def open(self, digest: str, *, index: int) -> Experience:
        """One part, memory-mapped: inputs and labels are read-only views of the file.

        Its bytes are held to the digest the first time this store opens it, and again when the file on the
        disk is not the one that was verified.

        Raises:
            ExperienceDamagedError: the file is missing, or its bytes are not what its name says.
        """
        path = self.path(digest)
        try:
            before = _identity(path)
            mapped = pa.memory_map(str(path), "r")
            if self._verified.get(digest) != before:
                _verify(mapped, digest, path)
                self._verified[digest] = before
            return _read(mapped, digest, index=index)
        except FileNotFoundError as error:
            raise ExperienceDamagedError(
                f"The experience file {path} is missing: restore it from a backup, or roll back to a version "
                "that does not need it."
            ) from error
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise ExperienceDamagedError(
                f"The experience file {path} cannot be read ({error}): restore it from a backup."
            ) from error

    def collect_garbage(self, keep: Set[str], *, grace_seconds: float) -> list[str]:
        """Delete parts that `keep` does not name, and left-over temporary files; return the deleted names.

        A file younger than the grace period stays: its commit may still be on its way. Take a period far
        longer than a commit can last, such as an hour, and read `keep` before the call.
        """
        deadline = time.time() - grace_seconds
        deleted = []
        for path in self._candidates():
            orphan = path.suffix == ".tmp" or path.stem not in keep
            try:
                if orphan and path.stat().st_mtime < deadline:
                    path.unlink()
                    deleted.append(path.name)
            except FileNotFoundError:
                continue  # another process collects too
        return deleted

    def _candidates(self) -> Iterator[Path]:
        for path in sorted(self._root.iterdir()):
            digest, _, rest = path.name.partition(".")
            if _DIGEST.fullmatch(digest) and (rest == "arrow" or rest.endswith(".tmp")):
                yield path


def _file_bytes(records: Records, schema: RecordSchema) -> bytes:
    shape = json.dumps(schema.shape).encode()
    batch = to_arrow(records, schema, metadata={_SHAPE_KEY: shape, _DTYPE_KEY: schema.dtype.encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue()).tobytes()


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(path: Path) -> _Identity:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _verify(mapped: Any, digest: str, path: Path) -> None:
    found = hashlib.sha256(mapped.read_buffer()).hexdigest()
    if found != digest:
        raise ExperienceDamagedError(
            f"The experience file {path} is damaged: its bytes have sha256 {found[:12]}. Restore it from a "
            "backup; if there is none, roll back to a version that does not need it."
        )


def _read(mapped: Any, digest: str, *, index: int) -> Experience:
    mapped.seek(0)
    reader = pa.ipc.open_file(mapped)
    if reader.num_record_batches != 1:
        raise ValueError(f"{reader.num_record_batches} record batches instead of one")
    batch = reader.get_batch(0)
    metadata = reader.schema.metadata
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
            for name in reader.schema.names
            if name.startswith(_GROUP_PREFIX)
        },
        digest=digest,
    )


def _texts(column: Any) -> NDArray[np.str_]:
    return np.array(column.to_pylist(), dtype=np.str_)


def _view(column: Any) -> NDArray[Any]:
    """The column's own memory, which lives as long as the array."""
    view: NDArray[Any] = column.to_numpy(zero_copy_only=True)
    view.flags.writeable = False
    return view
