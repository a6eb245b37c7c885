"""The guards: each asks one question of the evidence and answers with findings.

Too little, missing or broken evidence is undecided, with the reason; never a pass.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import (
    Answer,
    DataEvidence,
    Evidence,
    Finding,
    GateConfig,
    Note,
    PairedAnswers,
    ShiftEvidence,
    SuspectKind,
    Suspects,
    Twins,
)
from service.gate.comparisons import Comparison, Pool, compare, floor, is_small, pooled, problem


def data(evidence: DataEvidence, config: GateConfig) -> tuple[Finding, ...]:
    """Can this batch be learnt from? Values, anomalies and labels against earlier batches, suspect records.

    Anomalies come before labels: where the features are broken, the labels disagree as a consequence.
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
    return (values, anomalies, labels, *_suspects(evidence.suspects, config))


def retention(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Was anything forgotten? One finding a full past holdout, and one for all small ones together.

    A holdout with fewer records than any challenger can pass with would never be settled, since it does not
    grow; such small ones are pooled (`comparisons.pooled`), which promises their common loss only.

    All must pass, each at alpha, so P(promote | some holdout truly lost its margin) <= alpha without any
    correction (an intersection-union test: Berger, Technometrics 24:295, 1982). The alarm is the opposite,
    "some holdout lost", so its p-values are adjusted (Holm).
    """
    if not evidence.past:
        nothing = (
            "nothing that the champion learnt was compared: without its past holdouts nobody can say what "
            "was forgotten; run the update again"
        )
        return () if evidence.first else (Finding("retention", "undecided", nothing),)
    worn = tuple(_worn_out(each, config) for each in evidence.past if each.looks >= config.holdout_looks)
    fresh = [each for each in evidence.past if each.looks < config.holdout_looks]
    past = _with_margins(fresh, config.margin)
    enough = floor(config.alpha)
    alone = [(each, margin) for each, margin in past if not is_small(each, margin, enough=enough)]
    pool = pooled(past, enough=enough, margin=config.small_margin) if len(alone) < len(past) else None
    judged = [*alone, (pool.answers, pool.margin)] if pool else alone
    seen = _compared(judged, config)
    findings = [_retained(each, its, config) for (each, _), its in zip(alone, seen, strict=False)]
    if pool:
        findings.append(_pool_found(pool, seen[-1], config))
    return (*findings, *worn)


def _worn_out(answers: PairedAnswers, config: GateConfig) -> Finding:
    sentence = (
        f"experience {answers.experience}: its holdout was compared {answers.looks} times, which wears it "
        "out: models chosen by it so often may fit it by luck; retire it (holdfast holdout retire)"
    )
    numbers = {"looks": answers.looks, "looks_left": 0}
    return Finding("retention", "undecided", sentence, answers.experience, numbers)


def _retained(answers: PairedAnswers, seen: Comparison | str, config: GateConfig) -> Finding:
    """The finding of one past holdout, with what is left of its life."""
    if isinstance(seen, str):
        return Finding(
            "retention", "undecided", f"experience {answers.experience}: {seen}", answers.experience
        )
    answer, sentence, more = _judge_retention(seen, twins=answers.twins)
    late, life = _life(answers.looks, config.holdout_looks)
    numbers = seen.numbers({**more, **life} if more else life)
    return Finding("retention", answer, sentence + late, answers.experience, numbers)


@lru_cache(maxsize=4096)
def _life(looks: int, lifetime: int) -> tuple[str, Mapping[str, float]]:
    """What is left of a holdout's life after this look: in words, when it is late in it, and in numbers."""
    left = lifetime - looks - 1
    late = f"; {left} of {lifetime} looks at it are left" if left < lifetime * _LATE else ""
    return late, {"looks": looks + 1, "looks_left": left}


_LATE = 0.2
"""Share of a holdout's life from which on findings say how much is left."""
_FEWEST_TWINS = 20
_RELABELLED = 0.25
"""Twins relabelled beyond what is usual, as a share, from which on a concept has changed."""


def _is_obsolete(twins: Twins, alpha: float) -> bool:
    if twins.records < _FEWEST_TWINS or not 0 <= twins.usual <= 1:
        return False
    share = twins.relabelled / twins.records
    p = float(stats.excess_p(share, twins.usual, sample=twins.records))
    return share - twins.usual > _RELABELLED and p <= alpha


def _obsolete(lost: str, name: str, twins: Twins) -> "_Judgement":
    """What was lost was perhaps rightly lost: the same inputs carry other labels now."""
    relabelled = f"{twins.relabelled} of its {say.records(twins.records)} that have a twin in the new data"
    sentence = (
        f"{lost}, but its holdout looks obsolete: {relabelled} carry another label there; if the new labels "
        f"are right, retire the holdout of {name} (holdfast holdout retire), else reject"
    )
    more = {"twins": twins.records, "relabelled": twins.relabelled, "relabelled_usual": twins.usual}
    return "undecided", sentence, more


def learning(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Was the new experience learnt? One finding a new experience, against champion or majority class."""
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


def shift(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Must a person look because the batch is shifted? Only where the pipeline asks for that.

    New data is supposed to be new: a shift never fails a model.
    """
    seen = evidence.shift
    if config.on_shift != "review" or seen is None or seen.verdict == "same":
        return ()
    note = shift_note(seen)
    return (Finding("shift", "undecided", f"{note.sentence}; a person decides", numbers=note.numbers),)


def shift_note(seen: ShiftEvidence) -> Note:
    """What the battery found, in a sentence."""
    numbers = {f"p_{test}": p for test, p in seen.p_values.items()}
    numbers |= {
        "alpha": seen.alpha,
        "distance": seen.distance,
        "reference_records": seen.reference_records,
        "window_records": seen.window_records,
        "label_shift": seen.label_shift,
    }
    optional = {
        "feature": seen.feature,
        "prior_shift": seen.prior_shift,
        "estimated_accuracy": seen.estimated_accuracy,
        "reference_accuracy": seen.reference_accuracy,
    }
    numbers |= {name: float(value) for name, value in optional.items() if value is not None}
    return Note("shift", f"shift: {_shift_words(seen)}", numbers)


def _shift_words(seen: ShiftEvidence) -> str:
    compared = f"{say.records(seen.window_records)} compared with {seen.reference_records} of past holdouts"
    if seen.verdict == "undecided":
        return f"{compared} are too few to say whether the batch is shifted"
    rate = f"false alarms at most {say.percent(seen.alpha)} of batches"
    if seen.verdict == "same":
        return f"none found ({compared}; {rate})"
    words = {
        "features": f"feature {seen.feature} differs by {seen.distance:.2f} of 1",
        "probabilities": "the champion answers with other confidence",
        "labels": "the champion answers other classes",
    }
    found = [words[test] for test in words if seen.p_values.get(test, 1.0) <= seen.alpha]
    told = f"{' and '.join(found)} ({compared}; {rate})"
    if seen.label_shift >= _LABELS_MOVED:
        told += f"; the shares of the labels moved by {say.with_unit(seen.label_shift)}"
    if seen.estimated_accuracy is not None and seen.reference_accuracy is not None:
        told += (
            f"; by its confidence the champion answers about {say.percent(seen.estimated_accuracy)} of the "
            f"batch right, {say.percent(seen.reference_accuracy)} before"
        )
    return told


_LABELS_MOVED = 0.1
"""Worth a word: between samples of 500 records of ten balanced classes, chance moves them by 0.06."""


def _values(evidence: DataEvidence) -> Finding:
    counted = _is_count(evidence.records) and _is_count(evidence.nonfinite_records)
    numbers: dict[str, float] = {}
    if counted:
        numbers = {"records": int(evidence.records), "nonfinite_records": int(evidence.nonfinite_records)}
    if evidence.misshapen is not None:
        sentence = (
            f"values: {evidence.misshapen}; the batch was not learnt: correct the source or the pipeline"
        )
        return Finding("values", "fail", sentence, numbers=numbers)
    if not counted or evidence.nonfinite_records > evidence.records:
        sentence = (
            f"values: {evidence.nonfinite_records} broken records of {evidence.records} cannot be; "
            "count the batch again"
        )
        return Finding("values", "undecided", sentence, numbers=numbers)
    if evidence.records == 0:
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
    if evidence.suspects:
        numbers |= {
            "dead_features": len(evidence.suspects.dead_features),
            "far_features": len(evidence.suspects.far_features),
        }
        sentence += _unusual(evidence.suspects)
    return Finding("values", "pass", sentence, numbers=numbers)


def _unusual(seen: Suspects) -> str:
    """What is worth knowing of whole features, though it stops nothing."""
    told = ""
    if seen.dead_features:
        told += f"; {_features(seen.dead_features)} never varied, and did before"
    if seen.far_features:
        told += f"; {_features(seen.far_features)} held values over a hundred times larger than before"
    return told


def _features(places: Sequence[int]) -> str:
    """The first few by number: "feature 3", "features 3, 9 and 11 and 5 more"."""
    shown = places[:_FEATURES_NAMED]
    more = f" and {len(places) - len(shown)} more" if len(places) > len(shown) else ""
    return f"feature{'' if len(places) == 1 else 's'} {say.listed(shown)}{more}"


_FEATURES_NAMED = 5


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and bool(value >= 0)


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
    if not evidence.sample > 0:
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


_SUSPECT_WORDS: dict[SuspectKind, tuple[str, str]] = {
    "planted": (
        "are alike only by a rare mark, under labels that the rest of their features contradicts",
        "look at the worst records for a mark that somebody planted",
    ),
    "outliers": (
        "are far from earlier records and from the rest of the batch",
        "look at the worst records and at what made them",
    ),
    "mislabelled": (
        "carry a label that neither their neighbours nor the champion would give",
        "look at the worst records and how they were labelled",
    ),
}
"""Of each kind: what such records do, and what a person should do about them."""


def _suspects(seen: Suspects | None, config: GateConfig) -> tuple[Finding, ...]:
    """One finding a kind: is its true share more than allowed above that of the past holdouts?

    Two tests must say so, each at alpha over the number of kinds: an exact binomial one of H0 "at most the
    expected share + excess", and one of H0 "no more than the past holdouts", whose share is estimated too.
    """
    if seen is None:
        return ()
    if not seen.records > 0:
        sentence = (
            f"suspects: the batch, or the {say.records(seen.reference_records)} of past holdouts, are too "
            "few to tell suspect records by; merge the batch with the next, or let a person look at it"
        )
        return (Finding("suspects", "undecided", sentence),)
    return tuple(_suspect(kind, seen, config) for kind in _SUSPECT_WORDS)


def _suspect(kind: SuspectKind, seen: Suspects, config: GateConfig) -> Finding:
    rate, expected = seen.rates[kind], seen.expected_rates[kind]
    excess = config.planted_excess if kind == "planted" else config.suspect_excess
    alpha = config.alpha / len(_SUSPECT_WORDS)
    numbers: dict[str, float] = {
        "sample": seen.records,
        "rate": rate,
        "reference_records": seen.reference_records,
        "expected_rate": expected,
        "excess_allowed": excess,
    }
    if not (0 <= rate <= 1 and 0 <= expected <= 1):
        sentence = f"{kind}: the shares are not numbers between 0 and 1; screen the batch again"
        return Finding(kind, "undecided", sentence, numbers=numbers)
    p_excess = float(stats.excess_p(rate, min(1.0, expected + excess), sample=seen.records))
    p_chance = float(
        stats.higher_p(rate, expected, sample=seen.records, reference_sample=seen.reference_records)
    )
    numbers |= {"p_excess": p_excess, "p_chance": p_chance, "alpha": alpha}
    described, remedy = _SUSPECT_WORDS[kind]
    compared = (
        f"{kind}: {say.percent(rate)} of {say.records(seen.records)} {described}; "
        f"{say.percent(expected)} is expected by the past holdouts, and {say.with_unit(excess)} more "
        f"{'is' if say.points(excess) == '1' else 'are'} allowed"
    )
    if max(p_excess, p_chance) <= alpha:
        return Finding(kind, "fail", f"{compared}; the batch was not learnt: {remedy}", numbers=numbers)
    return Finding(kind, "pass", compared, numbers=numbers)


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
    """Of each holdout its comparison, or why there is none."""
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
    """The small past holdouts' one finding: too few even together, or judged as one holdout."""
    late, life = _life(pool.answers.looks, config.holdout_looks)
    numbers: dict[str, float] = {"pooled": len(pool.small), **life}
    if isinstance(seen, str):
        numbers |= {"n": 0, "margin": pool.margin, "alpha": config.alpha}
    else:
        answer, sentence, more = _judge_retention(seen, _named(pool), twins=pool.answers.twins)
        numbers |= seen.numbers()
        if answer == "fail" or pool.n >= pool.floor:
            return Finding("retention", answer, sentence + late, numbers=numbers | more)
    few = f"all past holdouts that can be compared hold {say.records(pool.n)} together"
    sentence = (
        f"{say.experiences(pool.small)}: {few}, which cannot settle a margin of "
        f"{say.with_unit(pool.margin)}; it takes at least {pool.floor}, {_UNTIL_THEN}"
    )
    return Finding("retention", "undecided", sentence, numbers=numbers | {"n_needed": pool.floor})


class _Named(NamedTuple):
    """What sentences call that which was compared."""

    experiences: str
    aside: str = ""
    its: str = "its"
    together: str = ""


_ALONE = _Named("")
"""One holdout, which goes by its own experience."""


def _named(pool: Pool) -> _Named:
    together = f" together with {say.experiences(pool.added)}" if pool.added else " together"
    its = "its" if len(pool.small) == 1 else "their"
    return _Named(say.experiences(pool.small), ", too small to be judged alone,", its, together)


def _judge_retention(
    seen: Comparison, named: _Named | None = None, *, twins: Twins | None = None
) -> _Judgement:
    """Of one holdout, or of the pool that is `named`."""
    named = named or _ALONE
    name, together = named.experiences or f"experience {seen.experience}", named.together
    subject = name + named.aside
    if seen.p_noninferior <= seen.alpha:
        if seen.upper < 0 and say.points(-seen.upper) != "0":
            kept = f"{subject} gained{together}: at least {say.with_unit(-seen.upper)} better"
        else:
            worst = f"{say.at_worst(seen.upper, seen.margin)}, {say.points(seen.margin)} allowed"
            kept = f"{subject} kept {named.its} accuracy{together}: {worst}"
        return "pass", f"{kept} ({say.flips(seen.n, seen.lost, seen.gained)})", {}
    if seen.p_drop <= seen.alpha:
        lost = f"{subject} lost {say.between(seen.lower, seen.upper)}{together}"
        if twins is not None and _is_obsolete(twins, seen.alpha):
            return _obsolete(lost, name, twins)
        remedy = f"keep the champion, and replay more of {name}"
        return "fail", f"{lost}; {say.were_allowed(seen.margin)}: {remedy}", {}
    needed = seen.needed
    may = f"{subject} may have lost {say.up_to(seen.upper)}{together}, {say.points(seen.margin)} allowed"
    cannot = f"{say.records(seen.n, 'holdout')} cannot settle it, {say.about(needed)} would have"
    return "undecided", f"{may}; {cannot}; {_LESS_CHURN}", {"n_needed": needed}


_LESS_CHURN = "a person decides, or learn with less churn (more replay, smaller steps)"
"""Instead of waiting: a past holdout cannot grow."""


def _judge_learning(seen: Comparison, *, gain: float | None = None) -> _Judgement:
    """Not worse than the champion and, where a gain is asked, better by more than that."""
    name, allowed = f"experience {seen.experience}", say.points(seen.margin)
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
        lost = f"{name} lost {say.between(seen.lower, seen.upper)} against the champion"
        remedy = "keep the champion, and train longer or with another strategy"
        return "fail", f"{lost}; {say.were_allowed(seen.margin)}: {remedy}", {}
    return _unsettled(seen, f"{name} may have lost {say.up_to(seen.upper)} against the champion")


def _judge_gain(seen: Comparison, gain: float) -> _Judgement:
    """The limits of the loss are those of a gain, with their sign turned; a better one is not worse."""
    name, asked = f"experience {seen.experience}", f"{say.points(gain)} asked"
    more: dict[str, float] = {"gain_asked": gain}
    flipped = say.flips(seen.n, seen.lost, seen.gained)
    if -seen.upper > gain:
        better = f"at least {say.with_unit(-seen.upper, digits=2)} better than the champion"
        return "pass", f"{name} learnt: {better}, {asked} ({flipped})", more
    if -seen.lower <= gain:
        most = f"at most {say.with_unit(max(-seen.lower, 0.0), digits=2)} better than the champion"
        remedy = "keep the champion, and train longer or with another strategy"
        return "fail", f"{name} learnt too little: {most}, {asked} ({flipped}): {remedy}", more
    lowest, highest = max(-seen.upper, 0.0), -seen.lower
    between = f"between {say.points(lowest, digits=2)} and {say.with_unit(highest, digits=2)}"
    cannot = f"{say.records(seen.n, 'holdout')} cannot settle it; a person decides"
    return "undecided", f"{name} may be {between} better than the champion, {asked}; {cannot}", more


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
        cannot = f"{have} cannot settle a margin of {say.with_unit(seen.margin)}"
        return "undecided", f"experience {seen.experience}: {cannot}; {would}", more
    allowed = f"{say.points(seen.margin)} allowed"
    return "undecided", f"{suspicion}, {allowed}; {have} cannot settle it, {would}", more
