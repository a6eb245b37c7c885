"""Finds suspect records of a batch: outliers, mislabelled and planted ones.

New data is supposed to be new, so a record is not suspect because the whole batch moved. Each kind takes two
independent signs, one of which comes from the batch itself:

outliers      far from the reference (in the standardised input, or in the champion's features) *and* from the
              nearest tenth of the batch in the input: a small cluster cannot confirm itself. The champion's
              features are not asked about the batch: where it jumps by 45 degrees, they scatter so that a
              tenth of clean digits lie far apart.
mislabelled   at most one of the 5 nearest records of the batch carries the same label, *and* the champion
              gives the label less probability than it gives 95 of 100 labels of the reference. A class that
              the champion never learnt is judged by the neighbours alone.
planted       the nearest records carry the same label, but no longer once every feature's rarest fifth at
              either end is cut off, *and* the champion finds the label as unlikely: only a rare mark
              makes them alike (a backdoor: Gu et al. 2017, arXiv:1708.06733).

Distances are to nearest neighbours (Sun et al. 2022, arXiv:2204.06507) and scored by conformal p-values,
(1 + #{reference scores >= s}) / (n + 1), against scores of reference records that the distances were not
taken to (Bates et al. 2023, arXiv:2104.08279).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.gate.base import MOST_WORST, Deviation, SuspectKind, Suspects, WorstRecord
from service.gate.screen import NEIGHBOURS, standardise

MOST_RECORDS = 2000
"""Records examined of the batch, and of the reference; more would cost time and change little."""
MIN_RECORDS = 50
"""With fewer records of the batch, or of the reference, nothing is flagged."""

_OUTLYING = 0.01
_UNLIKELY = 0.05
_RARE_PERCENT = 20.0
_FEW, _MOST = 1, 3
"""Neighbours (of 5) that share a label: at most `_FEW` make it doubtful, at least `_MOST` are a majority."""
_OWN_PART = 10
_SMALLEST_SPREAD = 0.1
"""Least spread of a column, as a share of the mean spread: one that hardly varies must not outweigh all."""
_DEVIATIONS = 3
_FAR = 100.0
_VARIES = 0.05

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Observed:
    """Records with the champion's features and probabilities of them."""

    inputs: NDArray[np.generic]
    """(n, *shape), finite."""
    labels: NDArray[np.int64]
    """(n,)"""
    embedding: NDArray[np.float32]
    """(n, width) features below the champion's head."""
    probabilities: NDArray[np.float32]
    """(n, classes), exactly 0 for a class that it never learnt."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Observed":
        """Some of the records."""
        return Observed(
            self.inputs[indices], self.labels[indices], self.embedding[indices], self.probabilities[indices]
        )


_BY_LABEL: tuple[SuspectKind, ...] = ("planted", "mislabelled")
"""The kinds that contradict their labels."""


@dataclass(frozen=True)
class _Neighbours:
    """For each record: how its nearest records are labelled, and whether the champion doubts its label."""

    whole: NDArray[np.int64]
    """(n,) of the `NEIGHBOURS` nearest records, how many carry the same label."""
    cut: NDArray[np.int64]
    """(n,) the same, once the rare ends of every feature are cut off."""
    unlikely: Flags
    """(n,) whether the champion finds the label unlikely."""
    doubt: Floats
    """(n,) how unlikely."""

    def doubtful(self, kind: SuspectKind) -> Flags:
        """(n,) whether the neighbours alone make a record suspect."""
        if kind == "planted":
            return (self.whole >= _MOST) & (self.cut <= _FEW)
        return self.whole <= _FEW

    def flagged(self, kind: SuspectKind) -> Flags:
        """(n,) whether neighbours and champion both make a record suspect."""
        return self.doubtful(kind) & self.unlikely

    def confirmed(self) -> Flags:
        """(n,) whether the neighbours confirm the label, with and without the rare ends of features."""
        return (self.whole >= _MOST) & (self.cut >= _MOST)

    def score(self, kind: SuspectKind) -> Floats:
        """(n,) the larger, the more suspect."""
        disagreement = self.whole - self.cut if kind == "planted" else NEIGHBOURS - self.whole
        return np.asarray(self.doubt + disagreement, dtype=np.float64)


def _more_doubted(batch: _Neighbours, reference: _Neighbours) -> float:
    """Probability that the champion doubts a right label in the batch but not in the reference.

    Estimated on records whose neighbours confirm the label: (t - t0) / (1 - t0), where it doubts the share t
    of them, and t0 of those in the reference.
    """
    sure, usual = batch.unlikely[batch.confirmed()], reference.unlikely[reference.confirmed()]
    before = float(usual.mean()) if len(usual) else 0.0
    now = float(sure.mean()) if len(sure) else 1.0
    return max(0.0, (now - before) / (1 - before)) if before < 1 else 1.0


def _expected(kind: SuspectKind, reference: _Neighbours, more_doubted: float) -> float:
    """Expected share of suspects in a clean batch that is as new to the champion as this one.

    Where the features moved, the champion doubts right labels too, and only the neighbours are left to say
    which are wrong.
    """
    alone = int(reference.doubtful(kind).sum())
    # By the rule of succession: that none of few was doubted does not say that none ever is.
    both = alone * (int(reference.flagged(kind).sum()) + 1) / (alone + 2)
    return (both + (alone - both) * more_doubted) / len(reference.doubt)


def find_suspects(
    batch: Observed, reference: Observed, record_ids: Sequence[str], *, newest: Flags, seed: int = 0
) -> Suspects:
    """Suspect records of a batch, their shares, and the shares expected in a clean batch. Pure.

    Args:
        batch: at most `MOST_RECORDS` records of it, evenly drawn.
        reference: records of past holdouts, which the champion never learnt from.
        record_ids: (n,) of the batch.
        newest: (m,) which records of the reference are of the newest holdout, or of the few newest where
            they are small. How far a record lies from its own batch is compared among these: in a mixture of
            many experiences, distances are mixed too.
    """
    if min(len(batch), len(reference), int(newest.sum())) < MIN_RECORDS:
        return Suspects(0, len(reference))
    here, there = _flat(batch), _flat(reference)
    known = np.concatenate([batch.probabilities, reference.probabilities]).max(axis=0) > 0
    doubts = _doubt(reference)
    learnt = known[batch.labels]
    doubt = _doubt(batch)
    unlikely = ~learnt | (_conformal(doubts, doubt) <= _UNLIKELY)
    pool = min(len(batch), len(reference))
    found = _neighbours(here, batch.labels, unlikely, doubt, pool=pool, seed=seed)
    usual = _neighbours(
        there, reference.labels, _conformal_within(doubts) <= _UNLIKELY, doubts, pool=pool, seed=seed
    )
    more = _more_doubted(found, usual)
    outlying, level, distance = _outliers(batch, reference, newest=newest, seed=seed)
    flagged: dict[SuspectKind, Flags] = {kind: found.flagged(kind) for kind in _BY_LABEL}
    flagged["outliers"] = outlying
    scores = {kind: found.score(kind) for kind in _BY_LABEL} | {"outliers": distance}
    low, high = np.percentile(there, [1, 99], axis=0)
    describe = _Describe(batch, record_ids, here, learnt=learnt, low=low, high=high)
    return Suspects(
        records=len(batch),
        reference_records=len(reference),
        rates={kind: float(flags.mean()) for kind, flags in flagged.items()},
        expected_rates={kind: _expected(kind, usual, more) for kind in _BY_LABEL} | {"outliers": level},
        worst=tuple(
            describe.of(kind, int(index), float(np.nan_to_num(scores[kind][index])))
            for kind, flags in flagged.items()
            for index in _worst(flags, scores[kind])
        ),
        dead_features=_dead(here, there),
        far_features=_far(here, there),
    )


def _flat(records: Observed) -> Floats:
    return np.asarray(records.inputs, dtype=np.float64).reshape(len(records), -1)


def _doubt(records: Observed) -> Floats:
    """1 - p(given label), by the champion."""
    return 1.0 - records.probabilities[np.arange(len(records)), records.labels].astype(np.float64)


def _conformal(reference: Floats, scores: Floats) -> Floats:
    """(1 + #{reference >= s}) / (n + 1) of each score."""
    return np.asarray((1 + _as_large(reference, scores)) / (len(reference) + 1), dtype=np.float64)


def _conformal_within(scores: Floats) -> Floats:
    """As `_conformal`, of each score against all others; it counts itself as the 1."""
    return np.asarray(_as_large(scores, scores) / len(scores), dtype=np.float64)


def _as_large(reference: Floats, scores: Floats) -> NDArray[np.int64]:
    """#{reference >= s} of each score."""
    return len(reference) - np.searchsorted(np.sort(reference), scores, side="left").astype(np.int64)


def _neighbours(
    flat: Floats, labels: NDArray[np.int64], unlikely: Flags, doubt: Floats, *, pool: int, seed: int
) -> _Neighbours:
    """Neighbours come from `pool` records, as many on both sides."""
    members = np.sort(np.random.default_rng(seed).permutation(len(flat))[:pool])
    return _Neighbours(
        whole=_agreeing(standardise(flat), labels, members),
        cut=_agreeing(standardise(flat, tail=_RARE_PERCENT), labels, members),
        unlikely=unlikely,
        doubt=doubt,
    )


def _agreeing(features: Floats, labels: NDArray[np.int64], members: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how many of the nearest `NEIGHBOURS` among the members, not counting itself, share the label."""
    distances = _distances(features, features[members])
    distances[members, np.arange(len(members))] = np.inf
    nearest = np.argpartition(distances, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    return np.asarray((labels[members][nearest] == labels[:, None]).sum(axis=1), dtype=np.int64)


def _outliers(
    batch: Observed, reference: Observed, *, newest: Flags, seed: int
) -> tuple[Flags, float, Floats]:
    """(n,) outliers; their share among good records; (n,) the distance from the batch, in medians."""
    order = np.random.default_rng(seed).permutation(len(reference))
    among, scored = order[: len(order) // 2], order[len(order) // 2 :]
    level = max(_OUTLYING, 1 / (len(scored) + 1), 1 / (int(newest.sum()) + 1))
    here, there = _flat(batch), _flat(reference)
    far = np.zeros(len(batch), dtype=np.bool_)
    for new, known in ((here, there), (_wide(batch.embedding), _wide(reference.embedding))):
        near = _scaled(known[among], known[among])
        usual = _nearness(_scaled(known[scored], known[among]), near)
        far |= _conformal(usual, _nearness(_scaled(new, known[among]), near)) <= level
    apart = _apart(_scaled(here, here))
    alone = _conformal(_apart(_scaled(there[newest], there[newest])), apart) <= level
    return far & alone, level, apart


def _wide(values: NDArray[np.float32]) -> Floats:
    return values.astype(np.float64)


def _scaled(values: Floats, among: Floats) -> Floats:
    """Columns to mean 0 and variance 1 by `among`."""
    spread = among.std(axis=0)
    smallest = _SMALLEST_SPREAD * float(np.sqrt((spread**2).mean()))
    return np.asarray((values - among.mean(axis=0)) / np.maximum(spread, smallest or 1.0), dtype=np.float64)


def _nearness(values: Floats, among: Floats) -> Floats:
    """(n,) mean distance to the nearest records of another sample."""
    distances = _distances(values, among)
    k = min(NEIGHBOURS, len(among))
    return np.asarray(np.partition(distances, k - 1, axis=1)[:, :k].mean(axis=1), dtype=np.float64)


def _apart(values: Floats) -> Floats:
    """(n,) distance to the nearest tenth of the same sample, over its median."""
    distances = _distances(values, values)
    k = max(NEIGHBOURS, len(values) // _OWN_PART)
    own = np.partition(distances, k, axis=1)[:, k]
    return np.asarray(own / max(float(np.median(own)), 1e-12), dtype=np.float64)


def _distances(a: Floats, b: Floats) -> Floats:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)), dtype=np.float64)


def _worst(flags: Flags, scores: Floats) -> NDArray[np.int64]:
    """Indices of the worst suspects, at most `MOST_WORST`."""
    indices = np.flatnonzero(flags)
    return indices[np.argsort(-scores[indices], kind="stable")][:MOST_WORST]


def _dead(here: Floats, there: Floats) -> tuple[int, ...]:
    """Features that are constant here and vary there, in more than a few records."""
    constant = np.flatnonzero(here.min(axis=0) == here.max(axis=0))
    varies = (there[:, constant] != np.median(there[:, constant], axis=0)).mean(axis=0) > _VARIES
    return tuple(constant[varies].tolist())


def _far(here: Floats, there: Floats) -> tuple[int, ...]:
    """Features with a value far larger than any there; not those that were always 0, where any is."""
    largest = np.abs(there).max(axis=0)
    far = (largest > 0) & (np.abs(here).max(axis=0) > _FAR * largest)
    return tuple(np.flatnonzero(far).tolist())


@dataclass(frozen=True)
class _Describe:
    """Descriptions of suspect records."""

    batch: Observed
    record_ids: Sequence[str]
    flat: Floats
    learnt: Flags
    """(n,) whether the champion learnt the record's class."""
    low: Floats
    high: Floats

    def __post_init__(self) -> None:
        assert len(self.record_ids) == len(self.flat), "one id a record"

    def of(self, kind: SuspectKind, index: int, score: float) -> WorstRecord:
        return WorstRecord(
            record=str(self.record_ids[index]),
            kind=kind,
            score=score,
            reason=self._reason(kind, index, score),
            label=int(self.batch.labels[index]),
            deviations=self._deviations(index),
        )

    def _reason(self, kind: SuspectKind, index: int, score: float) -> str:
        if kind == "outliers":
            return f"{score:.1f} times as far from the rest of the batch as is usual, and unlike earlier ones"
        probability = self.batch.probabilities[index, self.batch.labels[index]]
        champion = f"the champion gives it {100 * probability:.1f} %"
        if not self.learnt[index]:
            champion = "the champion never learnt that class"
        if kind == "planted":
            return f"shares its label only with records that carry the same rare mark; {champion}"
        return f"its nearest neighbours carry other labels; {champion}"

    def _deviations(self, index: int) -> tuple[Deviation, ...]:
        row, width = self.flat[index], np.maximum(self.high - self.low, 1e-12)
        beyond = np.maximum(row - self.high, self.low - row) / width
        farthest = np.argsort(-beyond, kind="stable")[:_DEVIATIONS]
        return tuple(
            Deviation(int(j), float(row[j]), float(self.low[j]), float(self.high[j]))
            for j in farthest
            if beyond[j] > 0
        )
