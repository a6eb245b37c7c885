"""Block length of answers whose errors come in bursts: how many answers weigh as much as one independent one.

It is the integrated autocorrelation time of the error indicator, measured on the champion's own answers.
"""

import base64
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]

BLOCK_LENGTHS = tuple(float(2.0 ** (quarter / 4)) for quarter in range(25))
"""A measured block length is rounded up to one of these, 1 to 64; a longer one counts as the longest."""
CHANCE = 3.0
"""So many standard errors, of independent answers, may be chance: the block length is 1."""
EVERY = 500
"""Answers from one measurement to the next."""
SETTLED = 500
"""The latest answers are left out, so that a rise that has just begun does not delay its own alarm."""
FEWEST = 2000
"""Answers that a measurement takes at least."""
MOST = 16_384
"""Latest answers that a measurement takes at most."""


def block_length(wrong: Bits) -> float:
    """One of `BLOCK_LENGTHS`, for the answers (n,) in the order of their arrival.

    The autocorrelation time plus one standard error, which is about time * sqrt(2 (2 lags + 1) / n) for a sum
    over so many lags (Madras and Sokal, Journal of Statistical Physics 50:109 (1988)). 1 where independent
    answers may give such a time: the standard error of each of their autocorrelations is 1 / sqrt(n).
    """
    time, lags = autocorrelation_time(wrong)
    if time - 1.0 <= CHANCE * 2.0 * np.sqrt(lags / max(1, len(wrong))):
        return 1.0
    upper = time * (1.0 + np.sqrt(2.0 * (2.0 * lags + 1.0) / len(wrong)))
    return next((each for each in BLOCK_LENGTHS[1:] if each >= upper), BLOCK_LENGTHS[-1])


def autocorrelation_time(wrong: Bits) -> tuple[float, int]:
    """1 + 2 * (sum of the autocorrelations), at least 1, and the number of lags in the sum.

    By the initial positive sequence (Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7:473
    (1992)): correlations are summed in pairs of neighbouring lags, up to the first pair that is not positive.
    1 where all answers are the same.
    """
    count = len(wrong)
    centred = wrong - wrong.mean() if count else np.zeros(0)
    variance = float(centred @ centred)
    if variance == 0.0:
        return 1.0, 0
    # Padded, so that the end does not meet the beginning.
    spectrum = np.fft.rfft(centred, 2 * count)
    correlations = np.fft.irfft(spectrum * spectrum.conj(), 2 * count)[: count - count % 2] / variance
    pairs = correlations.reshape(-1, 2).sum(axis=1)
    ended = np.flatnonzero(pairs <= 0.0)
    used = int(ended[0]) if len(ended) else len(pairs)
    return max(1.0, float(2.0 * pairs[:used].sum() - 1.0)), max(0, 2 * used - 1)


class Bursts:
    """The latest answers of one champion, and the block length measured on them every `EVERY` answers.

    Another champion's answers are measured alone; until there are enough, the block length stays as it was.
    What is measured depends on the answers alone, not on how they are chunked.
    """

    def __init__(
        self,
        *,
        length: float | None = None,
        version: int | None = None,
        seen: int = 0,
        latest: Bits | None = None,
    ) -> None:
        self.length = length
        """The block length; None: no champion has given enough answers yet."""
        self.version = version
        self._seen = seen
        self._latest = np.zeros(0, dtype=np.bool_) if latest is None else latest

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """As it was saved; an empty state, as earlier releases leave it, gives one that has seen nothing."""
        if not state:
            return cls()
        packed = np.frombuffer(base64.b64decode(state["latest"]), dtype=np.uint8)
        latest = np.unpackbits(packed, count=state["kept"]).astype(np.bool_)
        return cls(length=state["length"], version=state["version"], seen=state["seen"], latest=latest)

    def copy(self) -> "Bursts":
        """An independent one that has seen the same."""
        return Bursts(length=self.length, version=self.version, seen=self._seen, latest=self._latest)

    @property
    def until_measured(self) -> int:
        """Answers up to the next measurement, at least 1."""
        return EVERY - self._seen % EVERY

    def follow(self, version: int) -> None:
        """The answers that come are those of this version."""
        if version != self.version:
            self.version, self._seen, self._latest = version, 0, self._latest[:0]

    def see(self, wrong: Bits) -> bool:
        """Take in answers (n,), at most `until_measured`; whether the block length is another one now."""
        self._seen += len(wrong)
        self._latest = np.concatenate([self._latest, wrong])[-(MOST + SETTLED) :]
        if not len(wrong) or self._seen % EVERY or len(self._latest) < FEWEST + SETTLED:
            return False
        before, self.length = self.length, block_length(self._latest[:-SETTLED])
        return self.length != before

    def state(self) -> Mapping[str, Any]:
        """JSON-able; `from_state` goes on from it."""
        packed = base64.b64encode(np.packbits(self._latest).tobytes()).decode("ascii")
        return {
            "length": self.length,
            "version": self.version,
            "seen": self._seen,
            "kept": len(self._latest),
            "latest": packed,
        }
