"""Low watermark: the event time up to which every partition was read."""

import math

IDLE_AFTER = 100
"""Polls in a row that give nothing of a partition."""


class Watermark:
    """The low watermark of some partitions, of which one may be read far ahead of another.

    It is the event time of the partition that is furthest behind. A partition that gave nothing for
    `IDLE_AFTER` polls no longer holds it back, and after a poll that finds nothing no partition does.
    """

    def __init__(self) -> None:
        self._latest = -math.inf
        self._partitions: dict[str, tuple[float, int]] = {}
        """Latest event time and last poll of every partition that is being read."""
        self._polls = 0
        self._unknown = True
        """Whether partitions that this process has not met yet may be far behind those that it has."""

    @property
    def reading(self) -> float:
        """Epoch seconds; minus infinity as long as nothing is known."""
        if self._unknown:
            return -math.inf
        return min((time for time, _ in self._partitions.values()), default=self._latest)

    def see(self, partition: str, time: float) -> None:
        """Note the latest event time read of a partition; minus infinity where its records had none."""
        before, _ = self._partitions.get(partition, (-math.inf, 0))
        time = max(time, before)
        self._latest = max(self._latest, time)
        if time > -math.inf:
            self._partitions[partition] = (time, self._polls)

    def recall(self, time: float) -> None:
        """Note the latest event time that an earlier process read."""
        self._latest = max(self._latest, time)

    def polled(self, *, found: bool) -> None:
        """Note that the source was polled, after `see` was called with what it gave."""
        self._polls += 1
        if not found:
            self._partitions.clear()
        elif self._polls % IDLE_AFTER == 0:
            read_since = self._polls - IDLE_AFTER
            self._partitions = {
                name: latest for name, latest in self._partitions.items() if latest[1] >= read_since
            }
        if not found or self._polls >= IDLE_AFTER:
            self._unknown = False
