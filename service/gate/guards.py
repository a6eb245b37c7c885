"""The guards: each asks one question of the evidence and answers with findings.

Too little, missing or broken evidence is undecided, with the reason; never a pass.
"""

from collections.abc import Callable, Sequence

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import Answer, DataEvidence, Evidence, Finding, GateConfig, PairedAnswers
from service.gate.comparisons import Comparison, compare, problem


def data(evidence: DataEvidence, config: GateConfig) -> tuple[Finding, ...]:
    """Can this batch be learnt from? Values, then anomalies and labels against earlier batches.

    Anomalies come first: where the features are broken, the labels disagree as a consequence.
    """
    values = _values(evidence)
    if values.answer != "pass" or not evidence.has_reference:
        return (values,)
    labels = _rate(
        evidence,
        config,
        guard="labels",
        rate=evidence.label_error_rate,
        reference=evidence.reference_label_error_rate,
        excess=config.label_error_excess,
    )
    anomalies = _rate(
        evidence,
        config,
        guard="anomalies",
        rate=evidence.anomaly_rate,
        reference=evidence.reference_anomaly_rate,
        excess=config.anomaly_excess,
    )
    return (values, anomalies, labels)


def retention(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Was anything forgotten? One finding a past holdout, challenger against champion.

    All must pass, each at alpha, so P(promote | some holdout truly lost its margin) <= alpha without any
    correction (an intersection-union test: Berger, Technometrics 24:295, 1982). The alarm is the opposite,
    "some holdout lost", so its p-values are adjusted (Holm).
    """
    return _each(evidence.past, config, guard="retention", margin=config.margin, judge=_judge_retention)


def learning(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Was the new experience learnt? One finding a new experience, against champion or majority class."""
    if not evidence.new:
        nothing = (
            "no new experience was compared: without one there is nothing to promote; run the update again"
        )
        return (Finding("learning", "undecided", nothing),)
    judge = _judge_first if evidence.first else _judge_learning
    found = _each(evidence.new, config, guard="learning", margin=config.learning_margin, judge=judge)
    if evidence.first and config.first_update == "review" and all(each.answer == "pass" for each in found):
        sentence = "this is the first version, and the pipeline asks that a person approves it"
        return (*found, Finding("first_update", "undecided", sentence))
    return found


def _values(evidence: DataEvidence) -> Finding:
    numbers = {"records": evidence.records, "nonfinite_records": evidence.nonfinite_records}
    if evidence.misshapen is not None:
        sentence = (
            f"values: {evidence.misshapen}; the batch was not learnt: correct the source or the pipeline"
        )
        return Finding("values", "fail", sentence, numbers=numbers)
    if evidence.records <= 0:
        return Finding("values", "undecided", "values: the batch is empty; wait for records", numbers=numbers)
    if evidence.nonfinite_records:
        bad = f"{evidence.nonfinite_records} of {say.records(evidence.records)}"
        sentence = (
            f"values: {bad} hold a NaN or an infinite number; the batch was not learnt: correct the source"
        )
        return Finding("values", "fail", sentence, numbers=numbers)
    sentence = f"values: all {say.records(evidence.records)} are whole"
    if evidence.records == 1:
        sentence = "values: the only record is whole"
    if not evidence.has_reference:
        sentence += "; labels and anomalies have nothing to be compared with yet"
    return Finding("values", "pass", sentence, numbers=numbers)


_RATE_WORDS = {
    "labels": ("disagree with their neighbours", "check how they were labelled"),
    "anomalies": ("look like no other record", "check the features"),
}
"""Of each rate: what such records do, and what a person should do about them."""


def _rate(
    evidence: DataEvidence, config: GateConfig, *, guard: str, rate: float, reference: float, excess: float
) -> Finding:
    """Does a rate exceed the reference by more than allowed, and by more than chance?"""
    numbers = {"sample": evidence.sample, "rate": rate, "reference_rate": reference, "excess_allowed": excess}
    described, remedy = _RATE_WORDS[guard]
    if evidence.sample <= 0:
        sentence = (
            f"{guard}: {say.records(evidence.records)} are too few to compare with earlier batches; "
            "merge the batch with the next, or let a person look at it"
        )
        return Finding(guard, "undecided", sentence, numbers=numbers)
    if not (0 <= rate <= 1 and 0 <= reference <= 1):
        sentence = f"{guard}: the rates are not numbers between 0 and 1; screen the batch again"
        return Finding(guard, "undecided", sentence, numbers=numbers)
    p_excess = float(stats.excess_p(rate, reference, sample=evidence.sample))
    numbers |= {"p_excess": p_excess, "alpha": config.alpha}
    compared = f"{say.percent(rate)} of the batch {described}, {say.percent(reference)} did before"
    if rate - reference > excess and p_excess <= config.alpha:
        return Finding(
            guard, "fail", f"{guard}: {compared}; the batch was not learnt: {remedy}", numbers=numbers
        )
    return Finding(guard, "pass", f"{guard}: {compared}", numbers=numbers)


def _each(
    answers: Sequence[PairedAnswers],
    config: GateConfig,
    *,
    guard: str,
    margin: float,
    judge: Callable[[Comparison], tuple[Answer, str, dict[str, float]]],
) -> tuple[Finding, ...]:
    """Compare every holdout, then judge each; those that cannot be compared are undecided."""
    margins = [margin if each.margin is None else each.margin for each in answers]
    problems = [problem(each, its) for each, its in zip(answers, margins, strict=True)]
    sound = [(a, m) for a, m, wrong in zip(answers, margins, problems, strict=True) if wrong is None]
    compared = iter(compare(sound, alpha=config.alpha, holdouts=len(answers)))
    findings = []
    for each, wrong in zip(answers, problems, strict=True):
        if wrong is not None:
            sentence = f"experience {each.experience}: {wrong}"
            findings.append(Finding(guard, "undecided", sentence, each.experience))
            continue
        comparison = next(compared)
        answer, sentence, more = judge(comparison)
        findings.append(Finding(guard, answer, sentence, each.experience, comparison.numbers() | more))
    return tuple(findings)


_Judgement = tuple[Answer, str, dict[str, float]]


def _judge_retention(seen: Comparison) -> _Judgement:
    name, allowed = f"experience {seen.experience}", say.points(seen.margin)
    if seen.p_noninferior <= seen.alpha:
        if seen.upper < 0 and say.points(-seen.upper) != "0":
            kept = f"{name} gained: at least {say.with_unit(-seen.upper)} better"
        else:
            kept = f"{name} kept its accuracy: {say.at_worst(seen.upper, seen.margin)}, {allowed} allowed"
        return "pass", f"{kept} ({say.flips(seen.n, seen.lost, seen.gained)})", {}
    if seen.p_drop <= seen.alpha:
        lost = f"{name} lost {say.between(seen.lower, seen.upper)}; {say.were_allowed(seen.margin)}"
        remedy = f"keep the champion, and replay more of experience {seen.experience}"
        return "fail", f"{lost}: {remedy}", {}
    return _unsettled(seen, f"{name} may have lost {say.up_to(seen.upper)}")


def _judge_learning(seen: Comparison) -> _Judgement:
    name, allowed = f"experience {seen.experience}", say.points(seen.margin)
    if seen.p_noninferior <= seen.alpha:
        if seen.upper < 0 and say.points(-seen.upper) != "0":
            learnt = f"at least {say.with_unit(-seen.upper)} better than the champion"
        else:
            learnt = f"{say.at_worst(seen.upper, seen.margin)} against the champion, {allowed} allowed"
        return "pass", f"{name} learnt: {learnt} ({say.flips(seen.n, seen.lost, seen.gained)})", {}
    if seen.p_drop <= seen.alpha:
        lost = f"{name} lost {say.between(seen.lower, seen.upper)} against the champion"
        remedy = "keep the champion, and train longer or with another strategy"
        return "fail", f"{lost}; {say.were_allowed(seen.margin)}: {remedy}", {}
    return _unsettled(seen, f"{name} may have lost {say.up_to(seen.upper)} against the champion")


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
    needed = seen.needed_for_difference()
    short = f"{name}: {compared}; {say.records(seen.n, 'holdout')} cannot tell these apart"
    return "undecided", f"{short}, {say.about(needed)} may; {_UNTIL_THEN}", more | {"n_needed": needed}


_UNTIL_THEN = "until then a person decides"


def _unsettled(seen: Comparison, suspicion: str) -> _Judgement:
    """Too few records to say either; how many would be enough."""
    needed = seen.needed()
    have, would = say.records(seen.n, "holdout"), f"{say.about(needed)} would, {_UNTIL_THEN}"
    more: dict[str, float] = {"n_needed": needed}
    if seen.n < int(stats.floor_n(seen.margin, seen.alpha)):
        cannot = f"{have} cannot settle a margin of {say.with_unit(seen.margin)}"
        return "undecided", f"experience {seen.experience}: {cannot}; {would}", more
    allowed = f"{say.points(seen.margin)} allowed"
    return "undecided", f"{suspicion}, {allowed}; {have} cannot settle it, {would}", more
