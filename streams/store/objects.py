"""Object stores: named bytes in a local folder or under an S3 prefix, behind one interface.

ObjectError
├── ObjectMissingError  there is no such object
├── ObjectExistsError   an object of that name is there already, and nothing was written
└── ObjectChangedError  the object is not the version that was asked for any more

Messages name the location and the store's error code, never credentials or whole answers.
"""

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

import obstore
from obstore import exceptions
from obstore.store import S3Store

from streams.base import StreamError

S3_SCHEME = "s3://"

Data = bytes | memoryview

_UNFINISHED = ".unfinished"
_ANSWER = re.compile(r"status code: (\d{3})|<Code>(\w{1,60})</Code>")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REQUEST_SECONDS = 300.0
"""Longest time of one request: 256 MB over a slow connection."""


class ObjectError(StreamError):
    """The store cannot be reached, or refuses; trying again later may help."""


class ObjectMissingError(ObjectError):
    """There is no object of that name."""


class ObjectExistsError(ObjectError):
    """There is an object of that name already; nothing was written."""


class ObjectChangedError(ObjectError):
    """The object is not the version that was asked for any more."""


class ObjectInfo(NamedTuple):
    """The metadata of one object."""

    name: str
    """Relative to the store's location, with "/" between folders."""
    size: int
    """Bytes."""
    version: str
    """Changes whenever the content does."""
    modified: float
    """Epoch seconds."""


class ObjectStore(Protocol):
    """Named bytes under one location. All methods may be called from several threads at a time."""

    @property
    def location(self) -> str:
        """The folder, or "s3://bucket/prefix"."""
        ...

    def list(self) -> Sequence[ObjectInfo]:
        """All objects, those in folders below too, sorted by name.

        Raises:
            ObjectError: the location is missing, or cannot be read.
        """
        ...

    def info(self, name: str) -> ObjectInfo:
        """One object.

        Raises:
            ObjectMissingError: there is none of that name.
        """
        ...

    def read(self, name: str, start: int, stop: int, *, version: str | None = None) -> bytes:
        """The bytes from `start` up to `stop`; fewer where the object ends before.

        Raises:
            ObjectMissingError: there is no object of that name.
            ObjectChangedError: a version was asked for, and the object is another one now.
        """
        ...

    def create(self, name: str, data: Data) -> None:
        """Write a new object; it is whole and durable when this returns, and never seen half-written.

        Raises:
            ObjectExistsError: there is an object of that name already; nothing was written.
        """
        ...

    def replace(self, name: str, data: Data) -> None:
        """Write an object whether it is there or not; readers see the old one or the new one, whole."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; a missing one is no error."""
        ...


def open_objects(location: str) -> ObjectStore:
    """The objects of a folder, or of "s3://bucket/prefix".

    S3 is configured by the AWS_* variables of the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_REGION, and for other providers AWS_ENDPOINT_URL, with AWS_ALLOW_HTTP=true where it is plain HTTP.

    Raises:
        ObjectError: the location is not well-formed.
    """
    if not location.startswith(S3_SCHEME):
        return LocalObjects(Path(location))
    bucket, _, prefix = location.removeprefix(S3_SCHEME).partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket) or (prefix and not _plain(prefix)):
        raise ObjectError(
            f"{location!r} is not a location: write s3://bucket or s3://bucket/prefix, with a bucket of 3 to "
            "63 characters and a prefix without empty steps, '.' and '..'."
        )
    return S3Objects(bucket, prefix)


class LocalObjects:
    """Objects as files under one folder. A link is an object where it leads to a file under that folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def location(self) -> str:
        """See `ObjectStore`."""
        return str(self._root)

    def list(self) -> Sequence[ObjectInfo]:
        """See `ObjectStore`."""
        with _local_errors(self.location):
            if not self._root.is_dir():
                raise ObjectError(f"The folder {self._root} is not there: make it, or mount it.")
            return sorted(self._walk(str(self._root), ""))

    def info(self, name: str) -> ObjectInfo:
        """See `ObjectStore`."""
        with _local_errors(f"{name} in {self.location}"):
            return _info(name, self._path(name).stat())

    def read(self, name: str, start: int, stop: int, *, version: str | None = None) -> bytes:
        """See `ObjectStore`."""
        with _local_errors(f"{name} in {self.location}"):
            # Non-blocking: a named pipe in the folder must not block the reader.
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK)
            try:
                if version not in (None, _info(name, os.fstat(descriptor)).version):
                    raise _changed(name, self.location)
                return _pread(descriptor, start, stop)
            finally:
                os.close(descriptor)

    def create(self, name: str, data: Data) -> None:
        """See `ObjectStore`."""
        with self._written(name, data) as (temporary, path):
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise _exists(name, self.location) from None
            temporary.unlink()

    def replace(self, name: str, data: Data) -> None:
        """See `ObjectStore`."""
        with self._written(name, data) as (temporary, path):
            temporary.rename(path)

    def delete(self, name: str) -> None:
        """See `ObjectStore`."""
        with _local_errors(f"{name} in {self.location}"):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._root / _checked(name)

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._walk(entry.path, f"{name}/")
                    elif entry.is_file() and not name.endswith(_UNFINISHED) and self._inside(entry):
                        yield _info(name, entry.stat())
                except FileNotFoundError:
                    continue  # it was removed while the folder was read

    def _inside(self, entry: "os.DirEntry[str]") -> bool:
        return not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(self._root.resolve())

    @contextmanager
    def _written(self, name: str, data: Data) -> Iterator[tuple[Path, Path]]:
        """A durable temporary file, and the path to move it to; when the block ends, the move is durable."""
        path = self._path(name)
        temporary = path.parent / f".{secrets.token_hex(8)}{_UNFINISHED}"
        with _local_errors(f"{name} in {self.location}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary, path
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(path.parent)


class S3Objects:
    """Objects under one prefix of an S3 bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._location = f"{S3_SCHEME}{bucket}/{prefix}".rstrip("/")
        with _s3_errors("", self._location):
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                # Options given here replace those that obstore reads from the environment, so read these too.
                client_options={
                    "timeout": timedelta(seconds=_REQUEST_SECONDS),
                    "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on"),
                },
                # Fail soon, so that the caller can report it; it tries again by itself.
                retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=30)},
            )

    @property
    def location(self) -> str:
        """See `ObjectStore`."""
        return self._location

    def list(self) -> Sequence[ObjectInfo]:
        """See `ObjectStore`."""
        with _s3_errors("", self._location):
            return sorted(_s3_info(found) for found in obstore.list(self._store, chunk_size=1000).collect())

    def info(self, name: str) -> ObjectInfo:
        """See `ObjectStore`."""
        with _s3_errors(name, self._location):
            return _s3_info(obstore.head(self._store, _checked(name)))

    def read(self, name: str, start: int, stop: int, *, version: str | None = None) -> bytes:
        """See `ObjectStore`."""
        if stop <= start:
            return b""
        try:
            with _s3_errors(name, self._location):
                options: obstore.GetOptions = {"range": (start, stop)}
                if version is not None:
                    options["if_match"] = version
                return bytes(obstore.get(self._store, _checked(name), options=options).bytes())
        except _BehindTheEndError:
            return b""

    def create(self, name: str, data: Data) -> None:
        """See `ObjectStore`."""
        with _s3_errors(name, self._location):
            # A multipart upload does not support the condition.
            obstore.put(self._store, _checked(name), data, mode="create", use_multipart=False)

    def replace(self, name: str, data: Data) -> None:
        """See `ObjectStore`."""
        with _s3_errors(name, self._location):
            obstore.put(self._store, _checked(name), data, mode="overwrite", use_multipart=False)

    def delete(self, name: str) -> None:
        """See `ObjectStore`."""
        with _s3_errors(name, self._location):
            obstore.delete(self._store, _checked(name))


def sync_folder(folder: Path) -> None:
    """Make what was renamed in the folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _BehindTheEndError(ObjectError):
    """The range begins where the object has ended."""


def _checked(name: str) -> str:
    if not _plain(name):
        raise ObjectError(f"{name[:200]!r} is not the name of an object below a location.")
    return name


def _plain(name: str) -> bool:
    return "\0" not in name and not any(step in ("", ".", "..") for step in name.split("/"))


def _pread(descriptor: int, start: int, stop: int) -> bytes:
    """Read a range. Nearly always one call; the kernel gives at most 2 GB at a time, and may give less."""
    found = os.pread(descriptor, max(0, stop - start), start)
    if not found or len(found) == stop - start:
        return found
    return found + _pread(descriptor, start + len(found), stop)


def _info(name: str, stat: os.stat_result) -> ObjectInfo:
    version = f"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    return ObjectInfo(name, stat.st_size, version, stat.st_mtime)


def _s3_info(found: "obstore.ObjectMeta") -> ObjectInfo:
    version = found["e_tag"] or found["version"] or found["last_modified"].isoformat()
    return ObjectInfo(found["path"], found["size"], version, found["last_modified"].timestamp())


def _exists(name: str, location: str) -> ObjectExistsError:
    return ObjectExistsError(f"{location} holds an object {name!r} already; nothing was written.")


def _changed(name: str, location: str) -> ObjectChangedError:
    return ObjectChangedError(f"{name!r} in {location} was replaced while it was read: read it again.")


@contextmanager
def _local_errors(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissingError(f"There is no {what}.") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ObjectError(f"{what} cannot be read or written: {reason}. Look at the disk.") from error


@contextmanager
def _s3_errors(name: str, location: str) -> Iterator[None]:
    """Turn errors into our own, without the server's answer, which the exception chain omits too."""
    try:
        yield
    except FileNotFoundError:
        raise ObjectMissingError(f"There is no object {name!r} in {location}.") from None
    except exceptions.AlreadyExistsError:
        raise _exists(name, location) from None
    except exceptions.PreconditionError:
        raise _changed(name, location) from None
    except (exceptions.BaseError, ValueError) as error:
        status, code = _answer(str(error))
        if status == "416":
            raise _BehindTheEndError(f"{name!r} in {location} is shorter than it was.") from None
        raise ObjectError(
            f"{location} cannot be used ({code or status or 'no answer'}): see that the bucket "
            "is there, that the endpoint answers, and that the AWS_* variables hold the right credentials."
        ) from None


def _answer(text: str) -> tuple[str, str]:
    """The HTTP status and S3's code for it, where a message holds them."""
    found = [match.groups("") for match in _ANSWER.finditer(text)]
    return "".join(status for status, _ in found)[:3], next((code for _, code in found if code), "")
