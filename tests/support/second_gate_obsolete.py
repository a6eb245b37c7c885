"""Obsolete and kept holdouts of the second implementation of the gate's outcome."""

from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binom

from service.gate.base import Evidence, GateConfig, PairedAnswers
from tests.support.second_gate_statistics import attempt_alpha, holm

MORE = 0.25
"""Share of the near duplicates that carry another label, beyond the usual share."""
FEWEST_IN_ALL, FEWEST_OF_CLASS = 20, 3
"""Near duplicates from which on they count."""


class Twins(NamedTuple):
    """Near duplicates of some records."""

    records: int
    relabelled: int
    usual: float

    def p_value(self) -> float:
        """P-value of "no more of them than usual carry another label": exact binomial test."""
        return float(binom.sf(self.relabelled - 1, self.records, self.usual))

    def many(self, fewest: int) -> bool:
        """Whether there are enough, and so many more than usual carry another label."""
        return self.records >= fewest and self.relabelled / self.records - self.usual > MORE


def looks_obsolete(members: Sequence[PairedAnswers], alpha: float) -> bool:
    """Whether a holdout, or a block, looks obsolete."""
    whole, classes = near_duplicates(members)
    if whole.many(FEWEST_IN_ALL) and whole.p_value() <= alpha:
        return True
    adjusted = holm([each.p_value() for each in classes])
    return any(each.many(FEWEST_OF_CLASS) and p <= alpha for each, p in zip(classes, adjusted, strict=True))


def has_other_labels(holdout: PairedAnswers) -> bool:
    """Whether many more of its near duplicates than usual carry other labels, by chance or not."""
    whole, classes = near_duplicates([holdout])
    return any(each.many(1) for each in (whole, *classes))


def near_duplicates(members: Sequence[PairedAnswers]) -> tuple[Twins, list[Twins]]:
    """The near duplicates of these together, and those of each class that has any."""
    counted = [each.near_duplicates for each in members if each.near_duplicates is not None]
    classes: dict[int, list[Twins]] = {}
    for one in (one for each in counted for one in each.classes):
        classes.setdefault(one.label, []).append(Twins(one.records, one.relabelled, one.usual))
    whole = together([Twins(each.records, each.relabelled, each.usual) for each in counted])
    return whole, [each for each in map(together, classes.values()) if each.records]


def together(parts: Sequence[Twins]) -> Twins:
    """Near duplicates of several holdouts, with the mean of the usual shares."""
    records = sum(each.records for each in parts)
    usual = sum(each.usual * each.records for each in parts) / records if records else 0.0
    return Twins(records, sum(each.relabelled for each in parts), usual)


def trusted(evidence: Evidence, config: GateConfig) -> frozenset[int]:
    """Kept holdouts, without those of which new evidence says that the concept has moved."""
    alpha = attempt_alpha(config, evidence.attempt)
    moved = set()
    if evidence.shift is not None and evidence.shift.verdict == "shifted":
        moved = set(evidence.kept) - set(evidence.kept_shifted)
    moved |= {each.experience for each in evidence.past if looks_obsolete([each], alpha)}
    return frozenset(evidence.kept) - moved
