"""Circuit breaker: stops a stream when too large a share of its records become dead letters."""

from collections import deque

from pydantic import BaseModel, ConfigDict, Field

from streams.base import SourceStoppedError


class TooManyBadRecordsError(SourceStoppedError):
    """The share of bad records passed the limit. The refused ones are stored, and can be replayed."""


class CircuitBreaker(BaseModel):
    """When bad records stop a stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bad_share: float = Field(
        0.2, gt=0, le=1, description="Share of the last records that may be dead letters; 1 never stops."
    )
    window: int = Field(
        1000, ge=1, le=10_000_000, description="How many of the last records that share is taken over."
    )


class BadShare:
    """Counts records read and refused, from zero in every process and after every resumption."""

    def __init__(self, config: CircuitBreaker, pipeline: str) -> None:
        self._config = config
        self._pipeline = pipeline
        self._counts: deque[tuple[int, int]] = deque()
        self._came = self._refused = 0

    def note(self, came: int, refused: int) -> None:
        """Count `came` records, of which `refused` became dead letters that were not stored before.

        Raises:
            TooManyBadRecordsError: over the last `window` records, the share is above the limit.
        """
        if not came:
            return
        self._counts.append((came, refused))
        self._came += came
        self._refused += refused
        while self._came - self._counts[0][0] >= self._config.window:
            oldest_came, oldest_refused = self._counts.popleft()
            self._came -= oldest_came
            self._refused -= oldest_refused
        if self._came >= self._config.window and self._refused > self._config.max_bad_share * self._came:
            raise TooManyBadRecordsError(
                f"{self._refused:,} of the last {self._came:,} records of {self._pipeline!r} do not fit; the "
                f"limit is {self._config.max_bad_share:.0%}. They are kept as dead letters: look at them, "
                "fix the producer, and resume the stream."
            )
