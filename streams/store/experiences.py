"""Stores experience files: immutable, content-addressed, memory-mapped.

One part is one uncompressed Arrow IPC file with exactly one record batch, named by the sha256 of its bytes.
The same records give the same bytes, so writing again after a crash is harmless. A file that no manifest
row names is an orphan; `collect_garbage` removes it.

With a remote store, such as a bucket, every part is there too before its write returns, and the local folder
is a cache: a file that is missing or damaged in it is fetched again.
"""

import hashlib
import mmap
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa

from streams.base import Experience, ExperienceDamagedError, RecordSchema
from streams.records import Records
from streams.store.files import HashingSink, read_part, read_records, write_part
from streams.store.objects import (
    S3_SCHEME,
    ObjectExistsError,
    ObjectMissingError,
    ObjectStore,
    open_objects,
    sync_folder,
)

CACHE_BYTES = 64 * 1024**3
"""How much of a remote store the local cache keeps, unless another size is given."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"(part|[0-9a-f]{64})\..+\.tmp")
_CHUNK_BYTES = 16 * 1024 * 1024
_WRITERS = 4

T = TypeVar("T")
_Identity = tuple[int, int, int]


class ExperienceStore:
    """Experience files under one folder. Safe to use from several processes and threads at a time."""

    def __init__(
        self, root: Path, *, remote: ObjectStore | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        """With `remote`, the parts are kept there, and `root` is a cache of about `cache_bytes`."""
        self._root = root
        self._root.mkdir(parents=True, exist_ok=True)
        self._remote = remote
        self._cache_bytes = cache_bytes
        # Inode, size and time of each verified file: one that was replaced since is verified again.
        self._verified: dict[str, _Identity] = {}

    @classmethod
    def at(cls, location: str, *, cache: Path, cache_bytes: int = CACHE_BYTES) -> Self:
        """The store of a folder, or of "s3://bucket/prefix" with a cache in a local folder.

        Raises:
            ObjectError: the location is not well-formed.
        """
        if location.startswith(S3_SCHEME):
            return cls(cache, remote=open_objects(location), cache_bytes=cache_bytes)
        return cls(Path(location))

    def path(self, digest: str) -> Path:
        """The path of the part of this digest in the local folder, whether the file exists or not.

        Raises:
            ExperienceDamagedError: `digest` is not a sha256 in lower-case hex.
        """
        if not _DIGEST.fullmatch(digest):
            raise ExperienceDamagedError(
                f"{digest[:80]!r} is not a sha256: the row that names it is wrong; restore the database."
            )
        return self._root / f"{digest}.arrow"

    def write(self, records: Records, schema: RecordSchema) -> str:
        """Store one part durably and return its digest. See `write_parts`."""
        return self.write_parts([records], schema)[0]

    def write_parts(self, parts: Sequence[Records], schema: RecordSchema) -> list[str]:
        """Store several parts at a time, durably, and return their digests in the same order.

        Idempotent. A file already there is replaced by the same bytes, which repairs a damaged one and keeps
        the garbage collector from deleting it as old.

        Raises:
            ObjectError: the remote store cannot be written; what was written is an orphan, or nothing.
        """
        if len(parts) == 1:
            digests = [self._write(parts[0], schema)]
        else:
            # Hashing, writing and waiting for the disk release the interpreter's lock.
            with ThreadPoolExecutor(_WRITERS) as pool:
                digests = list(pool.map(lambda records: self._write(records, schema), parts))
        sync_folder(self._root)
        self._bound_cache(fresh=set(digests))
        return digests

    def open(self, digest: str, *, index: int) -> Experience:
        """One part, memory-mapped: inputs and labels are read-only views of the file.

        Its bytes are checked against the digest the first time this store opens it, and again when the file
        was replaced. A part that is missing or damaged in the cache is fetched.

        Raises:
            ExperienceDamagedError: the file is missing, or its bytes are not what its name says; where there
                is a remote store, there too.
            ObjectError: the part must be fetched, and the remote store cannot be reached.
        """
        return self._reading(digest, lambda mapped: read_part(mapped, digest, index=index))

    def records(self, digest: str, schema: RecordSchema) -> Records:
        """One part as it was written, unmatched records included; its columns are views of the file.

        Raises:
            ExperienceDamagedError, ObjectError: as `open`.
        """
        return self._reading(digest, lambda mapped: read_records(mapped, schema))

    def _reading(self, digest: str, read: Callable[[Any], T]) -> T:
        try:
            return self._mapped(digest, read)
        except ExperienceDamagedError:
            if self._remote is None:
                raise
        self._fetch(digest, self._remote)
        found = self._mapped(digest, read)
        self._bound_cache(fresh={digest})
        return found

    def remove(self, digest: str) -> None:
        """Delete a part, here and in the remote store; a missing one is no error. Nothing may refer to it."""
        path = self.path(digest)
        if self._remote is not None:
            self._remote.delete(path.name)
        path.unlink(missing_ok=True)
        self._verified.pop(digest, None)

    def collect_garbage(self, keep: Set[str], *, grace_seconds: float) -> list[str]:
        """Delete parts that `keep` does not name, and left-over temporary files; return the deleted names.

        A file younger than the grace period stays: its commit may not be finished. Take a period far longer
        than a commit can last, such as an hour, and read `keep` before the call.

        Raises:
            ObjectError: the remote store cannot be listed.
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
        if self._remote is not None:
            for found in self._remote.list():
                digest, _, rest = found.name.partition(".")
                ours = rest == "arrow" and _DIGEST.fullmatch(digest)
                if ours and digest not in keep and found.modified < deadline:
                    self._remote.delete(found.name)
                    deleted.append(found.name)
        return sorted(set(deleted))

    def _write(self, records: Records, schema: RecordSchema) -> str:
        """Write one part under its digest; its name is durable once the folder is synced."""
        temporary = self._temporary()
        try:
            with temporary.open("xb") as file:
                sink = HashingSink(file)
                write_part(sink, records, schema)
                file.flush()
                os.fsync(file.fileno())
            digest = sink.hexdigest()
            if self._remote is not None:
                _upload(temporary, f"{digest}.arrow", self._remote)
            temporary.rename(self.path(digest))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return digest

    def _mapped(self, digest: str, read: Callable[[Any], T]) -> T:
        path = self.path(digest)
        try:
            before = _identity(path)
            mapped = pa.memory_map(str(path), "r")
            if self._verified.get(digest) != before:
                _verify(mapped, digest, path)
                self._verified[digest] = before
            if self._remote is not None:
                # The time of use changes, for the cache; that of writing stays, for the garbage collector.
                os.utime(path, ns=(time.time_ns(), before[2]))
            return read(mapped)
        except FileNotFoundError as error:
            raise ExperienceDamagedError(
                f"The experience file {path} is missing: restore it from a backup, or roll back to a version "
                "that does not need it."
            ) from error
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise ExperienceDamagedError(
                f"The experience file {path} cannot be read ({error}): restore it from a backup."
            ) from error

    def _fetch(self, digest: str, remote: ObjectStore) -> None:
        """Fetch a part from the remote store. Not synced: one that a power loss damages is fetched again.

        Raises:
            ExperienceDamagedError: the remote object is missing or damaged.
        """
        path, temporary = self.path(digest), self._temporary()
        try:
            with temporary.open("xb") as file:
                sink = HashingSink(file)
                while chunk := remote.read(path.name, sink.tell(), sink.tell() + _CHUNK_BYTES):
                    sink.write(chunk)
            if sink.hexdigest() != digest:
                raise ExperienceDamagedError(
                    f"The experience {path.name} in {remote.location} is damaged: its bytes have sha256 "
                    f"{sink.hexdigest()[:12]}. Restore it from a backup; if there is none, roll back to a "
                    "version that does not need it."
                )
            self._verified[digest] = _identity(temporary)
            temporary.rename(path)
        except ObjectMissingError as error:
            raise ExperienceDamagedError(
                f"The experience {path.name} is missing in {remote.location}: restore it from a backup, or "
                "roll back to a version that does not need it."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _temporary(self) -> Path:
        return self._root / f"part.{os.getpid()}-{secrets.token_hex(8)}.tmp"

    def _candidates(self) -> Iterator[Path]:
        for path in sorted(self._root.iterdir()):
            if _TEMPORARY.fullmatch(path.name) or (path.suffix == ".arrow" and _DIGEST.fullmatch(path.stem)):
                yield path

    def _bound_cache(self, *, fresh: Set[str]) -> None:
        """With a remote store, delete the parts used longest ago; a mapped file stays readable."""
        if self._remote is None:
            return
        found = []
        for path in self._candidates():
            if path.suffix == ".arrow":
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # another process bounds the cache too
                found.append((stat.st_atime_ns, stat.st_size, path))
        excess = sum(size for _, size, _ in found) - self._cache_bytes
        for _, size, path in sorted(found):
            if excess > 0 and path.stem not in fresh:
                path.unlink(missing_ok=True)
                excess -= size


def _upload(file: Path, name: str, remote: ObjectStore) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        data = memoryview(mapped)
        try:
            remote.create(name, data)
        except ObjectExistsError:
            # It has the same content, unless damaged. Writing it again repairs it, and renews its time.
            remote.replace(name, data)
        finally:
            data.release()


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
