"""Budget guard: the total loss of an experience since it was learnt, judged on its sealed audit part.

A step margin alone lets small losses add up: each update may lose almost all of it. So each challenger that
would be promoted is also compared with the anchors, the versions right after each experience was learnt. Its
error rate is shared out over a planned number of looks, and the first look that does not pass ends them:
earlier looks revealed nothing but that they passed, so the sum of their error rates is a bound (the
mirror image of the first-change mode of Renggli et al., "Continuous integration of machine learning models
with ease.ml/ci", MLSys 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import BUDGET, Audit, Evidence, Finding, GateConfig, Note, PairedAnswers
from service.gate.comparisons import Comparison, compare, compare_counts, counts, problem, rows

FIRST_CHURN, FIRST_POWER = 0.06, 0.9
"""An audit is made from so many sealed records on that a champion which lost nothing passes with this chance
where this share of its answers differs from the anchor's, as it does after an update."""
LASTING_CHURN, LASTING_POWER = 0.18, 0.9995
"""The same for an experience to be audited alone, over all planned looks. Two models that are right nine
times in ten differ in 2 * 0.9 * 0.1 of their answers, which flips back and forth reach in a few updates; and
every look at every experience must pass."""


def frozen(evidence: Evidence, _config: GateConfig) -> tuple[Finding, ...]:
    """Undecided while promotion is frozen by an earlier audit."""
    if evidence.freeze is None:
        return ()
    stopped = f"promotion is frozen: the audit of update {evidence.freeze.update_id} did not pass"
    return (
        Finding(
            "freeze", "undecided", f"{stopped}; {_remedy(evidence.freeze.last_audited, evidence.champion)}"
        ),
    )


def budget(evidence: Evidence, config: GateConfig) -> tuple[Finding | Note, ...]:
    """Judges whether the challenger lost more than the budget since each experience was learnt.

    Experiences with sealed records enough are judged alone; the others with as many neighbours as make
    enough, or all as one, which promises their common loss only, so each of those is alarmed on too. Where
    even all are too few for a challenger that lost nothing to pass, none need pass: a note says so, and only
    a loss that is proven stops a promotion.
    """
    if evidence.audit is None:
        return ()
    sealed, notes = _usable(evidence.audit, config)
    if not sealed:
        return notes
    broken = [(each, wrong) for each in sealed if (wrong := _problem(each, config))]
    if broken:
        return (*(_broken(each, wrong) for each, wrong in broken), *notes)
    alpha = config.alpha / config.audits
    # A person who lets a holdout lose more at once lets it lose as much in all.
    pairs = [
        (each, config.budget if each.margin is None else max(config.budget, each.margin)) for each in sealed
    ]
    groups = _groups(pairs, budget=config.budget, alpha=alpha)
    remedy = _remedy(evidence.audit.last_audited, evidence.champion)
    needed, last = records_needed(config.budget, alpha), groups[-1] if groups else None
    if last and last.small and last.n < needed:
        groups, notes = groups[:-1], (*notes, _too_few(last.n, needed))
    # A group of one is judged as that one already; all others may prove a loss of their own.
    judged = {group.experience for group in groups}
    others = [pair for pair in pairs if pair[0].experience not in judged]
    few = [each.experience for each, margin in others if margin > config.budget]
    if few:
        notes = (*notes, _too_few_for_their_margin(few))
    return (*_looks(groups, config, remedy), *_alarms(others, config, remedy), *notes)


def records_needed(budget: float, alpha: float) -> int:
    """Sealed records in all from which on a look at `alpha` is made."""
    return int(stats.needed_n(budget, alpha, churn=FIRST_CHURN, power=FIRST_POWER))


@lru_cache(maxsize=1024)
def records_alone(budget: float, alpha: float) -> int:
    """Sealed records of one experience from which on it is judged alone."""
    return int(stats.needed_n(budget, alpha, churn=LASTING_CHURN, power=LASTING_POWER))


_Pair = tuple[PairedAnswers, float]


def _is_small(answers: PairedAnswers, margin: float, alpha: float) -> bool:
    return answers.n < records_alone(margin, alpha)


@dataclass(frozen=True)
class _Group:
    """Experiences judged as one: one with enough sealed records, or several with too few."""

    members: tuple[PairedAnswers, ...]
    margin: float
    small: int = 0
    """Of these, the ones with too few records to be judged alone."""

    @property
    def n(self) -> int:
        return sum(each.n for each in self.members)

    @property
    def experience(self) -> int | None:
        return self.members[0].experience if len(self.members) == 1 else None

    @property
    def name(self) -> str:
        return say.experiences(sorted({each.experience for each in self.members}))


def _groups(pairs: Sequence[_Pair], *, budget: float, alpha: float) -> list[_Group]:
    """Experiences with enough records alone; the others grouped with their neighbours until they have enough.

    While all the others are too few together, the smallest of those with enough join them. What has a wider
    margin of its own is judged at it alone, if at all: from fewer records on, since it cannot be pooled.
    """
    wider = [(each, margin) for each, margin in pairs if margin > budget]
    alone = [_Group((each,), margin) for each, margin in wider if each.n >= records_needed(margin, alpha)]
    own = [pair for pair in pairs if pair[1] <= budget]
    large = [_Group((each,), margin) for each, margin in own if not _is_small(each, margin, alpha)]
    small = [each for each, margin in own if _is_small(each, margin, alpha)]
    enough = records_alone(budget, alpha)
    groups: list[list[PairedAnswers]] = []
    for each in sorted(small, key=lambda each: each.experience):
        if not groups or sum(its.n for its in groups[-1]) >= enough:
            groups.append([])
        groups[-1].append(each)
    if len(groups) > 1 and sum(its.n for its in groups[-1]) < enough:
        left_over = groups.pop()
        groups[-1] += left_over
    sizes = [len(each) for each in groups]
    if len(groups) == 1:
        for full in sorted(large, key=lambda each: each.n):
            if sum(its.n for its in groups[0]) < enough:
                groups[0] += full.members
    return [*alone, *large] + [
        _Group(tuple(each), budget, size) for each, size in zip(groups, sizes, strict=True)
    ]


def _looks(groups: Sequence[_Group], config: GateConfig, remedy: str) -> list[Finding]:
    """One finding for each group."""
    if not groups:
        return []
    members = [each for group in groups for each in group.members]
    sizes = [len(group.members) for group in groups]
    counted = np.add.reduceat(counts(members), np.cumsum([0, *sizes[:-1]]), axis=1)
    seen = compare_counts(
        counted,
        experiences=[group.members[0].experience for group in groups],
        margins=np.array([group.margin for group in groups]),
        alpha=config.alpha / config.audits,
        holdouts=len(groups),
    )
    found = []
    for group, its in zip(groups, rows(seen), strict=True):
        look = max(each.looks for each in group.members) + 1
        finding = _judge(its, group.name, look=look, config=config, remedy=remedy)
        if group.experience is None:
            finding = finding._replace(experience=None, numbers={**finding.numbers, "pooled": group.small})
        found.append(finding)
    return found


def _alarms(small: Sequence[_Pair], config: GateConfig, remedy: str) -> list[Finding]:
    """Findings on experiences with too few sealed records that nevertheless prove a loss of the budget."""
    if not small:
        return []
    # Bonferroni: the chance of any false alarm among them is that of one look at most.
    alpha = config.alpha / config.audits / len(small)
    n, before, after, both = counts([each for each, _ in small])
    lower, _ = stats.loss_limits(before - both, after - both, n=n, alpha=alpha)
    lost = [pair for pair, least in zip(small, lower.tolist(), strict=True) if least > pair[1]]
    return [
        _lost(its, say.experiences([each.experience]), each.looks + 1, config, remedy)
        for (each, _), its in zip(lost, compare(lost, alpha=alpha, holdouts=len(small)), strict=True)
    ]


def _usable(audit: Audit, config: GateConfig) -> tuple[list[PairedAnswers], tuple[Note, ...]]:
    """The answers to audit, and notes on the others: nothing is sealed of them, or no look is left."""
    filled = [each for each in audit.answers if not each.is_empty]
    exhausted = [each for each in filled if each.looks >= config.audits]
    unsealed = [each.experience for each in audit.answers if each.is_empty]
    notes = []
    if unsealed and filled:
        sentence = (
            f"budget: nothing is sealed of {say.experiences(unsealed)}, so only the step margin watches"
        )
        notes.append(Note(BUDGET, f"{sentence} what is lost there"))
    if exhausted:
        subject = f"the sealed records of {say.experiences([each.experience for each in exhausted])}"
        sentence = (
            f"budget: {subject} were looked at {config.audits} times, as planned, and are no evidence any "
            "more; from now on only the step margin watches what is lost there"
        )
        notes.append(Note(BUDGET, sentence, {"worn_out": len(exhausted)}))
    usable = [each for each in filled if not each.looks >= config.audits]
    if not usable and not exhausted:
        notes.append(
            Note(BUDGET, "budget: nothing is sealed (split.audit), so nobody sees small losses add up")
        )
    return usable, tuple(notes)


def _problem(answers: PairedAnswers, config: GateConfig) -> str | None:
    if not answers.looks >= 0:
        return f"{answers.looks} looks at its sealed records cannot be; count them again"
    return problem(answers, config.budget)


def _broken(answers: PairedAnswers, wrong: str) -> Finding:
    subject = f"experience {answers.experience}, since it was learnt"
    wrong = wrong.replace("the baseline's", "its anchor's").replace("the baseline", "its anchor")
    return Finding(BUDGET, "undecided", f"{subject}: {wrong}", answers.experience)


def _too_few(n: int, needed: int) -> Note:
    sentence = (
        f"budget: {say.records(n, 'sealed')} so far, an audit takes {say.about(needed)}; "
        "until then only the step margin watches what is lost"
    )
    return Note(BUDGET, sentence, {"n": n, "n_needed": needed})


def _too_few_for_their_margin(experiences: Sequence[int]) -> Note:
    subject = f"budget: the sealed records of {say.experiences(experiences)} are too few for a margin of "
    its = "its" if len(experiences) == 1 else "their"
    return Note(BUDGET, f"{subject}{its} own; only a loss that they prove stops a promotion")


def _judge(seen: Comparison, name: str, *, look: int, config: GateConfig, remedy: str) -> Finding:
    numbers, looked = _counted(seen, look, config)
    allowed = f"{say.allowed(seen.margin)} allowed"
    if not seen.baseline_right and seen.p_gain > seen.alpha:
        none = f"{name}: the anchor answers none of {say.records(seen.n, 'sealed')} right"
        sentence = f"{none}, so what was lost is unknown; promotion is frozen: {remedy}"
        return Finding(BUDGET, "undecided", sentence, seen.experience, numbers)
    if seen.p_noninferior <= seen.alpha:
        worst = say.at_worst(seen.upper, seen.margin)
        sentence = f"{name} within the budget since learnt: {worst}, {allowed} {looked}"
        return Finding(BUDGET, "pass", sentence, seen.experience, numbers)
    if seen.p_drop <= seen.alpha:
        return _lost(seen, name, look, config, remedy)
    may = f"{name} may have lost {say.up_to(seen.upper, seen.margin)} since learnt, {allowed} {looked}"
    sentence = f"{may}; promotion is frozen: {remedy}"
    return Finding(BUDGET, "undecided", sentence, seen.experience, numbers)


def _lost(seen: Comparison, name: str, look: int, config: GateConfig, remedy: str) -> Finding:
    numbers, looked = _counted(seen, look, config)
    lost = f"{name} lost {say.between(seen.lower, seen.upper, seen.margin)} since learnt"
    sentence = f"{lost}, {say.allowed(seen.margin)} allowed {looked}; promotion is frozen: {remedy}"
    return Finding(BUDGET, "fail", sentence, seen.experience, numbers)


def _counted(seen: Comparison, look: int, config: GateConfig) -> tuple[dict[str, float], str]:
    """A look as numbers and in words."""
    counted = f"{say.records(seen.n, 'sealed')}, {seen.lost} got worse, {seen.gained} got better"
    numbers = seen.numbers({"look": look, "looks_planned": config.audits})
    return numbers, f"({counted}; look {look} of {config.audits})"


def _remedy(last_audited: int | None, champion: int | None) -> str:
    lift = "lift the freeze with a reason (holdfast unfreeze)"
    if last_audited is None:
        return f"no version has passed an audit yet; see what was lost, then {lift}"
    if last_audited == champion:
        return f"version {champion}, the last whose audit passed, stays; see what was lost, then {lift}"
    return f"roll back to version {last_audited}, the last whose audit passed (holdfast rollback), or {lift}"
