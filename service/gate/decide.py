"""From evidence to verdict: run the guards, fold their findings. Same evidence, same verdict."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

import numpy as np

from service.gate import disputes, stats
from service.gate import sentences as say
from service.gate.base import (
    MOST_WORST,
    Audit,
    DataEvidence,
    Evidence,
    Finding,
    GateConfig,
    Note,
    Outcome,
    Verdict,
    WorstRecord,
)
from service.gate.blocks import history_of
from service.gate.guards import batch as batch_guards
from service.gate.guards import budget, classes, cost, groups, quality, robustness, seeds
from service.gate.guards import golden as golden_guard
from service.gate.guards import learning as learning_guard
from service.gate.guards import retention as retention_guard

Guard = Callable[[Evidence, GateConfig], tuple[Finding | Note, ...]]


def _data(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    if evidence.data_findings:
        return evidence.data_findings
    return batch_guards.data(evidence.data, config.for_shift(evidence.shift))


def _shift_noted(evidence: Evidence, _config: GateConfig) -> tuple[Note, ...]:
    return () if evidence.shift is None else (batch_guards.shift_note(evidence.shift),)


BEFORE_LEARNING: tuple[tuple[str, Guard], ...] = (("data", _data), ("shift", _shift_noted))
"""Guards of the batch itself, and notes on it."""
AFTER_LEARNING: tuple[tuple[str, Guard], ...] = (
    ("retention", retention_guard.retention),
    ("learning", learning_guard.learning),
    ("rare classes", classes.rare_classes),
    ("golden", golden_guard.golden),
    ("freeze", budget.frozen),
    ("groups", groups.groups),
    ("negative flips", quality.negative_flips),
    ("calibration", quality.calibration),
    ("metrics", quality.metrics),
    ("robustness", robustness.robustness),
    ("running", cost.running),
    ("seeds", seeds.seeds),
    ("shift", batch_guards.shift),
)
"""Guards of the challenger. A new guard is one function and one line here."""
SEALED: tuple[tuple[str, Guard], ...] = (("budget", budget.budget),)
"""Guards that look at sealed records, and so only at a challenger that would be promoted."""


def decide(
    evidence: Evidence,
    config: GateConfig,
    *,
    before: Sequence[tuple[str, Guard]] = BEFORE_LEARNING,
    after: Sequence[tuple[str, Guard]] = AFTER_LEARNING,
    sealed: Sequence[tuple[str, Guard]] = SEALED,
) -> Verdict:
    """Promote, review or reject: any fail rejects, else anything undecided goes to review.

    A rejection by past holdouts that also stopped the update before becomes a question (`gate.disputes`).
    Promotion needs a pass from every finding, and at least one finding on the challenger itself.
    """
    findings, notes = _run(before, evidence, config)
    if evidence.learnt:
        try:
            on_challenger, more = _run(after, evidence, _of_attempt(config, evidence.attempt))
        except (TypeError, ValueError) as error:
            on_challenger, more = [_nothing(str(error))], []
        on_challenger += _twice(evidence)
        if not on_challenger:
            on_challenger = [_nothing("no guard looked at the challenger")]
        findings, notes = findings + on_challenger, notes + more
        if _fold(findings) == "promote":
            of_sealed, more = _run(sealed, evidence, config)
            findings, notes = findings + of_sealed, notes + more
    elif all(finding.answer != "fail" for finding in findings):
        findings.append(
            _nothing("the batch was stopped before it was learnt, yet the data findings do not say why"),
        )
    outcome, reason = _fold(findings), ""
    if outcome == "promote":
        try:
            reason = _summary(evidence, findings)
        except (TypeError, ValueError, AttributeError) as error:
            findings.append(_broken("summary", error))
            outcome = _fold(findings)
    elif outcome == "reject" and (asked := _disputed(evidence, config, findings)):
        findings.append(asked)
        outcome, reason = "review", asked.sentence
    reason = reason or _deciding(findings, outcome).sentence
    return Verdict(outcome, reason, tuple(findings), tuple(notes), _worst(evidence, findings))


def _twice(evidence: Evidence) -> list[Finding]:
    """Undecided where an experience is compared twice: what it lost would count for less."""
    sides = [("holdouts", evidence.past + evidence.new)]
    if isinstance(evidence.audit, Audit):
        sides += [("sealed parts", evidence.audit.answers), ("anchors' holdouts", evidence.audit.gate)]
    found = []
    for name, answers in sides:
        times = Counter(str(each.experience) for each in answers)
        if twice := [index for index, count in times.items() if count > 1]:
            why = f"experience {', '.join(sorted(twice))} is more than once among the {name}"
            found.append(Finding("gate", "undecided", f"{why}; run the update again"))
    return found


def _disputed(evidence: Evidence, config: GateConfig, findings: Sequence[Finding]) -> Finding | None:
    """The question that a rejection becomes; None: it stays one, as it does where the evidence is broken."""
    try:
        return disputes.question(evidence, _of_attempt(config, evidence.attempt), findings)
    except (TypeError, ValueError, AttributeError):
        return None


_SHOWN_FOR = {"anomalies": "outliers", "labels": "mislabelled"}
"""Finding -> the kind of suspect records that illustrates it."""


def _worst(evidence: Evidence, findings: Sequence[Finding]) -> tuple[WorstRecord, ...]:
    """Worst records of a stopped batch: of each kind that failed, in equal numbers."""
    if evidence.learnt or not isinstance(evidence.data, DataEvidence):
        return ()
    failed = {_SHOWN_FOR.get(each.guard, each.guard) for each in findings if each.answer == "fail"}
    suspects = evidence.data.suspects.worst if evidence.data.suspects else ()
    found = [each for each in (*evidence.data.worst, *suspects) if each.kind in failed]
    each_kind = MOST_WORST // max(1, len({each.kind for each in found}))
    chosen = [each for kind in sorted(failed) for each in [e for e in found if e.kind == kind][:each_kind]]
    return tuple({each.record: each for each in reversed(chosen)}.values())[::-1]


def _of_attempt(config: GateConfig, attempt: int | None) -> GateConfig:
    """The config with the share of alpha that this try may spend.

    Raises:
        ValueError: no try has this number.
    """
    if attempt is None:
        return config
    if not attempt >= 1:
        raise ValueError(f"try {attempt} of an update cannot be, the first is 1: count the tries again")
    return config.model_copy(update={"alpha": stats.spent(config.alpha, attempt)})


def _run(
    table: Sequence[tuple[str, Guard]], evidence: Evidence, config: GateConfig
) -> tuple[list[Finding], list[Note]]:
    findings: list[Finding] = []
    notes: list[Note] = []
    for name, guard in table:
        try:
            answered = guard(evidence, config)
            found = [each for each in answered if isinstance(each, Finding)]
            noted = [each for each in answered if isinstance(each, Note)]
            if len(found) + len(noted) != len(answered):
                raise TypeError("it answered with what is no finding")
            findings += [_sound(each) for each in found]
            notes += noted
        # A guard that raises leaves its question unanswered: that is an undecided finding, never a pass.
        except Exception as error:
            findings.append(_broken(name, error))
        if name == "retention":
            evidence = _without_obsolete(evidence, findings)
    return findings, notes


def _broken(name: str, error: Exception) -> Finding:
    try:
        said = f"{type(error).__name__}: {error}"
    except Exception:  # an exception whose own words fail is still an answer: none
        said = type(error).__name__
    sentence = f"the {name} guard broke ({said}), so its question is open; repair it and decide again"
    return Finding(name, "undecided", sentence)


_ANSWERS = frozenset(("pass", "fail", "undecided"))


def _sound(finding: Finding) -> Finding:
    """The finding, checked: a guard that gives no sentence has not answered."""
    if not finding.sentence or finding.answer not in _ANSWERS:
        raise ValueError(f"it answered {finding.answer!r} with the sentence {finding.sentence!r}")
    if finding.experiences:
        finding = finding._replace(experiences=tuple(map(int, finding.experiences)))
    if finding.experience is None or type(finding.experience) is int:
        return finding
    if not isinstance(finding.experience, np.integer):
        raise ValueError(f"it spoke of experience {finding.experience!r}, which is no number of one")
    return finding._replace(experience=int(finding.experience))


def _without_obsolete(evidence: Evidence, findings: Sequence[Finding]) -> Evidence:
    """The evidence without obsolete holdouts: these wait for a person, and fail nothing."""
    obsolete = retention_guard.obsolete(evidence.past, findings)
    if not obsolete:
        return evidence
    return replace(
        evidence,
        past=tuple(each for each in evidence.past if each.experience not in obsolete),
        # Blocks stay as they were.
        history=history_of(evidence.history, evidence.past),
    )


def _nothing(why: str) -> Finding:
    return Finding("gate", "undecided", f"{why}; there is nothing to promote, a person decides")


def _fold(findings: Sequence[Finding]) -> Outcome:
    answers = {finding.answer for finding in findings}
    if "fail" in answers:
        return "reject"
    return "promote" if answers == {"pass"} else "review"


def _deciding(findings: Sequence[Finding], outcome: Outcome) -> Finding:
    """The worst of the findings that made the outcome: broken data or evidence first, then by loss."""
    against = [each for each in findings if each.answer == "fail"] if outcome == "reject" else findings
    # An experience that is shown to have lost says more than the block that it makes fail.
    named = [each for each in against if each.guard == "retention" and each.experience is not None]
    if outcome == "reject" and named:
        against = [each for each in against if each.guard != "retention" or each.experience is not None]
    return max((each for each in against if each.answer != "pass"), key=_severity)


def _severity(finding: Finding) -> float:
    """How far the loss may go beyond its margin; without such numbers the finding comes first.

    What only exceeds a limit (cost, flips, overfitting) comes after every loss.
    """
    if "limit" in finding.numbers:
        return -inf
    upper, margin = finding.numbers.get("loss_upper", inf), finding.numbers.get("margin", 0.0)
    return upper - margin if all(isinstance(each, int | float) for each in (upper, margin)) else inf


def _summary(evidence: Evidence, findings: Sequence[Finding]) -> str:
    """Why the challenger may go out: "all 4 past holdouts kept within 5 points; experience 4 learnt"."""
    learnt = f"{say.experiences(sorted(each.experience for each in evidence.new))} learnt"
    if evidence.golden and not evidence.first:
        count = len(evidence.golden)
        learnt += (
            f"; golden set {evidence.golden[0].name} kept" if count == 1 else f"; {count} golden sets kept"
        )
    if not evidence.past:
        return f"{learnt}; no past holdouts yet"
    margins = [each.numbers.get("margin", 0.0) for each in findings if each.guard == "retention"]
    least, most = min(margins), max(margins)
    within = f"within {say.with_unit(least, digits=2)}"
    if most > least:
        within = f"within their margins, {say.points(least, digits=2)} to {say.with_unit(most, digits=2)}"
    count = len(evidence.past)
    if count == 1:
        return f"the past holdout kept {within}; {learnt}"
    return f"{'both' if count == 2 else f'all {count}'} past holdouts kept {within}; {learnt}"
