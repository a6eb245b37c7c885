"""Rare classes guard: was a class lost that is too rare for the accuracy margin to see?"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc
from scipy.stats import binom

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import Answer, Evidence, Finding, GateConfig, Note, PairedAnswers
from service.gate.guards.retention import (
    SINGLE_POWER,
    block_margin,
    comparable,
    records_of_single,
    single_margins,
)

GUARD = "rare_class"
_STEPS = 100
"""Margins of few records are whole points."""


def rare_classes(evidence: Evidence, config: GateConfig) -> tuple[Finding | Note, ...]:
    """One finding for each class that could be lost whole within the margin: is its recall kept?

    The records of a class are taken from all past holdouts together. The margin is what so many settle, at
    most `rare_margin`, and follows from their number alone. All must pass, each at alpha, so
    P(promote | some rare class truly lost its margin) <= alpha (intersection-union). What any other class is
    shown to have lost is noted (exact McNemar, Holm).
    """
    if not config.rare_classes or evidence.first:
        return ()
    past = comparable(evidence.past, config).sound
    labelled = [each for each in past if each.labels is not None]
    broken = [each for each in labelled if each.labels is not None and len(each.labels) != each.n]
    if broken:
        return tuple(_unmatched(each) for each in broken)
    if not labelled:
        return ()
    counted = _count(labelled)
    present = np.flatnonzero(counted.n)
    rare = present[counted.n[present] <= block_margin(config) * counted.n.sum()]
    drops = stats.mcnemar_drop_p(counted.lost[present], counted.gained[present])
    p_drop = dict(zip(present.tolist(), stats.holm(drops).tolist(), strict=True))
    planned = stats.spent_at_first(config.alpha, evidence.attempt)
    needed = records_of_rare(planned, config.planned_churn / 2, config.rare_margin)
    found: list[Finding | Note] = []
    few: list[tuple[str, int]] = []
    for label in present.tolist():
        its = counted.of(label, p_drop[label])
        name = f"class {evidence.classes[label] if label < len(evidence.classes) else label}"
        if label not in rare:
            found += [_lost(its, name, config)] if its.p_drop <= config.alarm_alpha else []
        elif its.n >= needed:
            finding = _judge(its, name, config, planned=planned)
            mostly = _mostly_lost(its, name, config, classes=len(rare)) if finding.answer == "pass" else None
            found.append(mostly or finding)
        else:
            few.append((name, its.n))
            mostly = _mostly_lost(its, name, config, classes=len(rare))
            found += [mostly] if mostly else []
    return (*found, _unguarded(few, needed)) if few else tuple(found)


class _Class(NamedTuple):
    """Answers on the records of one class."""

    label: int
    n: int
    lost: int
    gained: int
    right: int
    """By the champion."""
    p_drop: float


class _Counted(NamedTuple):
    """Counts by class id, (classes,) each."""

    n: NDArray[np.int64]
    lost: NDArray[np.int64]
    gained: NDArray[np.int64]
    right: NDArray[np.int64]

    def of(self, label: int, p_drop: float) -> _Class:
        n, lost, gained, right = (int(column[label]) for column in self)
        return _Class(label, n, lost, gained, right, p_drop)


def _count(labelled: Sequence[PairedAnswers]) -> _Counted:
    labels = np.concatenate([each.labels for each in labelled if each.labels is not None])
    before = np.concatenate([each.baseline for each in labelled if each.baseline is not None])
    after = np.concatenate([each.challenger for each in labelled if each.challenger is not None])
    cells = np.bincount(4 * labels + 2 * before + after, minlength=4 * (int(labels.max()) + 1))
    neither, gained, lost, both = cells.reshape(-1, 4).T
    return _Counted(neither + gained + lost + both, lost, gained, lost + both)


def _unmatched(answers: PairedAnswers) -> Finding:
    labels = 0 if answers.labels is None else len(answers.labels)
    sentence = (
        f"experience {answers.experience}: {labels} labels cannot be matched with "
        f"{say.records(answers.n)}; predict its holdout again"
    )
    return Finding(GUARD, "undecided", sentence, answers.experience)


@lru_cache(maxsize=4096)
def rare_margin(n: int, *, alpha: float, lost: float, widest: float) -> float | None:
    """The smallest margin, in points, that so many records of a class settle by the exact test; None: none.

    It is chosen so that a challenger which turns the share `lost` of them wrong passes with the power of an
    experience by itself.
    """
    most = int(binom.ppf(SINGLE_POWER, n, lost))
    steps = np.arange(1, round(widest * _STEPS) + 1) / _STEPS
    passing = steps[bdtr(most, n, steps) <= alpha]
    return float(passing[0]) if len(passing) else None


@lru_cache(maxsize=256)
def records_of_rare(alpha: float, lost: float, widest: float) -> int:
    """Records of a class from which on its recall is guarded: with so many, or more, a margin is settled."""
    n, settled = 1, 0
    while settled < _IN_A_ROW:
        settled = settled + 1 if rare_margin(n, alpha=alpha, lost=lost, widest=widest) is not None else 0
        n += 1
    return n - _IN_A_ROW


_IN_A_ROW = 20
"""The margin that is settled saws with the number of records, with a shorter period than this."""


def _judge(seen: _Class, name: str, config: GateConfig, *, planned: float) -> Finding:
    """The recall of one rare class: kept, lost, or undecided.

    With few records only the losses count: among n records of which the share m or more turns wrong, so few
    as were lost have a chance of at most P(Binomial(n, m) <= lost), which is exact whatever was gained.
    """
    if seen.n >= records_of_single(config, alpha=planned):
        margin = float(single_margins(np.array([seen.n]), config, alpha=planned)[0])
        p = float(stats.noninferiority_p(seen.lost, seen.gained, n=seen.n, margin=margin))
    else:
        turned, widest = config.planned_churn / 2, config.rare_margin
        least = rare_margin(seen.n, alpha=planned, lost=turned, widest=widest)
        margin = max(config.margin, widest if least is None else least)
        p = float(bdtr(seen.lost, seen.n, margin))
    numbers = _numbers(seen, config) | {"margin": margin, "p_noninferior": p}
    allowed, flips = say.allowed(margin), say.flips(seen.n, seen.lost, seen.gained)
    if p <= config.alpha:
        return Finding(
            GUARD, "pass", f"{name} kept its recall: less than {allowed} points lost ({flips})", None, numbers
        )
    answer: Answer = "fail" if seen.p_drop <= config.alarm_alpha else "undecided"
    if answer == "fail":
        lost = f"{name} lost recall: {seen.lost} of the {seen.right} that the champion answers right"
        remedy = f"keep the champion, and replay more records of {name}"
        sentence = f"{lost} ({flips}), {allowed} points are allowed: {remedy}"
    else:
        may = f"{name} may have lost {allowed} points of its recall or more ({flips})"
        sentence = f"{may}; a person decides, or learn with more records of {name}"
    return Finding(GUARD, answer, sentence, None, numbers)


def _mostly_lost(seen: _Class, name: str, config: GateConfig, *, classes: int) -> Finding | None:
    """A question where a class lost most of what the champion answers right of it; None: it did not.

    Within its margin, or too small for one, it may still be that there was little to lose.
    """
    if 2 * (seen.lost - seen.gained) <= seen.right:
        return None
    # The chance that so many of the right ones turn wrong, where the planned share of answers does.
    chance = float(bdtrc(seen.lost - 1, seen.right, config.planned_churn))
    if chance * classes > config.alarm_alpha:
        return None
    most = f"{seen.lost} of the {say.records(seen.right)} that the champion answers right are lost"
    flips = say.flips(seen.n, seen.lost, seen.gained)
    sentence = f"{name}: {most} ({flips}); a person decides"
    return Finding(GUARD, "undecided", sentence, None, _numbers(seen, config))


def _unguarded(few: Sequence[tuple[str, int]], needed: int) -> Note:
    """The classes that could be lost unseen."""
    names = ", ".join(name for name, _ in few[:_MOST_NAMES]) + (", ..." if len(few) > _MOST_NAMES else "")
    sizes = [n for _, n in few]
    least, most = min(sizes), max(sizes)
    have = f"has {say.records(most)}" if len(few) == 1 else f"have {least} to {say.records(most)} each"
    sentence = (
        f"{names} {have} in all past holdouts, and could be lost within the margin unseen: recall is guarded "
        f"from {needed} records of a class on"
    )
    return Note(GUARD, sentence, {"n": least, "n_needed": needed})


_MOST_NAMES = 5


def _lost(seen: _Class, name: str, config: GateConfig) -> Note:
    lower, upper = (
        float(limit[0])
        for limit in stats.loss_limits([seen.lost], [seen.gained], n=[seen.n], alpha=config.alpha)
    )
    said = f"{name} lost {say.between(lower, upper, config.margin)} of its recall"
    flips = say.flips(seen.n, seen.lost, seen.gained)
    return Note("class", f"{said} ({flips})", {"class": seen.label, "loss_lower": lower, "loss_upper": upper})


def _numbers(seen: _Class, config: GateConfig) -> dict[str, float]:
    return {
        "class": seen.label,
        "n": seen.n,
        "lost": seen.lost,
        "gained": seen.gained,
        "alpha": config.alpha,
        "p_drop_holm": seen.p_drop,
    }
