"""Redis Streams as a source: every stream is a partition, every entry one record.

Nothing is acknowledged and no consumer group is made: the cursors committed with an experience are the only
truth. Every read gets the stream's own counts in the same transaction, and compares them with what was read:
see `streams.sources.redis.cursor`.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from streams.allowed import Allowed
from streams.base import (
    DataLostError,
    LazyTexts,
    RawBatch,
    SourceContext,
    SourceError,
    SourceStoppedError,
)
from streams.sources.redis.config import RedisConfig, url_problem, url_refusal
from streams.sources.redis.cursor import ZERO, RedisCursor, StreamState, id_of, id_text

if TYPE_CHECKING:
    from redis import Redis

Entries = list[tuple[bytes, dict[bytes, bytes]]]

MAX_POLL_BYTES = 64 * 1024 * 1024
"""About how much one poll may hold: of large entries fewer are read at a time."""

_SECONDS_ON_THE_SOCKET = 10.0
_SECONDS_TO_CONNECT = 5.0
_BLOCK_SECONDS = 5.0
"""Shorter than the socket's timeout."""

_REDIS_CODES = frozenset(
    {"BUSY", "LOADING", "MISCONF", "NOAUTH", "NOPERM", "OOM", "READONLY", "WRONGPASS", "WRONGTYPE"}
)
"""First words of Redis's errors. Nothing else of what a server says is shown: any server may be there."""
_CLOCK_BEGINS_MS = 10**12
"""Ids below this one (the year 2001) were chosen by the producer and are no timestamps."""


class RedisSource:
    """Some streams of one Redis server."""

    def __init__(self, config: RedisConfig, *, allowed: Allowed | None = None) -> None:
        self._config = config
        self._allowed = allowed or Allowed()
        self._client: Redis | None = None
        self._cursors: dict[str, RedisCursor] = {}
        self._given: dict[str, str] = {}
        """The cursor that each stream was opened with or read up to."""
        self._begun: dict[str, str] = {}
        """Where each stream begins that held an entry before any of it was read."""
        self._turn = 0
        self._mean_bytes = 1.0

    def partitions(self) -> Sequence[str]:
        """The keys of the streams, whether they are there yet or not."""
        return list(self._config.streams)

    def open(self, cursors: Mapping[str, str]) -> None:
        """Resume just after the cursors.

        Raises:
            DataLostError: entries after a cursor were trimmed, deleted, or lost by the server.
            SourceError: Redis cannot be reached, or a cursor is not one of a Redis stream.
            SourceStoppedError: the installation does not allow the server.
        """
        self.close()
        self._config.require_allowed(self._allowed)
        self._cursors = {name: RedisCursor.parse(cursors.get(name, "")) for name in self._config.streams}
        self._begun = {}
        self._given = {name: cursors.get(name, "") for name in self._config.streams}
        self._connect()
        self._read(list(self._cursors), 0)

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        """The next entries of every stream, each stream having an equal share of `max_records`.

        An entry without the payload field is handed over as an empty payload, which becomes a dead letter.

        Raises:
            DataLostError: entries after those that were read are gone.
            SourceError: Redis cannot be reached; the next poll connects again.
        """
        if self._client is None:
            raise SourceError("The source was polled before it was opened.")
        deadline = time.monotonic() + timeout_seconds
        while True:
            batches = self._next(max_records)
            left = deadline - time.monotonic()
            if batches or left <= 0:
                return batches
            self._wait(min(left, _BLOCK_SECONDS))

    def arrived(self, cursors: Mapping[str, str]) -> Mapping[str, str]:
        """See `AnnouncingSource`."""
        return {name: begun for name, begun in self._begun.items() if not cursors.get(name)}

    def trim(self, cursors: Mapping[str, str]) -> None:
        """With `trim: true`, delete entries before the committed ones; otherwise nothing.

        The last committed entry itself stays: as long as it is there, nothing after it was trimmed. Redis
        being away is not an error, since the next commit trims again.

        Raises:
            SourceError: Redis refuses.
        """
        if not self._config.trim or self._client is None:
            return
        from redis.exceptions import ConnectionError, RedisError, TimeoutError

        committed = {name: RedisCursor.parse(cursors.get(name, "")) for name in self._config.streams}
        commands = self._client.pipeline(transaction=False)
        for name, cursor in committed.items():
            if cursor.entry != ZERO:
                # Approximate trimming is cheap; without LIMIT 0 it would never catch up with a large backlog.
                commands.xtrim(name, minid=id_text(cursor.entry), approximate=True, limit=0)
        try:
            commands.execute()
        except (ConnectionError, TimeoutError):
            return
        except RedisError as error:
            raise self._refused(error, "cannot be trimmed") from None

    def close(self) -> None:
        """Close the connection. Closing twice is allowed."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connect(self) -> None:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        url = self._url()
        try:
            self._client = Redis.from_url(
                url,
                decode_responses=False,
                protocol=2,
                socket_timeout=_SECONDS_ON_THE_SOCKET,
                socket_connect_timeout=_SECONDS_TO_CONNECT,
                # One retry, for a connection that the server closed while it was idle; then the caller waits.
                retry=Retry(NoBackoff(), 1),
            )
        except (ValueError, TypeError):
            # The error of the parser quotes the URL.
            raise SourceError(f"{self._named()} is not a URL of a Redis server.") from None

    def _url(self) -> str:
        if self._config.url is not None:
            return self._config.url
        name = self._config.url_env or ""
        url = os.environ.get(name, "")
        # One sentence whatever is wrong: answers must not tell what the environment holds.
        if url_problem(url):
            raise SourceError(
                f"The environment variable {name} must hold the URL of a Redis server where ingest runs, one "
                "that begins with redis://, rediss:// or unix://."
            )
        refused = url_refusal(self._config, url, self._allowed, secret=name)
        if refused:
            raise SourceStoppedError(f"The installation does not allow this source. {refused}")
        return url

    def _named(self) -> str:
        return "The url of the source" if self._config.url else f"What {self._config.url_env} holds"

    def _next(self, max_records: int) -> list[RawBatch]:
        names = list(self._cursors)
        first = self._turn % len(names)
        self._turn += 1
        names = names[first:] + names[:first]
        # Fewer records than streams: as many streams at a time as can have one record each.
        for start in range(0, len(names), max_records):
            asked = names[start : start + max_records]
            fitting = max(1, int(MAX_POLL_BYTES / self._mean_bytes / len(asked)))
            found = self._read(asked, min(max_records // len(asked), fitting))
            if found:
                return found
        return []

    def _read(self, names: Sequence[str], count: int) -> list[RawBatch]:
        """At most `count` entries of each stream, checked against the stream's state at the same moment."""
        assert self._client is not None, "connected by open"
        commands = self._client.pipeline(transaction=True)
        for name in names:
            # From the last entry that was read, which is the first of the answer if it still exists.
            begin = id_text(self._cursors[name].entry) if self._cursors[name].entry != ZERO else "-"
            commands.xinfo_stream(name)
            commands.xrange(name, begin, "+", count + 1)
        with self._reaching():
            replies = commands.execute(raise_on_error=False)
        batches = []
        for index, name in enumerate(names):
            batch = self._checked(name, replies[2 * index], replies[2 * index + 1], count)
            if batch is not None:
                batches.append(batch)
        for batch in batches:  # only now: an error in one stream must not lose what another one gave
            self._given[batch.partition] = batch.positions[-1]
            self._cursors[batch.partition] = RedisCursor.parse(batch.positions[-1])
        return batches

    def _checked(self, name: str, answer: Any, entries: Any, count: int) -> RawBatch | None:
        state = self._state(name, answer)
        cursor = self._cursors[name]
        if not cursor.begun and self._config.start == "oldest" and state is not None:
            cursor = RedisCursor(ZERO, state.added - state.length, state.deleted)
        if state is None:
            entries = []
        elif isinstance(entries, Exception):
            raise self._refused(entries, f"cannot be read: stream {name!r}")
        present = bool(entries) and entries[0][0] == id_text(cursor.entry).encode()
        problem = cursor.problem(state, present=present)
        if problem:
            raise DataLostError(
                f"Stream {name!r} of Redis was read up to {id_text(cursor.entry)} and no longer holds all "
                f"that came after: {problem}. Nothing was skipped. Restore the stream, or make a new "
                "pipeline for what is left, with start: oldest."
            )
        if not cursor.begun and state is not None and state.length:
            cursor = self._cursors[name] = cursor._replace(begun=True)
            self._begun[name] = str(cursor)
        return self._batch(name, cursor, entries[present : count + present])

    def _state(self, name: str, answer: Any) -> "StreamState | None":
        if isinstance(answer, Exception):
            if "no such key" in str(answer):
                return None
            raise self._refused(answer, f"cannot be read: stream {name!r}")
        try:
            return StreamState.parse(answer)
        except KeyError:
            raise SourceError(
                f"Redis does not count what stream {name!r} was given: version 7 or newer is needed."
            ) from None

    def _batch(self, name: str, cursor: RedisCursor, entries: Entries) -> RawBatch | None:
        if not entries:
            return None
        field = self._config.field.encode()
        payloads = [fields.get(field, b"") for _, fields in entries]
        ids = [entry for entry, _ in entries]
        self._mean_bytes = max(1.0, sum(map(len, payloads)) / len(payloads))
        first_ms = id_of(ids[0])[0]
        return RawBatch(
            partition=name,
            start=self._given[name],
            payloads=payloads,
            positions=LazyTexts(lambda at: str(cursor.after(id_of(ids[at]), at + 1)), range(len(ids))),
            wire=self._config.wire,
            arrived_at=first_ms / 1000 if first_ms >= _CLOCK_BEGINS_MS else math.nan,
        )

    def _wait(self, seconds: float) -> None:
        """Wait until any stream has a new entry; `_read` then reads it."""
        assert self._client is not None, "connected by open"
        after = {name: id_text(cursor.entry) for name, cursor in self._cursors.items()}
        with self._reaching():
            self._client.xread(after, count=1, block=max(1, int(seconds * 1000)))  # type: ignore[arg-type]

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        from redis.exceptions import RedisError

        try:
            yield
        except RedisError as error:
            raise self._refused(error, "cannot be read") from None

    def _refused(self, error: Exception, what: str) -> SourceError:
        """An error without its cause and without the server's words, which may quote a secret."""
        known = [word for word in str(error).split() if word in _REDIS_CODES]
        code = f": {known[0]}" if known else ""
        return SourceError(f"Redis {what} ({type(error).__name__}{code}).")


def build(config: RedisConfig, context: SourceContext) -> RedisSource:
    """The source that the catalog names."""
    return RedisSource(config, allowed=context.allowed)
