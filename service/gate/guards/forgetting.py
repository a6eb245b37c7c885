"""Retention and learning guards: was anything forgotten, and was the new experience learnt?

Too little, missing or broken evidence is undecided, with the reason; never a pass.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from math import ceil
from typing import NamedTuple

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import (
    Answer,
    Evidence,
    Finding,
    GateConfig,
    NearDuplicates,
    PairedAnswers,
)
from service.gate.comparisons import Comparison, Pool, compare, floor, is_small, pooled, problem


def retention(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Retention: one finding for each full past holdout, and one for all small ones together.

    A holdout with fewer records than any challenger can pass with would never be settled, since it does not
    grow; such small ones are pooled (`comparisons.pooled`), which promises their common loss only. Each of
    them is still alarmed on: one that is shown to have lost has a finding of its own.

    Which ones are small does not depend on the try: what is judged alone stays so, however little of alpha
    is left. All must pass, each at alpha, so P(promote | some holdout truly lost its margin) <= alpha without
    any correction (an intersection-union test: Berger, Technometrics 24:295, 1982). The alarm is the
    opposite, "some holdout lost", so its p-values are adjusted (Holm).
    """
    if not evidence.past:
        nothing = (
            "nothing that the champion learnt was compared: without its past holdouts nobody can say what "
            "was forgotten; run the update again"
        )
        return () if evidence.first else (Finding("retention", "undecided", nothing),)
    fresh = _with_margins([each for each in evidence.past if _is_fresh(each, config)], config.margin)
    spent = tuple(_exhausted(each, config) for each in evidence.past if not _is_fresh(each, config))
    enough = floor(stats.spent_at_first(config.alpha, evidence.attempt))
    small = [(each, margin) for each, margin in fresh if is_small(each, margin, enough=enough)]
    if not small:
        seen = _compared(fresh, config)
        return (
            *(_retained(each, its, config) for (each, _), its in zip(fresh, seen, strict=True)),
            *spent,
        )
    alone = [(each, margin) for each, margin in fresh if not is_small(each, margin, enough=enough)]
    together = config.margin if config.small_margin is None else config.small_margin
    # What looks obsolete waits for a person, and must fail nothing that it is pooled with.
    gone = _found_obsolete([*alone, *small], config)
    left = [(each, margin) for each, margin in fresh if each.experience not in gone]
    pool = None
    if any(is_small(each, margin, enough=enough) for each, margin in left):
        pool = pooled(left, enough=enough, margin=together)
    # A pool of one is that one.
    members = small if pool is None or len(small) > 1 or pool.added else []
    pools = [(pool.answers, pool.margin)] if pool else []
    compared = iter(_compared([*alone, *pools, *members], config))
    findings = [_retained(each, next(compared), config) for each, _ in alone]
    if pool:
        findings.append(_pool_found(pool, next(compared), config))
    # Too few records to be kept by, and yet they may show a loss.
    alarms = [_retained(each, next(compared), config) for each, _ in members]
    return (
        *findings,
        *(each for each in alarms if each.answer == "fail" or "twins" in each.numbers),
        *spent,
    )


def _found_obsolete(past: Sequence[tuple[PairedAnswers, float]], config: GateConfig) -> set[int]:
    """Experiences with a loss on their holdout, and with near duplicates that are labelled otherwise."""
    if not any(each.near_duplicates and _is_obsolete(each.near_duplicates, config.alpha) for each, _ in past):
        return set()
    seen = _compared(past, config)
    found = [_retained(each, its, config) for (each, _), its in zip(past, seen, strict=True)]
    return {each.experience for each in found if each.experience is not None and "twins" in each.numbers}


def obsolete(evidence: Evidence, config: GateConfig, findings: Sequence[Finding]) -> set[int]:
    """Experiences whose holdouts look obsolete by what retention found, alone or among the small ones."""
    found = [each for each in findings if each.guard == "retention" and "twins" in each.numbers]
    if all(each.experience is not None for each in found):
        return {each.experience for each in found if each.experience is not None}
    enough = floor(stats.spent_at_first(config.alpha, evidence.attempt))
    small = [
        each.experience
        for each, margin in _with_margins(evidence.past, config.margin)
        if is_small(each, margin, enough=enough)
    ]
    return {*small, *(each.experience for each in found if each.experience is not None)}


def _is_fresh(answers: PairedAnswers, config: GateConfig) -> bool:
    return 0 <= answers.looks < config.holdout_looks


def _exhausted(answers: PairedAnswers, config: GateConfig) -> Finding:
    if not answers.looks >= config.holdout_looks:
        uncounted = f"{answers.looks} looks at its holdout cannot be; count them again, a person decides"
        return Finding(
            "retention", "undecided", f"experience {answers.experience}: {uncounted}", answers.experience
        )
    sentence = (
        f"experience {answers.experience}: its holdout was compared {answers.looks} times, and is "
        "exhausted: models chosen by it so often may fit it by luck; retire it (holdfast holdout retire)"
    )
    numbers = {"looks": answers.looks, "looks_left": 0}
    return Finding("retention", "undecided", sentence, answers.experience, numbers)


def _retained(answers: PairedAnswers, seen: Comparison | str, config: GateConfig) -> Finding:
    """The finding of one past holdout, with the looks at it that are left."""
    if isinstance(seen, str):
        return Finding(
            "retention", "undecided", f"experience {answers.experience}: {seen}", answers.experience
        )
    answer, sentence, more = _judge_retention(seen, near_duplicates=answers.near_duplicates)
    late, looks = _looks_left(answers.looks, config.holdout_looks)
    numbers = seen.numbers({**more, **looks} if more else looks)
    return Finding("retention", answer, sentence + late, answers.experience, numbers)


@lru_cache(maxsize=4096)
def _looks_left(looks: int, limit: int) -> tuple[str, Mapping[str, float]]:
    """Looks at a holdout that are left after this one: in words, where they are few, and as numbers."""
    left = limit - looks - 1
    late = f"; {left} of {limit} looks at it are left" if left < limit * _LATE else ""
    return late, {"looks": looks + 1, "looks_left": left}


_LATE = 0.2
"""Findings report the looks left once they are fewer than this share of all."""
_FEWEST_NEAR_DUPLICATES = 20
_RELABELLED = 0.25
"""Share of near duplicates relabelled, beyond the usual share, from which on a concept has changed."""


def _is_obsolete(near_duplicates: NearDuplicates, alpha: float) -> bool:
    if near_duplicates.records < _FEWEST_NEAR_DUPLICATES or not 0 <= near_duplicates.usual <= 1:
        return False
    share = near_duplicates.relabelled / near_duplicates.records
    p = float(stats.excess_p(share, near_duplicates.usual, sample=near_duplicates.records))
    return share - near_duplicates.usual > _RELABELLED and p <= alpha


def _obsolete(lost: str, name: str, near_duplicates: NearDuplicates) -> "_Judgement":
    """Undecided: the loss may be right, since the same inputs carry other labels now."""
    of = say.records(near_duplicates.records)
    relabelled = f"{near_duplicates.relabelled} of its {of} that have a near duplicate in the new data"
    sentence = (
        f"{lost}, but its holdout looks obsolete: {relabelled} carry another label there; if the new labels "
        f"are right, retire the holdout of {name} (holdfast holdout retire), else reject"
    )
    more = {
        "twins": near_duplicates.records,
        "relabelled": near_duplicates.relabelled,
        "relabelled_usual": near_duplicates.usual,
    }
    return "undecided", sentence, more


def learning(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Learning: one finding for each new experience, against the champion or the majority class."""
    if not evidence.new:
        nothing = (
            "no new experience was compared: without one there is nothing to promote; run the update again"
        )
        return (Finding("learning", "undecided", nothing),)
    judge = _judge_first if evidence.first else partial(_judge_learning, gain=config.learning_gain)
    found = _each(evidence.new, config, guard="learning", margin=config.learning_margin, judge=judge)
    if evidence.first and config.first_update == "review" and all(each.answer == "pass" for each in found):
        sentence = "this is the first version, and the pipeline asks that a person approves it"
        return (*found, Finding("first_update", "undecided", sentence))
    return found


def _each(
    answers: Sequence[PairedAnswers],
    config: GateConfig,
    *,
    guard: str,
    margin: float,
    judge: Callable[[Comparison], tuple[Answer, str, dict[str, float]]],
) -> tuple[Finding, ...]:
    """Compare every holdout, then judge each; those that cannot be compared are undecided."""
    seen = _compared(_with_margins(answers, margin), config)
    return tuple(_found(guard, each.experience, its, judge) for each, its in zip(answers, seen, strict=True))


def _with_margins(answers: Sequence[PairedAnswers], margin: float) -> list[tuple[PairedAnswers, float]]:
    return [(each, margin if each.margin is None else each.margin) for each in answers]


def _compared(answers: Sequence[tuple[PairedAnswers, float]], config: GateConfig) -> list[Comparison | str]:
    """The comparison of each holdout, or why there is none."""
    problems = [problem(each, margin) for each, margin in answers]
    sound = [each for each, wrong in zip(answers, problems, strict=True) if wrong is None]
    comparisons = iter(compare(sound, alpha=config.alpha, holdouts=len(answers)))
    return [next(comparisons) if wrong is None else wrong for wrong in problems]


_Judgement = tuple[Answer, str, dict[str, float]]


def _found(
    guard: str, experience: int, seen: Comparison | str, judge: Callable[[Comparison], _Judgement]
) -> Finding:
    if isinstance(seen, str):
        return Finding(guard, "undecided", f"experience {experience}: {seen}", experience)
    answer, sentence, more = judge(seen)
    return Finding(guard, answer, sentence, experience, seen.numbers(more))


def _pool_found(pool: Pool, seen: Comparison | str, config: GateConfig) -> Finding:
    """The one finding on all small past holdouts: too few even together, or judged as one holdout."""
    late, looks = _looks_left(pool.answers.looks, config.holdout_looks)
    numbers: dict[str, float] = {"pooled": len(pool.small), **looks}
    if isinstance(seen, str):
        numbers |= {"n": 0, "margin": pool.margin, "alpha": config.alpha}
    else:
        answer, sentence, more = _judge_retention(
            seen, _named(pool), near_duplicates=pool.answers.near_duplicates
        )
        numbers |= seen.numbers()
        if answer == "fail" or pool.n >= pool.floor:
            return Finding("retention", answer, sentence + late, numbers=numbers | more)
    few = f"all past holdouts that can be compared hold {say.records(pool.n)} together"
    sentence = (
        f"{say.experiences(pool.small)}: {few}, which cannot settle a margin of "
        f"{say.with_unit(pool.margin, digits=2)}; it takes at least {pool.floor}, {_UNTIL_THEN}"
    )
    return Finding("retention", "undecided", sentence, numbers=numbers | {"n_needed": pool.floor})


class _Named(NamedTuple):
    """The subject of a sentence: one holdout, or the pool of the small ones."""

    experiences: str
    aside: str = ""
    its: str = "its"
    together: str = ""


_ALONE = _Named("")
"""One holdout, which goes by its own experience."""


def _named(pool: Pool) -> _Named:
    together = " together" if len(pool.small) > 1 else ""
    if pool.added:
        together = f" together with {say.experiences(pool.added)}"
    its = "its" if len(pool.small) == 1 else "their"
    return _Named(say.experiences(pool.small), ", too small to be judged alone,", its, together)


def _judge_retention(
    seen: Comparison, named: _Named | None = None, *, near_duplicates: NearDuplicates | None = None
) -> _Judgement:
    """Judge one holdout, or the pool that is `named`."""
    named = named or _ALONE
    name, together = named.experiences or f"experience {seen.experience}", named.together
    subject = name + named.aside
    if not seen.baseline_right and seen.p_gain > seen.alpha:
        none = f"{name}: the champion answers none of {say.records(seen.n, 'holdout')} right"
        retire = "a person decides, or retires it (holdfast holdout retire)"
        return "undecided", f"{none}, so whether anything was lost is unknown; {retire}", {}
    if seen.p_noninferior <= seen.alpha:
        if seen.upper < 0 and say.points(-seen.upper) != "0":
            kept = f"{subject} gained{together}: at least {say.with_unit(-seen.upper)} better"
        else:
            worst = f"{say.at_worst(seen.upper, seen.margin)}, {say.allowed(seen.margin)} allowed"
            kept = f"{subject} kept {named.its} accuracy{together}: {worst}"
        return "pass", f"{kept} ({say.flips(seen.n, seen.lost, seen.gained)})", {}
    if seen.p_drop <= seen.alpha:
        lost = f"{subject} lost {say.between(seen.lower, seen.upper, seen.margin)}{together}"
        if near_duplicates is not None and _is_obsolete(near_duplicates, seen.alpha):
            return _obsolete(lost, name, near_duplicates)
        remedy = f"keep the champion, and replay more of {name}"
        return "fail", f"{lost}; {say.were_allowed(seen.margin)}: {remedy}", {}
    needed = seen.needed
    allowed = f"{say.allowed(seen.margin)} allowed"
    may = f"{subject} may have lost {say.up_to(seen.upper, seen.margin)}{together}, {allowed}"
    cannot = f"{say.records(seen.n, 'holdout')} cannot settle it, {say.about(needed)} would have"
    return "undecided", f"{may}; {cannot}; {_LESS_CHURN}", {"n_needed": needed}


_LESS_CHURN = "a person decides, or learn with less churn (more replay, smaller steps)"
"""Instead of waiting: a past holdout cannot grow."""


def _judge_learning(seen: Comparison, *, gain: float | None = None) -> _Judgement:
    """Not worse than the champion and, where a gain is asked, better by more than that."""
    name, allowed = f"experience {seen.experience}", say.allowed(seen.margin)
    if not seen.challenger_right and seen.p_noninferior <= seen.alpha:
        # No worse than a champion that answers nothing right either.
        none = f"{name} not learnt: none of {say.records(seen.n, 'holdout')} answered right"
        return "fail", f"{none}; keep the champion, and check the labels, or train longer", {}
    lost_too_much = seen.p_drop <= seen.alpha < seen.p_noninferior
    if gain is not None and not lost_too_much:
        return _judge_gain(seen, gain)
    if seen.p_noninferior <= seen.alpha:
        if seen.upper < 0 and say.points(-seen.upper) != "0":
            learnt = f"at least {say.with_unit(-seen.upper)} better than the champion"
        else:
            learnt = f"{say.at_worst(seen.upper, seen.margin)} against the champion, {allowed} allowed"
        return "pass", f"{name} learnt: {learnt} ({say.flips(seen.n, seen.lost, seen.gained)})", {}
    if seen.p_drop <= seen.alpha:
        lost = f"{name} lost {say.between(seen.lower, seen.upper, seen.margin)} against the champion"
        remedy = "keep the champion, and train longer or with another strategy"
        return "fail", f"{lost}; {say.were_allowed(seen.margin)}: {remedy}", {}
    return _unsettled(seen, f"{name} may have lost {say.up_to(seen.upper, seen.margin)} against the champion")


def _judge_gain(seen: Comparison, gain: float) -> _Judgement:
    """Better by more than `gain`? The limits of the loss with their sign turned are those of the gain."""
    name, asked = f"experience {seen.experience}", f"{say.allowed(gain)} asked"
    more: dict[str, float] = {"gain_asked": gain}
    flipped = say.flips(seen.n, seen.lost, seen.gained)
    if -seen.upper > gain:
        better = f"at least {say.with_unit(-seen.upper, digits=2)} better than the champion"
        return "pass", f"{name} learnt: {better}, {asked} ({flipped})", more
    if -seen.lower <= gain:
        most = f"at most {say.with_unit(max(-seen.lower, 0.0), digits=2)} better than the champion"
        remedy = "keep the champion, and train longer or with another strategy"
        return "fail", f"{name} learnt too little: {most}, {asked} ({flipped}): {remedy}", more
    least = f"{say.with_unit(abs(seen.upper), digits=2)} {'better' if seen.upper < 0 else 'worse'}"
    may = f"{name} may be between {least} and {say.with_unit(-seen.lower, digits=2)} better than the champion"
    needed = _needed_for_gain(seen, gain)
    cannot = f"{say.records(seen.n, 'holdout')} cannot settle it, {say.about(needed)} may; {_UNTIL_THEN}"
    return "undecided", f"{may}, {asked}; {cannot}", more | {"n_needed": needed}


def _needed_for_gain(seen: Comparison, gain: float) -> int:
    """Records that would distinguish the observed gain from the required one; at least 2n if not more.

    The limits lie one quantile of alpha apart from what was seen, and shrink with the root of n; to pass four
    times in five takes as much again for the power, here taken as half.
    """
    apart = abs(-seen.loss - gain)
    reach = (seen.upper - seen.lower) / 2
    planned = ceil(seen.n * (1.5 * reach / apart) ** 2) if apart > 0 else 0
    return planned if planned > seen.n else 2 * seen.n


def _judge_first(seen: Comparison) -> _Judgement:
    """Against the majority class: better (exact McNemar), not better (by its upper limit), or unclear."""
    name = f"experience {seen.experience}"
    right, majority = seen.challenger_right / seen.n, seen.baseline_right / seen.n
    _, best = (
        float(limit) for limit in stats.clopper_pearson(seen.challenger_right, seen.n, alpha=seen.alpha)
    )
    more = {"p_gain": seen.p_gain, "challenger_accuracy_upper": best}
    compared = (
        f"{say.percent(right)} answered right, {say.percent(majority)} by always saying the commonest class"
    )
    if seen.p_gain <= seen.alpha:
        return "pass", f"{name} learnt: {compared} ({say.records(seen.n)})", more
    if seen.p_drop <= seen.alpha or best <= majority < 1:
        return "fail", f"{name} not learnt: {compared}; check the labels, or train longer", more
    if majority == 1:
        alone = f"{name}: its holdout holds one class only, so no model can beat saying it always"
        return "undecided", f"{alone}; let a person decide, or cut the experience with more classes", more
    needed = seen.needed_for_difference
    short = f"{name}: {compared}; {say.records(seen.n, 'holdout')} cannot tell these apart"
    return "undecided", f"{short}, {say.about(needed)} may; {_UNTIL_THEN}", more | {"n_needed": needed}


_UNTIL_THEN = "until then a person decides"


def _unsettled(seen: Comparison, suspicion: str) -> _Judgement:
    """Too few records to say either; how many would be enough."""
    needed = seen.needed
    have, would = say.records(seen.n, "holdout"), f"{say.about(needed)} would, {_UNTIL_THEN}"
    more: dict[str, float] = {"n_needed": needed}
    if seen.n < int(stats.floor_n(seen.margin, seen.alpha)):
        cannot = f"{have} cannot settle a margin of {say.with_unit(seen.margin, digits=2)}"
        return "undecided", f"experience {seen.experience}: {cannot}; {would}", more
    allowed = f"{say.allowed(seen.margin)} allowed"
    return "undecided", f"{suspicion}, {allowed}; {have} cannot settle it, {would}", more
