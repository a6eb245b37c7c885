"""Files that arrive in a folder or under an S3 prefix, as a source. Every file is a partition of its own.

Files are read in the order of their names among those present. Text files may grow: what is appended is
read next. An incomplete file waits. Once a file has settled, or a record of it was read, all of it must be
read: if it is replaced, shortened or removed before all its records are in experiences, the source stops.
After that it may be removed.
"""

import fnmatch
import hashlib
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from streams.allowed import Allowed
from streams.base import (
    LazyTexts,
    RawBatch,
    RecordInvalidError,
    RecordSchema,
    SchemaChangedError,
    SourceContext,
    SourceError,
)
from streams.sources.files.config import FilesConfig
from streams.sources.files.cursor import FileCursor, format_of, is_zipped, verify
from streams.sources.files.lines import FileRecords, LineReader, Reader, UnfinishedError
from streams.sources.files.listing import ListedFile, check_gone, check_name, is_read, passed_over
from streams.sources.files.tables import TableReader
from streams.store.objects import (
    S3_SCHEME,
    ObjectChangedError,
    ObjectError,
    ObjectInfo,
    ObjectMissingError,
    open_objects,
)
from streams.wire.decode import FINGERPRINT_KEY, check_fingerprint, columns_problem

_LOOK_SECONDS = 0.2
_BLOCK_BYTES = 1024 * 1024
"""Text read at a time: what a processor's cache holds."""
_REMOTE_BLOCK_BYTES = 8 * 1024 * 1024
"""Text read at a time from S3, where every read is a request."""
_LONGEST_ID_NAME = 150
MAX_POLL_BYTES = 64 * 1024 * 1024
"""About how much one poll may hold: of long records fewer are read at a time."""
_VERIFIERS = 16


class FilesSource:
    """The files of one location that match a pattern."""

    def __init__(self, config: FilesConfig, schema: RecordSchema, *, allowed: Allowed | None = None) -> None:
        self._config = config
        self._allowed = allowed or Allowed()
        self._schema = schema
        self._objects = open_objects(config.location)
        self._pattern = re.compile(fnmatch.translate(config.pattern))
        remote = config.location.startswith(S3_SCHEME)
        self._interval = config.look_seconds if remote else _LOOK_SECONDS
        self._block_bytes = _REMOTE_BLOCK_BYTES if remote else _BLOCK_BYTES
        self._files: dict[str, ListedFile] | None = None
        self._arrived: dict[str, str] = {}
        """Cursors that `arrived` must report until they are committed."""
        self._passed_over: str | None = None
        self._due: deque[str] = deque()
        self._next_look = 0.0
        self._reading: tuple[ObjectInfo, Reader] | None = None

    def partitions(self) -> Sequence[str]:
        """Names of the files that are there now, relative to the location.

        Raises:
            SourceError: the location cannot be listed.
        """
        return list(self._list())

    def open(self, cursors: Mapping[str, str]) -> None:
        """Resume just after these cursors, once every file that they name was compared with its fingerprints.

        Raises:
            DataLostError: a file is gone, shorter, or not the one that was read.
            SourceError: the location cannot be read, or a cursor is of another source.
        """
        self.close()
        parsed = {name: FileCursor.parse(cursor) for name, cursor in cursors.items()}
        listed = self._list()
        known = [
            (listed[name], cursor) for name, cursor in parsed.items() if cursor is not None and name in listed
        ]
        # Several at a time, because in S3 each of them is a request.
        with ThreadPoolExecutor(_VERIFIERS) as pool, _as_source_errors():
            list(pool.map(lambda pair: verify(self._objects, *pair), known))
        self._files = {name: ListedFile(cursor) for name, cursor in cursors.items()}
        self._take(self._files, listed)

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        """The next records, file by file; a batch holds records of one file.

        Raises:
            DataLostError: a file that was not read to its end is gone, shorter, or replaced.
            SchemaChangedError: a file has other columns than the pipeline declares.
            SourceError: a file or the location cannot be read; nothing is skipped.
        """
        if self._files is None:
            raise SourceError("The source was polled before it was opened.")
        deadline = time.monotonic() + timeout_seconds
        while True:
            if time.monotonic() >= self._next_look:
                self._take(self._files, self._list())
            found = self._read(self._files, max_records)
            now = time.monotonic()
            if found or now >= deadline:
                return found
            time.sleep(max(0.0, min(deadline, self._next_look) - now))

    def arrived(self, cursors: Mapping[str, str]) -> Mapping[str, str]:
        """See `AnnouncingSource`."""
        for name, cursor in list(self._arrived.items()):
            parsed = FileCursor.parse(cursors.get(name, ""))
            if cursors.get(name) == cursor or (parsed is not None and parsed.end):
                del self._arrived[name]
        return dict(self._arrived)

    def forget(self, cursors: Mapping[str, str]) -> list[str]:
        """See `ForgettingSource`. A later file of a forgotten name is read as a new one."""
        files = self._files or {}
        gone = []
        for name, cursor in cursors.items():
            file = files.get(name)
            parsed = FileCursor.parse(cursor)
            if file and file.info is None and file.reached == cursor and parsed is not None and parsed.last:
                del files[name]
                gone.append(name)
        return gone

    def notes(self) -> list[str]:
        """See `NotingSource`: the files that are not read because of their endings."""
        return [self._passed_over] if self._passed_over else []

    def close(self) -> None:
        """Release the file that is being read. Closing twice is allowed."""
        self._files, self._reading = None, None
        self._arrived = {}
        self._due.clear()
        self._next_look = 0.0

    def _list(self) -> dict[str, ObjectInfo]:
        """The files of the location that are to be read, by name."""
        # At each look: a folder above may have become a link since.
        self._config.require_allowed(self._allowed)
        with _as_source_errors():
            present = list(self._objects.list())
        self._passed_over = passed_over([info.name for info in present], self._pattern)
        return {info.name: info for info in present if is_read(info.name, self._pattern)}

    def _take(self, files: dict[str, ListedFile], listed: Mapping[str, ObjectInfo]) -> None:
        """Update the state of all files from a listing, and queue those that are to be read.

        Raises:
            DataLostError: a file is gone that was not read to its end.
            SourceStoppedError: a name cannot be that of a partition.
        """
        self._next_look = 0.0  # look again at once if this raises
        started = time.monotonic()
        for name in [name for name in files if name not in listed]:
            check_gone(name, files[name])
            if files[name].reached:
                files[name].info = None
            else:
                del files[name]
        for name, info in listed.items():
            check_name(name)
            file = files.setdefault(name, ListedFile(""))
            if file.info is None or file.info.version != info.version:
                file.since = started
            file.info = info
            if info.size and not file.reached and self._has_settled(file, started):
                self._begin(name, file, FileCursor.beginning(0, last=False))
        self._due = deque(name for name in listed if self._is_due(files[name], started))
        # Listing very many files takes long, and must leave time for reading.
        self._next_look = started + max(self._interval, 10 * (time.monotonic() - started))

    def _begin(self, name: str, file: ListedFile, cursor: FileCursor) -> None:
        """Note that the file must be read before it may go, or that it holds no record."""
        file.begun = self._arrived[name] = str(cursor)

    def _is_due(self, file: ListedFile, now: float) -> bool:
        assert file.info is not None, "only files that are there are asked about"
        if file.waits and self._has_settled(file, now):
            return True
        # A .gz that grows is unpacked from its beginning each time: wait until it has settled.
        patient = file.waits and is_zipped(file.info.name)
        return file.info.version != file.exhausted and not patient

    def _has_settled(self, file: ListedFile, now: float) -> bool:
        return now - file.since >= self._config.settle_seconds

    def _read(self, files: Mapping[str, ListedFile], max_records: int) -> list[RawBatch]:
        found: list[RawBatch] = []
        room, held = max_records, 0
        while self._due and room and held < MAX_POLL_BYTES:
            name = self._due[0]
            try:
                batch = self._read_file(name, files[name], room)
            except (ObjectMissingError, ObjectChangedError):
                batch = None  # the next listing shows whether it is gone or another one
            except (ObjectError, SourceError) as error:
                self._reading = None
                if found:
                    return found  # the next poll raises this error
                if isinstance(error, SourceError):
                    raise
                raise SourceError(str(error)) from error
            if batch is None:
                self._reading = None
                self._due.popleft()
                continue
            found.append(batch)
            room -= len(batch.positions)
            held += sum(map(len, batch.payloads))
        return found

    def _read_file(self, name: str, file: ListedFile, most: int) -> RawBatch | None:
        """The next records of a file; None when it holds no more for now."""
        info = file.info
        if info is None:
            return None
        settled = self._has_settled(file, time.monotonic())
        try:
            reader = self._reader(info, file.cursor)
            found = reader.read(most, settled=settled)
        except UnfinishedError as error:
            if settled:
                raise SourceError(str(error)) from error
            file.exhausted, file.waits = info.version, True
            return None
        if found is None:
            file.exhausted, file.waits = info.version, reader.waits
            if not reader.waits and file.unread:
                self._begin(name, file, FileCursor.beginning(info.size, last=True))
            return None
        if not file.reached:
            self._begin(name, file, FileCursor.beginning(0, last=False))
        start, file.cursor = file.cursor, found.positions[-1]
        return self._batch(info, found, start)

    def _batch(self, info: ObjectInfo, found: FileRecords, start: str) -> RawBatch:
        table, starts = self._config.table, found.starts
        stem = _id_stem(info.name)
        ids = LazyTexts(lambda at: f"{stem}#{starts[at]}", range(len(starts))) if table.id is None else ()
        return RawBatch(
            partition=info.name,
            start=start,
            payloads=found.payloads,
            positions=found.positions,
            wire=found.wire,
            header=found.header,
            table=table,
            stable_positions=LazyTexts(lambda at: str(starts[at]), range(len(starts))),
            ids=ids,
            arrived_at=info.modified,
        )

    def _reader(self, info: ObjectInfo, cursor: str) -> Reader:
        """A reader of this version of a file, at the cursor; the current one where it fits.

        Raises:
            DataLostError: the file is not the one that the cursor was given for.
        """
        if self._reading is not None:
            reading, reader = self._reading
            if (reading.name, reading.version) == (info.name, info.version):
                return reader
        parsed = FileCursor.parse(cursor)
        if parsed is not None and parsed.end == 0:
            parsed = None  # the file exists, and no record of it was read
        if parsed is not None:
            verify(self._objects, info, parsed)
        reader = self._new_reader(info, parsed)
        self._reading = info, reader
        return reader

    def _new_reader(self, info: ObjectInfo, cursor: FileCursor | None) -> Reader:
        form = format_of(info.name)
        if form == "parquet" or form == "arrow":
            return TableReader(
                self._objects,
                info,
                cursor,
                form=form,
                check_schema=lambda found: self._check_schema(info.name, found),
            )
        if form == "csv":
            return LineReader(
                self._objects,
                info,
                cursor,
                block_bytes=self._block_bytes,
                check_header=lambda names: self._check(info.name, [(name, None) for name in names]),
            )
        return LineReader(self._objects, info, cursor, block_bytes=self._block_bytes)

    def _check_schema(self, name: str, found: Any) -> None:
        """Check a table's schema against the pipeline's; one that Holdfast wrote has a fingerprint of it."""
        if FINGERPRINT_KEY not in (found.metadata or {}):
            try:
                columns = [(field.name, field.type) for field in found]
            except UnicodeDecodeError as error:
                raise SchemaChangedError(
                    f"A column of the file {name!r} has a name that is not UTF-8."
                ) from error
            self._check(name, columns)
            return
        try:
            check_fingerprint(found.metadata, self._schema)
        except RecordInvalidError as error:
            raise SchemaChangedError(f"The file {name!r}: {error}") from error

    def _check(self, name: str, columns: Sequence[tuple[str, Any]]) -> None:
        problem = columns_problem(columns, self._schema, self._config.table)
        if problem is not None:
            raise SchemaChangedError(
                f"The file {name!r} has not the declared columns: {problem}. Remove it or write it again "
                "under a new name, or make a new pipeline for the new columns."
            )


def build(config: FilesConfig, context: SourceContext) -> FilesSource:
    """The source that the catalog names."""
    return FilesSource(config, context.schema, allowed=context.allowed)


def _id_stem(name: str) -> str:
    """The beginning of the ids of a file's records; shortened, because a name may be longer than an id."""
    if len(name) <= _LONGEST_ID_NAME:
        return name
    return f"{name[:80]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"


@contextmanager
def _as_source_errors() -> Iterator[None]:
    try:
        yield
    except ObjectError as error:
        raise SourceError(str(error)) from error
