"""Parts that tests of triggers share: records made of arrays, a champion, and the loop that feeds a watch."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streams.records import Records, text_column
from streams.triggers.catalog import Cut, TriggerConfig, TriggerContext, TriggerState, Watch

ALONE = TriggerContext()
"""No reference, no champion, no costs."""


def made(
    count: int, *, times: ArrayLike | None = None, features: Any = None, labels: ArrayLike | None = None
) -> Records:
    """So many records; without times, features of zero, and the label 0, unless these are given."""
    ids = text_column([str(number) for number in range(count)])
    return Records(
        ids=ids,
        features=np.zeros((count, 2), dtype=np.float32) if features is None else features,
        labels=np.zeros(count, dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64),
        times=np.full(count, np.nan) if times is None else np.asarray(times, dtype=np.float64),
        split_keys=ids,
        groups={},
    )


def timed(*times: float) -> Records:
    """Records at these event times."""
    return made(len(times), times=times)


def answered(wrong: NDArray[np.bool_]) -> Records:
    """Records that `Parrot` answers rightly and wrongly in this order."""
    features = np.zeros((len(wrong), 2), dtype=np.float32)
    features[:, 0] = wrong
    return made(len(wrong), features=features)


@dataclass(frozen=True)
class Parrot:
    """A champion that answers with the first feature."""

    error_rate: float
    version: int = 1

    def wrong(self, features: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        wrong: NDArray[np.bool_] = features[:, 0] != labels
        return wrong


def pieces(records: Records, sizes: Iterable[int]) -> Iterator[Records]:
    """The records in chunks of these sizes, the last of which goes on to the end."""
    start = 0
    for size in sizes:
        if start + size >= len(records):
            break
        yield records.take(slice(start, start + size))
        start += size
    yield records.take(slice(start, None))


def fed(
    watch: Watch, records: Records, sizes: Iterable[int] = (), *, at: float = 0.0, now: float | None = None
) -> Cut | None:
    """The first cut when a watch sees the records in chunks of these sizes, all of which arrived at once."""
    for piece in pieces(records, sizes):
        cut = watch.see(piece, at, at if now is None else now)
        if cut is not None:
            return cut
    return None


def saved(state: TriggerState) -> Any:
    """A state as it comes back from the database."""
    return json.loads(json.dumps(state, allow_nan=False))


def cuts_of(
    config: TriggerConfig,
    records: Records,
    *,
    chunk: int = 1_000_000,
    around: TriggerContext = ALONE,
    state: TriggerState | None = None,
) -> list[Cut]:
    """All cuts, as the ingest loop makes them: a new watch after each, from its saved state."""
    found: list[Cut] = []
    state = state or {}
    while len(records):
        sizes = [chunk] * (len(records) // chunk)
        cut = fed(config.watch(state, around), records, sizes)
        if cut is None:
            break
        json.dumps(cut.decision, allow_nan=False)
        assert 0 < cut.records <= len(records)
        found.append(cut)
        state, records = saved(cut.state), records.take(slice(cut.records, None))
    return found


def sizes_of(cuts: Iterable[Cut]) -> list[int]:
    """Records of each cut."""
    return [cut.records for cut in cuts]


def in_bursts(count: int, rate: float, length: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Answers of a two-state Markov chain: wrong with this rate, in bursts of this mean length."""
    calm = length * (1 - rate) / rate
    pairs = int(count / (length + calm)) * 2 + 50
    runs = np.stack([random.geometric(1 / length, pairs), random.geometric(1 / calm, pairs)], axis=1)
    wrong = np.repeat(np.tile([True, False], pairs), runs.ravel())
    # The chain is stationary where it begins anywhere in its past.
    return np.roll(wrong, -int(random.integers(len(wrong))))[:count]
