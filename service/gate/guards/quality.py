"""Quality guards: negative flips, calibration, and metrics besides accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.gate import measures, stats
from service.gate import sentences as say
from service.gate.base import Details, Evidence, Finding, GateConfig, Metric, PairedAnswers
from service.gate.comparisons import problem

_UNTIL_THEN = "until then a person decides"


def negative_flips(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Limits the share of records that turn from right to wrong: on each past holdout, and on all together.

    The exact upper limit of the share (Clopper and Pearson 1934) must not exceed the limit; what is gained
    elsewhere does not count (Yan et al., "Positive-congruent training", CVPR 2021). Over holdouts together
    the limit is still safe: a sum of unequal binomials varies less than an equal one (Hoeffding 1956).
    """
    limit = config.negative_flips
    if limit is None or evidence.first:
        return ()
    if not evidence.past:
        nothing = "negative flips: no past holdout was compared; run the update again"
        return (Finding("negative_flips", "undecided", nothing),)
    # The margin plays no part here: one that means nothing must not hide the flips.
    checked = [(each, problem(each, 0.5)) for each in evidence.past]
    broken = [
        Finding("negative_flips", "undecided", f"experience {each.experience}: {why}", each.experience)
        for each, why in checked
        if why is not None and not each.is_empty
    ]
    flipped = _flipped(evidence, [place for place, (_, why) in enumerate(checked) if why is None])
    floor = int(stats.exact_floor_n(limit, stats.spent_at_first(config.alpha, evidence.attempt)))
    asked: list[tuple[int | None, int, int]] = [each for each in flipped if each[2] >= floor]
    if len(asked) != 1 or len(flipped) != 1:
        asked.append((None, sum(lost for _, lost, _ in flipped), sum(n for _, _, n in flipped)))
    # Many holdouts flip alike, and the beta quantiles take longer than all else here: each is asked once.
    alike, whose = np.unique([each[1:] for each in asked], axis=0, return_inverse=True)
    lost, n = alike.T
    p_once = np.where(n > 0, stats.excess_p(lost / np.maximum(n, 1), limit, sample=n), 1.0)
    p_above = stats.holm(p_once[whose]).tolist()
    lows, highs = (each[whose].tolist() for each in stats.clopper_pearson(lost, n, alpha=config.alpha))
    found = [
        _judge_flips(_Flips(*each, *its), limit=limit, alpha=config.alpha, floor=floor)
        for each, *its in zip(asked, lows, highs, p_above, strict=True)
    ]
    return (*broken, *found)


def _flipped(evidence: Evidence, places: Sequence[int]) -> list[tuple[int, int, int]]:
    """(experience, records that turned wrong, records) of the past holdouts at these places."""
    n, before, _, both = evidence.past_counts[:, places]
    experiences = [evidence.past[place].experience for place in places]
    return list(zip(experiences, (before - both).tolist(), n.tolist(), strict=True))


class _Flips(NamedTuple):
    """Records that turned wrong on one past holdout, or on all together."""

    experience: int | None
    lost: int
    n: int
    low: float
    """One-sided limits of the true share, each at alpha."""
    high: float
    p_above: float
    """p-value of H0 "the true share is the limit or less", Holm-adjusted over all questions."""


def _judge_flips(flips: _Flips, *, limit: float, alpha: float, floor: int) -> Finding:
    index, lost, n, low, high = flips.experience, flips.lost, flips.n, flips.low, flips.high
    name = "all past holdouts together" if index is None else f"experience {index}"
    if not n:
        none = f"negative flips: {name} hold no record; put records aside, or let a person decide"
        return Finding("negative_flips", "undecided", none)
    numbers: dict[str, float] = {
        "n": n,
        "lost": lost,
        "rate": lost / n,
        "rate_lower": low,
        "rate_upper": high,
        "limit": limit,
        "alpha": alpha,
        "p_above_holm": flips.p_above,
    }
    allowed = f"{say.percent_of(limit)} allowed"
    seen = f"{name}: {lost} of {say.records(n)} turned from right to wrong"
    if high <= limit:
        kept = f"{seen}, at worst {say.percent_of(high)} do, {allowed}"
        return Finding("negative_flips", "pass", kept, index, numbers)
    if flips.p_above <= alpha:
        shown = f"{seen}, at least {say.percent_of(low)} do, {allowed}"
        remedy = "keep the champion, and learn with less churn (more replay, distillation, smaller steps)"
        return Finding("negative_flips", "fail", f"{shown}: {remedy}", index, numbers)
    needed = measures.needed_for_share(lost, n, limit=limit, alpha=alpha, floor=floor)
    unclear = f"{seen}, it may be up to {say.percent_of(high)}, {allowed}"
    have = f"{say.records(n, 'holdout')} cannot settle it, {say.about(needed)} may; {_UNTIL_THEN}"
    return Finding("negative_flips", "undecided", f"{unclear}; {have}", index, numbers | {"n_needed": needed})


@dataclass(frozen=True)
class _Quality:
    """A metric with its margin, and their wording in sentences."""

    guard: str
    metric: Metric
    margin: float

    @property
    def bound(self) -> float:
        """No record can add more than this to the difference that is tested."""
        return measures.LARGEST_BRIER if self.metric == "brier" else 1.0

    @property
    def word(self) -> str:
        return _WORDS[self.metric]

    @property
    def allowed(self) -> str:
        """The margin in its unit."""
        return say.share(self.margin) if self.metric == "brier" else say.with_unit(self.margin, digits=2)

    def amount(self, value: float) -> str:
        """A change in its unit, distinguishable from the margin."""
        if self.metric == "brier":
            return say.share(value, self.margin)
        return say.points_of(value, self.margin)


_WORDS: dict[Metric, str] = {
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "auc": "the area under the curve",
    "brier": "the Brier score",
}


def calibration(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Limits the rise of the Brier score, on every holdout.

    The numbers include the expected calibration error of both models; it is biased, and never judged.
    """
    if config.calibration is None or evidence.first:
        return ()
    return _ask(_Quality("calibration", "brier", config.calibration), evidence, config)


def metrics(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Limits the loss of each metric in `config.metrics`, on every holdout."""
    if evidence.first:
        return ()
    return tuple(
        finding
        for metric, margin in sorted(config.metrics.items())
        for finding in _ask(_Quality(metric, metric, margin), evidence, config)
    )


@dataclass(frozen=True)
class _Holdout:
    """Records that are judged as one: of one experience, or of several small ones."""

    experiences: tuple[int, ...]
    labels: NDArray[np.int64]
    before: Details
    after: Details
    right_before: NDArray[np.bool_]
    right_after: NDArray[np.bool_]

    @property
    def alone(self) -> int | None:
        return self.experiences[0] if len(self.experiences) == 1 else None


def _ask(question: _Quality, evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Judge each holdout that is large enough alone, and all smaller ones together; all must pass."""
    found: list[Finding] = []
    sound: list[_Holdout] = []
    for each in (*evidence.past, *evidence.new):
        taken = _taken(each, scored=question.metric == "auc")
        if isinstance(taken, _Holdout):
            sound.append(taken)
        else:
            sentence = f"experience {each.experience}: {taken}"
            found.append(Finding(question.guard, "undecided", sentence, each.experience))
    large: list[_Holdout] = []
    small: list[_Holdout] = []
    first = stats.spent_at_first(config.alpha, evidence.attempt)
    for holdout in sound:
        # By the first try's alpha: what is judged alone stays so, however little of alpha is left.
        fits = measures.problem(question.metric, holdout.labels, holdout.after) is None and (
            measures.too_few(question.metric, holdout.labels, margin=question.margin, alpha=first) is None
        )
        (large if fits else small).append(holdout)
    small = [holdout for holdout in small if len(holdout.labels)]
    judged = [*large, *([_together(small)] if small else [])]
    if not judged and not found:
        nothing = f"{question.word}: no holdout has a record; put records aside, or let a person decide"
        return (Finding(question.guard, "undecided", nothing),)
    measured = [_measured(question, holdout, alpha=config.alpha) for holdout in judged]
    p_worse = stats.holm([1.0 if isinstance(its, str) else its.p_worse for its in measured])
    for holdout, its, p in zip(judged, measured, p_worse, strict=True):
        found.append(_judge(question, holdout, its, alpha=config.alpha, p_worse=float(p)))
    return tuple(found)


def _taken(each: PairedAnswers, *, scored: bool) -> _Holdout | str:
    """A holdout with its details checked; or why it cannot be judged, and what to do."""
    wrong = problem(each, 0.5)
    if wrong is not None and not each.is_empty:
        return wrong
    before, after, labels = each.baseline_details, each.challenger_details, each.labels
    if each.baseline is None or each.challenger is None or before is None or after is None or labels is None:
        return "what the models said of each record is missing; predict its holdout again"
    n = len(each.baseline)
    for details in (before, after):
        columns: list[NDArray[Any]] = [details.predicted, details.confidence, details.brier]
        columns += [] if details.score is None else [details.score]
        if any(column.shape != (n,) for column in (*columns, labels)):
            return "what the models said does not match its records; predict its holdout again"
        if any(column.dtype.kind not in "iuf" for column in (*columns, labels)):
            return "what the models said is not made of numbers; predict its holdout again"
        if not all(np.isfinite(column).all() for column in columns):
            return "a model answers with what is no number; keep the champion, and look at the learning rate"
        if n and not (details.brier.min() >= 0 and details.brier.max() <= 2 + 1e-3):
            return "its Brier scores are not between 0 and 2; predict its holdout again"
        chances = [details.confidence] + ([] if details.score is None else [details.score])
        if n and not all(0 <= each.min() <= each.max() <= 1 + 1e-3 for each in chances):
            return "its probabilities are not between 0 and 1; predict its holdout again"
    if scored and (before.score is None) != (after.score is None):
        return "only one model has a score of class 1; predict its holdout again"
    return _Holdout((each.experience,), labels, before, after, each.baseline, each.challenger)


def _together(small: Sequence[_Holdout]) -> _Holdout:
    def joined(side: Callable[[_Holdout], Details]) -> Details:
        parts = [side(each) for each in small]
        scores = [each.score for each in parts if each.score is not None]
        return Details(
            predicted=np.concatenate([each.predicted for each in parts]),
            confidence=np.concatenate([each.confidence for each in parts]),
            brier=np.concatenate([each.brier for each in parts]),
            score=np.concatenate(scores) if len(scores) == len(parts) else None,
        )

    return _Holdout(
        experiences=tuple(sorted(index for each in small for index in each.experiences)),
        labels=np.concatenate([each.labels for each in small]),
        before=joined(lambda each: each.before),
        after=joined(lambda each: each.after),
        right_before=np.concatenate([each.right_before for each in small]),
        right_after=np.concatenate([each.right_after for each in small]),
    )


def _measured(question: _Quality, each: _Holdout, *, alpha: float) -> measures.Increase | str:
    wrong = measures.problem(question.metric, each.labels, each.after)
    if wrong is not None:
        return wrong
    after = measures.losses(question.metric, each.labels, each.after)
    differences = after - measures.losses(question.metric, each.labels, each.before)
    return measures.increase(differences, margin=question.margin, alpha=alpha, bound=question.bound)


def _judge(
    question: _Quality, each: _Holdout, its: measures.Increase | str, *, alpha: float, p_worse: float
) -> Finding:
    name = say.experiences(each.experiences) + (" together" if len(each.experiences) > 1 else "")
    if isinstance(its, str):
        wait = "a person decides, or put more records aside from now on"
        numbers: dict[str, float] = {"n": len(each.labels), "margin": question.margin, "alpha": alpha}
        sentence = f"{name}: {question.word} cannot be judged: {its}; {wait}"
        return Finding(question.guard, "undecided", sentence, each.alone, numbers)
    numbers = _numbers(question, each, its, alpha=alpha, p_worse=p_worse)
    if not all(map(isfinite, numbers.values())):
        sentence = f"{name}: {question.word} came out as no number; predict its holdout again"
        return Finding(question.guard, "undecided", sentence, each.alone, {"n": its.n})
    moved = "rose" if question.metric == "brier" else "fell"
    allowed = f"{question.allowed} allowed ({say.records(its.n)})"
    rare = measures.too_few(question.metric, each.labels, margin=question.margin, alpha=alpha)
    if its.p_within <= alpha and rare is None:
        kept = f"{moved} by at most {question.amount(its.upper)}" if its.upper > 0 else "got better"
        sentence = f"{name}: {question.word} {kept}, {allowed}"
        return Finding(question.guard, "pass", sentence, each.alone, numbers)
    if p_worse <= alpha:
        at_least = question.amount(max(its.lower, 0.0))
        remedy = "keep the champion, and train shorter or with more replay"
        sentence = f"{name}: {question.word} {moved} by at least {at_least}, {allowed}: {remedy}"
        return Finding(question.guard, "fail", sentence, each.alone, numbers)
    if rare is not None:
        numbers["n_needed"] = rare.needed
        sentence = f"{name}: {question.word} cannot be settled, {allowed}: {rare.why}; {_UNTIL_THEN}"
        return Finding(question.guard, "undecided", sentence, each.alone, numbers)
    needed = its.needed(question.margin, alpha)
    may = (
        f"{name}: {question.word} may have {_PERFECT[moved]} by up to {question.amount(its.upper)}, {allowed}"
    )
    sentence = f"{may}; {say.about(needed)} would settle it; {_UNTIL_THEN}"
    return Finding(question.guard, "undecided", sentence, each.alone, numbers | {"n_needed": needed})


_PERFECT = {"rose": "risen", "fell": "fallen"}


def _numbers(
    question: _Quality, each: _Holdout, its: measures.Increase, *, alpha: float, p_worse: float
) -> dict[str, float]:
    sides = {
        "baseline": (each.before, each.right_before),
        "challenger": (each.after, each.right_after),
    }
    values: dict[str, float] = {}
    for side, (details, right) in sides.items():
        loss = float(measures.losses(question.metric, each.labels, details).mean())
        values[f"{side}_{question.metric}"] = loss if question.metric == "brier" else 1 - loss
        if question.metric == "brier":
            values[f"{side}_calibration_error"] = measures.calibration_error(right, details)
    return {
        "n": its.n,
        "margin": question.margin,
        "alpha": alpha,
        "loss": its.mean,
        "loss_lower": its.lower,
        "loss_upper": its.upper,
        "p_noninferior": its.p_within,
        "p_drop_holm": p_worse,
        **values,
    }
