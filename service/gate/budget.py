"""The budget: what an experience may lose in all since it was learnt, judged on its sealed audit part.

A step margin alone lets small losses add up: each update may lose almost all of it. So each challenger that
would be promoted is also compared with the anchors, the versions right after each experience was learnt. Its
error rate is shared out over a planned number of looks, and the first look that does not pass ends them:
all that earlier looks told anybody is that they passed, so the sum of their error rates is a bound (the
mirror image of the first-change mode of Renggli et al., "Continuous integration of machine learning models
with ease.ml/ci", MLSys 2019).
"""

from dataclasses import replace

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import BUDGET, Audit, Evidence, Finding, GateConfig, Note, PairedAnswers
from service.gate.comparisons import Comparison, Pool, compare, is_small, pooled, problem

PLANNED_CHURN = 0.06
"""Share of answers that flip, as an audit is planned."""
PLANNED_POWER = 0.9
"""Chance that an audit passes where nothing was lost; with fewer records than that takes, none is made."""


def frozen(evidence: Evidence, _config: GateConfig) -> tuple[Finding, ...]:
    """Has an earlier audit stopped promotion?"""
    if evidence.freeze is None:
        return ()
    stopped = f"promotion is frozen: the audit of update {evidence.freeze.update_id} did not pass"
    return (
        Finding(
            "freeze", "undecided", f"{stopped}; {_remedy(evidence.freeze.last_audited, evidence.champion)}"
        ),
    )


def budget(evidence: Evidence, config: GateConfig) -> tuple[Finding | Note, ...]:
    """Has the challenger lost more than the budget since each experience was learnt?

    Experiences with sealed records enough are judged alone, the others as one. Where even all of them are too
    few for a challenger that lost nothing to pass, there is no look and nothing is spent: a note says so.
    """
    if evidence.audit is None:
        return ()
    sealed, notes = _usable(evidence.audit, config)
    if not sealed:
        return notes
    alpha = config.alpha / config.audits
    broken = [(each, wrong) for each in sealed if (wrong := problem(each, config.budget))]
    if broken:
        return (*(_broken(each, wrong) for each, wrong in broken), *notes)
    needed = records_needed(config)
    # A person who lets a holdout lose more at once lets it lose as much in all; with few sealed records it is
    # audited with the others all the same, at the budget.
    pairs = [
        (each, config.budget)
        if each.margin is None
        else (replace(each, margin=None), max(config.budget, each.margin))
        for each in sealed
    ]
    pool = pooled(pairs, enough=lambda _: needed, margin=config.budget)
    if pool and pool.n < needed:
        return (*notes, _too_few(pool, config))
    alone = [pair for pair in pairs if not is_small(*pair, enough=lambda _: needed)]
    judged = [*alone, (pool.answers, config.budget)] if pool else alone
    seen = compare(judged, alpha=alpha, holdouts=len(judged))
    named = [say.experiences([each.experience]) for each, _ in alone]
    if pool:
        named.append(say.experiences(sorted({*pool.small, *pool.added})))
    looks = [each.looks for each, _ in alone]
    if pool:
        looks.append(max(each.looks for each in sealed if each.experience in {*pool.small, *pool.added}))
    remedy = _remedy(evidence.audit.last_audited, evidence.champion)
    found = [
        _judge(its, name, look=look + 1, config=config, remedy=remedy)
        for its, name, look in zip(seen, named, looks, strict=True)
    ]
    if pool:
        numbers = {**found[-1].numbers, "pooled": len(pool.small)}
        found[-1] = found[-1]._replace(experience=None, numbers=numbers)
    return (*found, *notes)


def records_needed(config: GateConfig) -> int:
    """Sealed records that an audit takes: so many that a harmless challenger passes nine times in ten."""
    alpha = config.alpha / config.audits
    return int(stats.needed_n(config.budget, alpha, churn=PLANNED_CHURN, power=PLANNED_POWER))


def _usable(audit: Audit, config: GateConfig) -> tuple[list[PairedAnswers], tuple[Note, ...]]:
    """What can be looked at, and notes on what cannot: nothing is sealed of it, or it is worn out."""
    filled = [each for each in audit.answers if not each.is_empty]
    worn = [each for each in filled if each.looks >= config.audits]
    notes = []
    if worn:
        subject = f"the sealed records of {say.experiences([each.experience for each in worn])}"
        sentence = (
            f"budget: {subject} were looked at {config.audits} times, as planned, and are no evidence any "
            "more; from now on only the step margin watches what is lost there"
        )
        notes.append(Note(BUDGET, sentence, {"worn_out": len(worn)}))
    usable = [each for each in filled if each.looks < config.audits]
    if not usable and not worn:
        notes.append(
            Note(BUDGET, "budget: nothing is sealed (split.audit), so nobody sees small losses add up")
        )
    return usable, tuple(notes)


def _broken(answers: PairedAnswers, wrong: str) -> Finding:
    subject = f"experience {answers.experience}, since it was learnt"
    wrong = wrong.replace("the baseline's", "its anchor's").replace("the baseline", "its anchor")
    return Finding(BUDGET, "undecided", f"{subject}: {wrong}", answers.experience)


def _too_few(pool: Pool, config: GateConfig) -> Note:
    needed = records_needed(config)
    sentence = (
        f"budget: {say.records(pool.n, 'sealed')} so far, an audit takes {say.about(needed)}; "
        "until then only the step margin watches what is lost"
    )
    return Note(BUDGET, sentence, {"n": pool.n, "n_needed": needed})


def _judge(seen: Comparison, name: str, *, look: int, config: GateConfig, remedy: str) -> Finding:
    numbers = seen.numbers() | {"look": look, "looks_planned": config.audits}
    counted = f"{say.records(seen.n, 'sealed')}, {seen.lost} got worse, {seen.gained} got better"
    looked = f"({counted}; look {look} of {config.audits})"
    allowed = f"{say.allowed(seen.margin)} allowed"
    if seen.p_noninferior <= seen.alpha:
        worst = say.at_worst(seen.upper, seen.margin)
        sentence = f"{name} within the budget since learnt: {worst}, {allowed} {looked}"
        return Finding(BUDGET, "pass", sentence, seen.experience, numbers)
    if seen.p_drop <= seen.alpha:
        lost = f"{name} lost {say.between(seen.lower, seen.upper)} since learnt, {allowed} {looked}"
        sentence = f"{lost}; promotion is frozen: {remedy}"
        return Finding(BUDGET, "fail", sentence, seen.experience, numbers)
    may = f"{name} may have lost {say.up_to(seen.upper, seen.margin)} since learnt, {allowed} {looked}"
    sentence = f"{may}; promotion is frozen: {remedy}"
    return Finding(BUDGET, "undecided", sentence, seen.experience, numbers)


def _remedy(last_audited: int | None, champion: int | None) -> str:
    lift = "lift the freeze with a reason (holdfast unfreeze)"
    if last_audited is None:
        return f"no version has passed an audit yet; see what was lost, then {lift}"
    if last_audited == champion:
        return f"version {champion}, the last whose audit passed, stays; see what was lost, then {lift}"
    return f"roll back to version {last_audited}, the last whose audit passed (holdfast rollback), or {lift}"
