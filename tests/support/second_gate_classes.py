"""Rare classes of the second implementation of the gate's outcome."""

from functools import lru_cache

import numpy as np
from scipy.stats import binom

from service.gate.base import Answer, Evidence, GateConfig, PairedAnswers
from tests.support.second_gate_retention import SINGLE_POWER, single_margin, single_needs, usable
from tests.support.second_gate_statistics import (
    Counts,
    attempt_alpha,
    count,
    holm,
    p_lost,
    p_margin,
    planned_alpha,
)


def rare_classes(evidence: Evidence, config: GateConfig) -> dict[int, Answer]:
    """Was a class lost that accuracy cannot see? By class."""
    past = usable(evidence, config)
    if not config.rare_classes or not past:
        return {}
    labels = np.concatenate([each.labels for each in past if each.labels is not None])
    baseline = np.concatenate([each.baseline for each in past if each.baseline is not None])
    challenger = np.concatenate([each.challenger for each in past if each.challenger is not None])
    names = np.unique(labels).tolist()
    masks = [labels == label for label in names]
    classes = [count([PairedAnswers(0, baseline[mask], challenger[mask])]) for mask in masks]
    adjusted = holm([p_lost(each) for each in classes])
    rarer = (config.small_margin or config.margin) * len(labels)
    rare = [each for each in zip(names, classes, adjusted, strict=True) if each[1].n <= rarer]
    return {
        label: class_answer(each, evidence, config, lost=p <= config.alarm_alpha, classes=len(rare))
        for label, each, p in rare
    }


def class_answer(
    counts: Counts, evidence: Evidence, config: GateConfig, *, lost: bool, classes: int
) -> Answer:
    """The answer on the recall of one rare class."""
    planned, alpha = planned_alpha(config, evidence.attempt), attempt_alpha(config, evidence.attempt)
    turned, widest = config.planned_churn / 2, config.rare_margin
    if counts.n >= single_needs(config, planned):
        passes = p_margin(counts, single_margin(counts.n, config, planned)) <= alpha
    elif counts.n >= class_needs(planned, turned, widest):
        margin = max(class_margin(counts.n, planned, turned, widest) or widest, config.margin)
        passes = bool(binom.cdf(counts.lost, counts.n, margin) <= alpha)
    else:
        passes = True
    if not passes:
        return "fail" if lost else "undecided"
    chance = float(binom.sf(counts.lost - 1, counts.right, config.planned_churn))
    mostly = 2 * (counts.lost - counts.gained) > counts.right
    return "undecided" if mostly and chance * classes <= config.alarm_alpha else "pass"


@lru_cache(maxsize=4096)
def class_margin(n: int, alpha: float, turned: float, widest: float) -> float | None:
    """The margin, in full points, that n records of a class settle; None: none so small as is asked."""
    most = int(binom.ppf(SINGLE_POWER, n, turned))
    margins = np.arange(1, round(widest * 100) + 1) / 100
    settled = margins[binom.cdf(most, n, margins) <= alpha]
    return float(settled[0]) if len(settled) else None


@lru_cache(maxsize=256)
def class_needs(alpha: float, turned: float, widest: float) -> int:
    """Records of a class with which, and with more, a margin is settled."""
    n = 1
    while any(class_margin(n + more, alpha, turned, widest) is None for more in range(20)):
        n += 1
    return n
