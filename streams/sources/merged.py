"""Merges several sources into one: records, labels from another source, replayed dead letters."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from streams.base import (
    AnnouncingSource,
    ForgettingSource,
    NotingSource,
    RawBatch,
    Source,
    SourceError,
    SourceStoppedError,
    TrimmedSource,
)

LABELS = "labels:"
REPLAYS = "replays:"
"""Prefixes of the partitions that are not the main source's own."""


class MergedSource:
    """The partitions of several sources, each under a prefix. If all are empty, a poll waits on the first."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        """Sources by the prefix of their partitions; no prefix is the beginning of another, but for "".

        Raises:
            ValueError: a prefix is the beginning of another.
        """
        prefixes = sorted(prefix for prefix in sources if prefix)
        for before, after in pairwise(prefixes):
            if after.startswith(before):
                raise ValueError(f"the prefix {after!r} begins with another, {before!r}")
        self._sources = dict(sources)
        self._turn = 0

    def partitions(self) -> Sequence[str]:
        """Names of the partitions of all sources.

        Raises:
            SourceStoppedError: a partition of one source looks like one of another.
        """
        return [
            self._named(prefix, name)
            for prefix, source in self._sources.items()
            for name in source.partitions()
        ]

    def open(self, cursors: Mapping[str, str]) -> None:
        """See `Source`.

        Raises:
            SourceStoppedError: a partition of one source looks like one of another; nothing was read.
        """
        self.partitions()
        for prefix, source in self._sources.items():
            source.open(self._own(prefix, cursors))

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        """The next records of all sources. Each in turn is polled first, so that none starves another.

        Raises:
            SourceStoppedError: a partition of one source looks like one of another.
            SourceError: a source cannot be read, and those polled before it gave nothing.
        """
        order = list(self._sources)
        order = order[self._turn :] + order[: self._turn]
        self._turn = (self._turn + 1) % len(order)
        found: list[RawBatch] = []
        for prefix in order:
            room = max_records - sum(len(batch.positions) for batch in found)
            if room <= 0:
                return found
            try:
                batches = self._sources[prefix].poll(room, 0.0)
            except SourceError:
                if not found:
                    raise
                # What the others gave would be lost; this source will be the first soon, and raise again.
                return found
            found += self._all_named(prefix, batches)
        if not found and timeout_seconds > 0:
            first = next(iter(self._sources))
            found += self._all_named(first, self._sources[first].poll(max_records, timeout_seconds))
        return found

    def _all_named(self, prefix: str, batches: Sequence[RawBatch]) -> list[RawBatch]:
        return [replace(batch, partition=self._named(prefix, batch.partition)) for batch in batches]

    def _named(self, prefix: str, name: str) -> str:
        """The partition under its prefix; without a prefix it must not look like one of another source."""
        if not prefix and name.startswith(self._others(prefix)):
            raise SourceStoppedError(
                f"The partition {name!r} looks like one of another source of this pipeline: rename it, for "
                f"names that begin with {' or '.join(map(repr, self._others(prefix)))} are taken."
            )
        return prefix + name

    def _others(self, prefix: str) -> tuple[str, ...]:
        return tuple(other for other in self._sources if other and other != prefix)

    def trim(self, cursors: Mapping[str, str]) -> None:
        """See `TrimmedSource`; for those of the sources that trim."""
        for prefix, source in self._sources.items():
            if isinstance(source, TrimmedSource):
                source.trim(self._own(prefix, cursors))

    def arrived(self, cursors: Mapping[str, str]) -> dict[str, str]:
        """See `AnnouncingSource`; for those of the sources that announce."""
        return {
            self._named(prefix, name): cursor
            for prefix, source in self._sources.items()
            if isinstance(source, AnnouncingSource)
            for name, cursor in source.arrived(self._own(prefix, cursors)).items()
        }

    def forget(self, cursors: Mapping[str, str]) -> list[str]:
        """See `ForgettingSource`; for those of the sources whose partitions come and go."""
        return [
            prefix + name
            for prefix, source in self._sources.items()
            if isinstance(source, ForgettingSource)
            for name in source.forget(self._own(prefix, cursors))
        ]

    def notes(self) -> list[str]:
        """See `NotingSource`; of those of the sources that note anything."""
        return [
            note
            for source in self._sources.values()
            if isinstance(source, NotingSource)
            for note in source.notes()
        ]

    def close(self) -> None:
        """Close all sources."""
        for source in self._sources.values():
            source.close()

    def _own(self, prefix: str, cursors: Mapping[str, str]) -> dict[str, str]:
        others = self._others(prefix)
        return {
            name.removeprefix(prefix): cursor
            for name, cursor in cursors.items()
            if name.startswith(prefix) and not (prefix == "" and name.startswith(others))
        }
