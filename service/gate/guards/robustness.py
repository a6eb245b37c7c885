"""Robustness guard: does the challenger answer disturbed records as well as the champion?"""

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import Disturbed, Evidence, Finding, GateConfig, PairedAnswers
from service.gate.comparisons import Comparison, compare, problem

_MEANS = {
    "fgsm": "one step against the model",
    "pgd": "ten steps against the model",
}


def robustness(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """One finding for each attack or corruption: did accuracy under it fall? All must pass.

    The bits are paired record by record, so a few hundred records settle five points.
    """
    margin = config.robustness
    if margin is None or evidence.first:
        return ()
    if not evidence.disturbed:
        nothing = "robustness: no disturbed record was answered; run the update again"
        return (Finding("robustness", "undecided", nothing),)
    missing: list[str] = [
        attack
        for attack in config.robustness_against
        if attack != "corruptions" and all(each.way != attack for each in evidence.disturbed)
    ]
    if "corruptions" in config.robustness_against and all(
        each.way in ("fgsm", "pgd") for each in evidence.disturbed
    ):
        missing.append("corruptions")
    found = [
        Finding(
            "robustness", "undecided", f"robustness: {each} was asked and not tried; run the update again"
        )
        for each in missing
    ]
    pairs = [PairedAnswers(0, each.baseline, each.challenger) for each in evidence.disturbed]
    wrong = [problem(each, margin) for each in pairs]
    sound = [(each, margin) for each, why in zip(pairs, wrong, strict=True) if why is None]
    seen = iter(compare(sound, alpha=config.alpha, holdouts=len(pairs)))
    for each, why in zip(evidence.disturbed, wrong, strict=True):
        if why is None:
            found.append(_judge(each, next(seen)))
        else:
            found.append(Finding("robustness", "undecided", f"{_named(each)}: {why}"))
    return tuple(found)


def _named(each: Disturbed) -> str:
    return f"records disturbed by {each.way}" + (f" ({_MEANS[each.way]})" if each.way in _MEANS else "")


def _judge(each: Disturbed, seen: Comparison) -> Finding:
    name, numbers, allowed = _named(each), seen.numbers(), say.allowed(seen.margin)
    right = f"{say.percent(seen.challenger_right / seen.n)} answered right"
    before = f"{say.percent(seen.baseline_right / seen.n)} by the champion"
    if not seen.baseline_right and not seen.challenger_right:
        none = f"{name}: neither model answers any of {say.records(seen.n)} right, so nothing can be compared"
        remedy = "disturb less (robustness_epsilon), or a person decides"
        return Finding("robustness", "undecided", f"{none}; {remedy}", numbers=numbers)
    if seen.p_noninferior <= seen.alpha:
        worst = say.at_worst(seen.upper, seen.margin)
        sentence = f"{name}: {right}, {before}; {worst}, {allowed} allowed ({say.records(seen.n)})"
        return Finding("robustness", "pass", sentence, numbers=numbers)
    if seen.p_drop <= seen.alpha:
        lost = f"{name}: {right}, {before}; lost {say.between(seen.lower, seen.upper, seen.margin)}"
        remedy = "keep the champion, and learn with augmentation of that kind"
        sentence = f"{lost}, {allowed} allowed: {remedy}"
        return Finding("robustness", "fail", sentence, numbers=numbers)
    needed = max(seen.needed, int(stats.floor_n(seen.margin, seen.alpha)))
    may = f"{name}: {right}, {before}; may have lost {say.up_to(seen.upper, seen.margin)}, {allowed} allowed"
    cannot = f"{say.records(seen.n)} cannot settle it, {say.about(needed)} would"
    remedy = "raise robustness_records, or a person decides"
    return Finding(
        "robustness", "undecided", f"{may}; {cannot}; {remedy}", numbers=numbers | {"n_needed": needed}
    )
