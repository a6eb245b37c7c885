"""Several sources read as one: records, labels that come from elsewhere, dead letters that are replayed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from streams.base import ForgettingSource, RawBatch, Source, TrimmedSource

LABELS = "labels:"
REPLAYS = "replays:"
"""Prefixes of the partitions that are not the main source's own."""


class MergedSource:
    """The partitions of several sources, told apart by a prefix; if none has any, the first is waited for."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        """Sources by the prefix of their partitions; no prefix is the beginning of another, but for ""."""
        self._sources = dict(sources)
        self._turn = 0

    def partitions(self) -> Sequence[str]:
        """Of all sources."""
        return [prefix + name for prefix, source in self._sources.items() for name in source.partitions()]

    def open(self, cursors: Mapping[str, str]) -> None:
        """See `Source`."""
        for prefix, source in self._sources.items():
            source.open(self._own(prefix, cursors))

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        """What any of them has; each in turn is asked first, so that none starves another."""
        order = list(self._sources)
        order = order[self._turn :] + order[: self._turn]
        self._turn = (self._turn + 1) % len(order)
        found: list[RawBatch] = []
        for prefix in order:
            room = max_records - sum(len(batch.positions) for batch in found)
            if room <= 0:
                return found
            found += _named(prefix, self._sources[prefix].poll(room, 0.0))
        if not found and timeout_seconds > 0:
            first = next(iter(self._sources))
            found += _named(first, self._sources[first].poll(max_records, timeout_seconds))
        return found

    def trim(self, cursors: Mapping[str, str]) -> None:
        """Let those of them trim that do."""
        for prefix, source in self._sources.items():
            if isinstance(source, TrimmedSource):
                source.trim(self._own(prefix, cursors))

    def forget(self, cursors: Mapping[str, str]) -> list[str]:
        """Ask those of them whose partitions come and go."""
        return [
            prefix + name
            for prefix, source in self._sources.items()
            if isinstance(source, ForgettingSource)
            for name in source.forget(self._own(prefix, cursors))
        ]

    def close(self) -> None:
        """Close all of them."""
        for source in self._sources.values():
            source.close()

    def _own(self, prefix: str, cursors: Mapping[str, str]) -> dict[str, str]:
        others = [other for other in self._sources if other and other != prefix]
        return {
            name.removeprefix(prefix): cursor
            for name, cursor in cursors.items()
            if name.startswith(prefix) and not (prefix == "" and name.startswith(tuple(others)))
        }


def _named(prefix: str, batches: Sequence[RawBatch]) -> list[RawBatch]:
    return [replace(batch, partition=prefix + batch.partition) if prefix else batch for batch in batches]
