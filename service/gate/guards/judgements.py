"""Answers and sentences on one comparison, shared by the guards of past and of new experiences."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import Answer, NearDuplicates, PairedAnswers, Relabelled
from service.gate.comparisons import Comparison

Judgement = tuple[Answer, str, dict[str, float]]
"""An answer, its sentence, and numbers beyond those of the comparison."""

UNTIL_THEN = "until then a person decides"
_LESS_CHURN = "a person decides, or learn with less churn (more replay, smaller steps)"
"""Instead of waiting: a past holdout cannot grow."""
_LATE = 0.2
"""Findings report the looks left once they are fewer than this share of all."""
_FEWEST_NEAR_DUPLICATES = 20
_FEWEST_OF_A_CLASS = 3
_RELABELLED = 0.25
"""Share of near duplicates relabelled, beyond the usual share, from which on a concept has changed."""


def kept(seen: Comparison, name: str, *, its: str = "its", aside: str = "", together: str = "") -> Judgement:
    """Pass, or undecided: whether a comparison shows that less than the margin was lost."""
    subject = name + aside
    if seen.p_noninferior <= seen.alpha:
        if seen.upper < 0 and say.points(-seen.upper) != "0":
            said = f"{subject} gained{together}: at least {say.with_unit(-seen.upper)} better"
        else:
            worst = f"{say.at_worst(seen.upper, seen.margin)}, {say.allowed(seen.margin)} allowed"
            said = f"{subject} kept {its} accuracy{together}: {worst}"
        return "pass", f"{said} ({say.flips(seen.n, seen.lost, seen.gained)})", {}
    may = f"{subject} may have lost {say.up_to(seen.upper, seen.margin)}{together}"
    settle = f"{say.records(seen.n, 'holdout')} cannot settle it, {say.about(seen.needed)} would have"
    sentence = f"{may}, {say.allowed(seen.margin)} allowed; {settle}; {_LESS_CHURN}"
    return "undecided", sentence, {"n_needed": seen.needed}


def lost(seen: Comparison, name: str, margin: float, *, together: str = "") -> Judgement:
    """Fail: a loss is shown."""
    said = f"{name} lost {say.between(seen.lower, seen.upper, margin)}{together}"
    remedy = f"keep the champion, and replay more of {name}"
    return "fail", f"{said}; {say.were_allowed(margin)}: {remedy}", {}


def nothing_right(seen: Comparison, name: str) -> Judgement:
    """Undecided: where the champion answers nothing right, nothing can be lost."""
    none = f"{name}: the champion answers none of {say.records(seen.n, 'holdout')} right"
    retire = "a person decides, or retires it (holdfast holdout retire)"
    return "undecided", f"{none}, so whether anything was lost is unknown; {retire}", {}


def too_few(seen: Comparison, name: str) -> Judgement:
    """Undecided: all past holdouts together have fewer records than any challenger can pass with."""
    floor = int(stats.floor_n(seen.margin, seen.alpha))
    few = f"{name}: all past holdouts that can be compared hold {say.records(seen.n)} together"
    cannot = f"which cannot settle a margin of {say.with_unit(seen.margin, digits=2)}"
    return "undecided", f"{few}, {cannot}; it takes at least {floor}, {UNTIL_THEN}", {"n_needed": floor}


@lru_cache(maxsize=4096)
def looks_left(looks: int, limit: int) -> tuple[str, Mapping[str, float]]:
    """Looks at a holdout that are left after this one: in words, where they are few, and as numbers."""
    left = limit - looks - 1
    late = f"; {left} of {limit} looks at it are left" if left < limit * _LATE else ""
    return late, {"looks": looks + 1, "looks_left": left}


def traffic(answers: Sequence[PairedAnswers]) -> dict[str, float]:
    """The number `traffic` of a finding on these: the sum of their shares; empty where one is unknown."""
    shares = []
    for each in answers:
        if each.traffic is None or not 0 <= each.traffic <= 1:
            return {}
        shares.append(each.traffic)
    return {"traffic": min(1.0, sum(shares))}


def together(answers: Sequence[PairedAnswers]) -> NearDuplicates:
    """The near duplicates of several holdouts, as those of one."""
    counted = [each.near_duplicates for each in answers if each.near_duplicates is not None]
    by_class: dict[int, list[Relabelled]] = {}
    for each in counted:
        for its in each.classes:
            by_class.setdefault(its.label, []).append(its)
    records, relabelled, usual = _sums(counted)
    return NearDuplicates(
        records,
        relabelled,
        usual,
        tuple(Relabelled(label, *_sums(its)) for label, its in sorted(by_class.items())),
    )


def _sums(counted: Sequence[NearDuplicates] | Sequence[Relabelled]) -> tuple[int, int, float]:
    records = sum(each.records for each in counted)
    usual = sum(each.usual * each.records for each in counted) / records if records else 0.0
    return records, sum(each.relabelled for each in counted), usual


def is_relabelled(near_duplicates: NearDuplicates | Relabelled | None) -> bool:
    """Whether far more near duplicates than usual carry another label."""
    if near_duplicates is None or not near_duplicates.records or not 0 <= near_duplicates.usual <= 1:
        return False
    return near_duplicates.relabelled / near_duplicates.records - near_duplicates.usual > _RELABELLED


def has_relabelled(near_duplicates: NearDuplicates | None) -> bool:
    """Whether that is so of a holdout, or of one of its classes."""
    if near_duplicates is None:
        return False
    return is_relabelled(near_duplicates) or any(map(is_relabelled, near_duplicates.classes))


def obsolete_part(near_duplicates: NearDuplicates, alpha: float) -> NearDuplicates | Relabelled | None:
    """What carries other labels now, of enough near duplicates and more than chance explains.

    The whole holdout, or else the class of which it is clearest (Holm over the classes); None: nothing.
    """
    enough = near_duplicates.records >= _FEWEST_NEAR_DUPLICATES
    if enough and is_relabelled(near_duplicates) and _relabelled_p(near_duplicates) <= alpha:
        return near_duplicates
    known = [each for each in near_duplicates.classes if each.records and 0 <= each.usual <= 1]
    adjusted = stats.holm([_relabelled_p(each) for each in known]).tolist()
    found = [
        (p, each)
        for p, each in zip(adjusted, known, strict=True)
        if p <= alpha and is_relabelled(each) and each.records >= _FEWEST_OF_A_CLASS
    ]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _relabelled_p(counted: NearDuplicates | Relabelled) -> float:
    share = counted.relabelled / counted.records
    return float(stats.excess_p(share, counted.usual, sample=counted.records))


def obsolete(
    seen: Comparison,
    name: str,
    margin: float,
    part: NearDuplicates | Relabelled,
    classes: Sequence[str],
    *,
    several: bool = False,
) -> Judgement:
    """Undecided: the loss may be right, since the same inputs carry other labels now."""
    of = say.records(part.records)
    more: dict[str, float] = {
        "twins": part.records,
        "relabelled": part.relabelled,
        "relabelled_usual": part.usual,
    }
    whose = ""
    if isinstance(part, Relabelled):
        more["class"] = part.label
        whose = f" of class {classes[part.label] if part.label < len(classes) else part.label}"
    looks, its, holdout = ("its holdout looks", "its", "holdout")
    if several:
        looks, its, holdout = ("their holdouts look", "their", "holdouts")
    relabelled = f"{part.relabelled} of {its} {of}{whose} that have a near duplicate in the new data"
    sentence = (
        f"{name} lost {say.between(seen.lower, seen.upper, margin)}, but {looks} obsolete: {relabelled} "
        f"carry another label there; if the new labels are right, retire the {holdout} of {name} "
        "(holdfast holdout retire), else reject"
    )
    return "undecided", sentence, more
