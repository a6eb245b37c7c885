"""Golden sets of the second implementation of the gate's outcome."""

from collections import Counter

import numpy as np

from service.gate.base import Answer, Bits, Evidence, GateConfig, GoldenAnswers, PairedAnswers
from tests.support.second_gate_statistics import (
    Counts,
    attempt_alpha,
    count,
    holm,
    p_gained,
    p_lost,
    p_margin,
)


def golden(evidence: Evidence, config: GateConfig) -> list[Answer]:
    """Is every golden set kept, against the champion and against its anchor?"""
    alpha = attempt_alpha(config, evidence.attempt)
    times = Counter(each.name for each in evidence.golden)
    sound = [each for each in evidence.golden if times[each.name] == 1 and can_be_judged(each, config)]
    answers: list[Answer] = ["undecided"] * (len(evidence.golden) - len(sound))
    counted = [each for each in sound if each.margin is None]
    tested = [(each, each.margin, compared(each, each.baseline)) for each in sound if each.margin]
    answers += [count_answer(compared(each, each.baseline)) for each in counted]
    values = [p_lost(counts) for _, _, counts in tested]
    values += [p_lost(compared(each, each.baseline)) for each in counted]
    adjusted = holm(values, len(evidence.golden))[: len(tested)]
    for (_, margin, counts), p in zip(tested, adjusted, strict=True):
        answers.append(margin_answer(counts, margin, alpha, lost=p <= config.alarm_alpha))
    return answers + [anchor_answer(each, evidence, config) for each in sound]


def can_be_judged(golden_set: GoldenAnswers, config: GateConfig) -> bool:
    """Whether champion and challenger answered it, and it is not exhausted."""
    exhausted = golden_set.margin is not None and golden_set.looks >= config.holdout_looks
    whole = is_whole(golden_set, golden_set.baseline) and is_whole(golden_set, golden_set.challenger)
    return whole and not exhausted


def is_whole(golden_set: GoldenAnswers, bits: Bits | None) -> bool:
    """Whether these are right/wrong bits of all its records."""
    return bits is not None and bits.dtype == np.bool_ and bits.shape == (golden_set.records,)


def compared(golden_set: GoldenAnswers, baseline: Bits | None) -> Counts:
    """Counts of the challenger against another model."""
    return count([PairedAnswers(golden_set.number, baseline, golden_set.challenger)])


def count_answer(counts: Counts) -> Answer:
    """The answer where no right answer may be lost."""
    if not counts.right:
        return "undecided"
    return "fail" if counts.lost else "pass"


def margin_answer(counts: Counts, margin: float, alpha: float, *, lost: bool) -> Answer:
    """The answer where less than the margin may be lost."""
    if not counts.right and p_gained(counts) > alpha:
        return "undecided"
    if p_margin(counts, margin) <= alpha:
        return "pass"
    return "fail" if lost else "undecided"


def anchor_answer(golden_set: GoldenAnswers, evidence: Evidence, config: GateConfig) -> Answer:
    """The answer against the anchor, which never fails."""
    if golden_set.anchor_version == evidence.champion:
        return "pass"
    if not is_whole(golden_set, golden_set.anchor):
        return "undecided"
    counts = compared(golden_set, golden_set.anchor)
    if golden_set.margin is None:
        return "pass" if count_answer(counts) == "pass" else "undecided"
    margin, alpha = max(golden_set.margin, config.budget), attempt_alpha(config, evidence.attempt)
    return margin_answer(counts, margin, alpha, lost=False)
