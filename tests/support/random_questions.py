"""Random golden sets, and what makes a rejection a question: disputes, kept holdouts, shifts, traffic."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.gate.base import (
    Bits,
    Evidence,
    GateConfig,
    GoldenAnswers,
    NearDuplicates,
    PairedAnswers,
    Relabelled,
    ShiftEvidence,
)

ANCHORS = (None, "champion", "champion", "champion", "older", "older", "older", "older", "older", "older")
"""The anchor of a golden set, each as likely as it occurs here."""
MOST_RECORDS = 2500


def with_golden(rng: np.random.Generator, evidence: Evidence, config: GateConfig) -> Evidence:
    """The evidence with up to three golden sets, of which one may be there twice."""
    count = int(rng.integers(1, 4))
    sets = [_golden(rng, number, evidence.champion or 0, config) for number in range(count)]
    if rng.random() < 0.06:
        sets.append(sets[0])
    return replace(evidence, golden=tuple(sets))


def _golden(rng: np.random.Generator, number: int, champion: int, config: GateConfig) -> GoldenAnswers:
    """A golden set: mostly kept, else lost within its margin or beyond; with or without an anchor."""
    margin = None if rng.random() < 0.35 else round(float(rng.uniform(0.02, 0.2)), 3)
    n = int(np.exp(rng.uniform(np.log(5 if margin is None else 150), np.log(MOST_RECORDS))))
    accuracy = 0.0 if rng.random() < 0.04 else float(rng.uniform(0.6, 1.0))
    baseline = rng.random(n) < accuracy
    lose = _losses(rng, margin or 0.05)
    challenger: Bits | None = _flipped(rng, baseline, lose)
    kind = ANCHORS[int(rng.integers(0, len(ANCHORS)))]
    version = {None: None, "champion": champion, "older": int(rng.integers(0, max(champion, 1)))}[kind]
    anchor: Bits | None = None
    if kind == "older" and rng.random() < 0.93:
        since = 0.0 if rng.random() < 0.7 else float(rng.uniform(0, 2)) * max(margin or 0, config.budget)
        anchor = _flipped(rng, baseline, 0.0, since) if rng.random() < 0.96 else np.zeros(n, dtype=np.bool_)
    first: Bits | None = baseline
    broken = rng.random()
    if broken < 0.015:
        first = None
    elif broken < 0.03:
        challenger = None
    elif broken < 0.045 and challenger is not None:
        challenger = challenger[:-1]
    elif broken < 0.06:
        first = baseline.astype(np.float64)
    looks = 500 if rng.random() < 0.04 else int(rng.integers(0, 6))
    return GoldenAnswers(number, f"set-{number}", n, first, challenger, anchor, version, margin, looks)


def _losses(rng: np.random.Generator, margin: float) -> float:
    """Share of the right answers that are lost."""
    fate = rng.random()
    if fate < 0.6:
        return 0.0
    return float(rng.uniform(0, 0.5) if fate < 0.8 else rng.uniform(0.5, 3)) * margin


def _flipped(rng: np.random.Generator, bits: Bits, lose: float, gain: float = 0.0) -> Bits:
    """The bits of a model that loses so many of the right ones, and turns so many of the wrong ones."""
    churn = float(rng.choice([0.0, 0.0, 0.01, 0.03]))
    flips = rng.random(len(bits)) < np.where(bits, lose + churn / 2, gain + churn / 2)
    # The gain is a share of all records, however few of them are wrong.
    return bits ^ flips | (rng.random(len(bits)) < gain)


def with_disputes(rng: np.random.Generator, evidence: Evidence, hurt: Sequence[int]) -> Evidence:
    """The evidence after an update that some holdouts stopped, of which a person kept some."""
    numbers = [each.experience for each in evidence.past]
    disputed = _some(rng, numbers, hurt)
    kept = _some(rng, numbers, hurt) if rng.random() < 0.5 else ()
    return replace(
        evidence,
        disputed=disputed,
        kept=kept,
        kept_shifted=tuple(each for each in kept if rng.random() < 0.7) if rng.random() < 0.7 else (),
        shift=_shift(rng) if rng.random() < 0.6 else None,
    )


def _some(rng: np.random.Generator, numbers: Sequence[int], hurt: Sequence[int]) -> tuple[int, ...]:
    """Some of the past experiences, most often those that the update hurts, and a retired one."""
    way = rng.random()
    if way < 0.4:
        return tuple(hurt)
    if way < 0.6:
        return tuple(numbers)
    share = float(rng.uniform(0.2, 0.9))
    some = {each for each in numbers if rng.random() < share}
    return tuple(sorted(some | set(hurt) if way < 0.85 else some | {max(numbers) + 1}))


def _shift(rng: np.random.Generator) -> ShiftEvidence:
    verdicts = ("shifted", "shifted", "shifted", "same", "undecided")
    return ShiftEvidence(verdicts[int(rng.integers(0, 5))], 0.001, {}, 0.1, None, 500, 500, 0.1)  # type: ignore[arg-type]


def with_traffic(rng: np.random.Generator, evidence: Evidence) -> Evidence:
    """The evidence with the traffic that its holdouts stand for, which is known of most."""
    known, least = float(rng.choice([1.0, 1.0, 0.9, 0.5])), float(rng.choice([0.001, 0.001, 0.02, 0.1]))
    return replace(
        evidence,
        past=tuple(
            replace(each, traffic=_share(rng, least) if rng.random() < known else None)
            for each in evidence.past
        ),
    )


def _share(rng: np.random.Generator, least: float) -> float:
    return 0.0 if rng.random() < 0.02 else float(np.exp(rng.uniform(np.log(least), np.log(10 * least))))


def with_near_duplicates(rng: np.random.Generator, evidence: Evidence, hurt: Sequence[int]) -> Evidence:
    """The evidence with near duplicates in the new data, of which those of what is hurt are relabelled."""
    every = rng.random() < 0.5
    return replace(
        evidence,
        past=tuple(
            replace(each, near_duplicates=_near(rng, each, moved=each.experience in hurt))
            if every or rng.random() < 0.7
            else each
            for each in evidence.past
        ),
    )


def _near(rng: np.random.Generator, paired: PairedAnswers, *, moved: bool) -> NearDuplicates:
    """Near duplicates of a holdout, by class: all classes are relabelled, or one, or none."""
    share, usual = float(rng.choice([0.05, 0.3, 0.9])), float(rng.uniform(0.0, 0.1))
    assert paired.labels is not None
    labels, counts = np.unique(paired.labels, return_counts=True)
    way = rng.random() if moved else 1.0
    one = int(rng.choice(labels))
    classes = []
    for label, n in zip(labels, counts, strict=True):
        is_moved = way < 0.4 or (way < 0.8 and label == one)
        records = int(rng.binomial(n, share))
        relabelled = int(rng.binomial(records, 0.8 if is_moved else usual))
        classes.append(Relabelled(int(label), records, relabelled, usual))
    return NearDuplicates(
        sum(each.records for each in classes),
        sum(each.relabelled for each in classes),
        usual,
        tuple(classes) if rng.random() < 0.8 else (),
    )
