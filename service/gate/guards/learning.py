"""Learning guard: was the new experience learnt, without a loss against the champion?"""

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import Bits, Evidence, Finding, GateConfig, PairedAnswers
from service.gate.blocks import Pool, history_of
from service.gate.comparisons import Comparison, compare_counts, pooled_counts, problem, rows
from service.gate.guards.judgements import UNTIL_THEN, Judgement
from service.gate.guards.retention import comparable, past_blocks, records_of_block, sizes_of
from service.gate.pairs import counts


def learning(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Learning: one finding for each new experience, against the champion or the majority class.

    Against the champion, an experience with too few records for `learning_margin` is judged together with the
    newest block of past ones, which retention judges without it: what is gained on the new one pays for
    nothing. By itself it fails where it is shown to have lost (`alarm_alpha`, Holm-adjusted).
    """
    if not evidence.new:
        nothing = (
            "no new experience was compared: without one there is nothing to promote; run the update again"
        )
        return (Finding("learning", "undecided", nothing),)
    margin = config.learning_margin
    problems = {each.experience: problem(each, margin) for each in evidence.new}
    broken = [
        Finding("learning", "undecided", f"experience {experience}: {wrong}", experience)
        for experience, wrong in problems.items()
        if wrong
    ]
    sound = [each for each in evidence.new if not problems[each.experience]]
    if not sound:
        return tuple(broken)
    if evidence.first:
        found = []
        for each, its in zip(sound, _alone(sound, evidence, config), strict=True):
            answer, sentence, more = _first(each, its, config.first_gain)
            found.append(Finding("learning", answer, sentence, its.experience, its.numbers(more)))
    else:
        found = _against_champion(sound, evidence, config)
    found = [*found, *broken]
    if evidence.first and config.first_update == "review" and all(each.answer == "pass" for each in found):
        sentence = "this is the first version, and the pipeline asks that a person approves it"
        found.append(Finding("first_update", "undecided", sentence))
    return tuple(found)


def _alone(new: Sequence[PairedAnswers], evidence: Evidence, config: GateConfig) -> list[Comparison]:
    """The comparison of each new experience by itself; p-values are adjusted over all that are new."""
    table = compare_counts(
        counts(new),
        experiences=[each.experience for each in new],
        margins=np.full(len(new), config.learning_margin),
        alpha=config.alpha,
        holdouts=len(evidence.new),
    )
    return rows(table)


def _against_champion(new: Sequence[PairedAnswers], evidence: Evidence, config: GateConfig) -> list[Finding]:
    alone = _alone(new, evidence, config)
    planned = stats.spent_at_first(config.alpha, evidence.attempt)
    enough = records_of_block(config, config.learning_margin, alpha=planned)
    past = comparable(evidence.past, config).sound
    history = history_of(evidence.history, evidence.past)
    blocks = past_blocks(history, sizes_of(past), config, planned=planned)
    joined = [[] if each.n >= enough else _newest(blocks, past, enough - each.n) for each in new]
    helping = {index for its in joined for index in its}
    compared = [*new, *(each for each in past if each.experience in helping)]
    place = {each.experience: number for number, each in enumerate(compared) if number >= len(new)}
    table = compare_counts(
        pooled_counts(
            counts(compared),
            [[number, *(place[each] for each in its)] for number, its in enumerate(joined)],
        ),
        experiences=[each.experience for each in new],
        margins=np.full(len(new), config.learning_margin),
        alpha=config.alpha,
        holdouts=len(evidence.new),
    )
    return [
        _found(its, together, members, config)
        for its, together, members in zip(alone, rows(table), joined, strict=True)
    ]


def _newest(blocks: Sequence[Pool], past: Sequence[PairedAnswers], records: int) -> list[int]:
    """Members of the newest block and, while they have fewer than so many records, of those before it."""
    sizes = {each.experience: each.n for each in past}
    members: list[int] = []
    for block in reversed(blocks):
        if sum(sizes[each] for each in members) >= records:
            break
        members += [each for each in block.members if each not in members]
    return sorted(members)


def _found(alone: Comparison, together: Comparison, joined: Sequence[int], config: GateConfig) -> Finding:
    answer, sentence, more = _judge(alone, together, joined, config)
    asked_alone = config.learning_gain is not None or not joined
    numbers = (alone if asked_alone else together).numbers(more)
    if not asked_alone:
        of_one = {"n": alone.n, "loss": alone.loss, "loss_lower": alone.lower, "loss_upper": alone.upper}
        numbers |= {f"{name}_alone": value for name, value in of_one.items()}
        numbers |= {"joined": len(joined), "p_drop_holm": alone.p_drop}
    return Finding("learning", answer, sentence, alone.experience, numbers)


def _judge(alone: Comparison, together: Comparison, joined: Sequence[int], config: GateConfig) -> Judgement:
    """Not worse than the champion and, where a gain is asked, better by more than that."""
    name, allowed = f"experience {alone.experience}", say.allowed(alone.margin)
    if not alone.challenger_right and _learnt_nothing(alone, together, config):
        # No worse than a champion that answers nothing right either.
        none = f"{name} not learnt: none of {say.records(alone.n, 'holdout')} answered right"
        return "fail", f"{none}; keep the champion, and check the labels, or train longer", {}
    if alone.p_drop <= config.alarm_alpha and alone.p_noninferior > alone.alpha:
        lost = f"{name} lost {say.between(alone.lower, alone.upper, alone.margin)} against the champion"
        remedy = "keep the champion, and train longer or with another strategy"
        return "fail", f"{lost}; {say.were_allowed(alone.margin)}: {remedy}", {}
    if config.learning_gain is not None:
        return _judge_gain(alone, config.learning_gain)
    among = f" together with {say.experiences(joined)}" if joined else ""
    flips = say.flips(alone.n, alone.lost, alone.gained)
    if joined:
        flips += f"; together {say.flips(together.n, together.lost, together.gained)}"
    if together.p_noninferior > together.alpha:
        may = f"{name} may have lost {say.up_to(together.upper, together.margin)} against the champion{among}"
        return _unsettled(together, may)
    if alone.upper < 0 and say.points(-alone.upper) != "0":
        learnt = f"at least {say.with_unit(-alone.upper)} better than the champion"
    else:
        worst = say.at_worst(together.upper, together.margin)
        learnt = f"{worst} against the champion{among}, {allowed} allowed"
    return "pass", f"{name} learnt: {learnt} ({flips})", {}


def _learnt_nothing(alone: Comparison, together: Comparison, config: GateConfig) -> bool:
    """Whether no right answer at all shows that the experience is answered worse than all others."""
    _, most = stats.clopper_pearson(0, alone.n, alpha=config.alarm_alpha)
    return together.p_noninferior <= together.alpha and float(most) < max(
        together.baseline_accuracy, alone.margin
    )


def _judge_gain(seen: Comparison, gain: float) -> Judgement:
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
    cannot = f"{say.records(seen.n, 'holdout')} cannot settle it, {say.about(needed)} may; {UNTIL_THEN}"
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


def _first(answers: PairedAnswers, seen: Comparison, gain: float) -> Judgement:
    """Against the majority class: better by more than `gain`, not better, or unclear.

    By balanced accuracy (the mean of the classes' recalls), of which always saying one class has 1 / classes;
    by accuracy, where no labels are known.
    """
    name = f"experience {seen.experience}"
    if seen.baseline_right == seen.n:
        alone = f"{name}: its holdout holds one class only, so no model can beat saying it always"
        return "undecided", f"{alone}; let a person decide, or cut the experience with more classes", {}
    if answers.labels is None or len(answers.labels) != answers.n or answers.challenger is None:
        right, majority = seen.challenger_right / seen.n, seen.baseline_right / seen.n
        least, most, what = majority - seen.upper, majority - seen.lower, ""
    else:
        right, reach, classes = _balanced(answers.labels, answers.challenger, seen.alpha)
        majority = 1 / classes
        least, most, what = right - reach, right + reach, " on average over the classes"
    more: dict[str, float] = {
        "gain_asked": gain,
        "score": right,
        "score_lower": least,
        "score_upper": most,
        "score_majority": majority,
    }
    compared = (
        f"{say.percent(right)} answered right{what}, {say.percent(majority)} by always saying the commonest "
        "class"
    )
    if least > majority + gain and (what or seen.p_gain <= seen.alpha):
        return "pass", f"{name} learnt: {compared} ({say.records(seen.n)})", more
    if most <= majority + gain:
        asked = f", {say.with_unit(gain)} more are asked" if gain else ""
        return "fail", f"{name} not learnt: {compared}{asked}; check the labels, or train longer", more
    needed = _needed_for_first(seen.n, right - majority - gain, (most - least) / 2)
    short = f"{name}: {compared}; {say.records(seen.n, 'holdout')} cannot tell these apart"
    return "undecided", f"{short}, {say.about(needed)} may; {UNTIL_THEN}", more | {"n_needed": needed}


def _balanced(labels: NDArray[np.int64], right: Bits, alpha: float) -> tuple[float, float, int]:
    """Balanced accuracy, how far the true one may lie from it at `alpha` on one side, and the classes.

    Hoeffding's bound of a sum of independent bits, each weighing 1 / (classes n of its class): "Probability
    inequalities for sums of bounded random variables", Journal of the American Statistical Association 58:13
    (1963). It holds for any number of records.
    """
    n = np.bincount(labels)
    recalls = np.bincount(labels, weights=right)[n > 0] / n[n > 0]
    classes = len(recalls)
    reach = float(np.sqrt(np.log(1 / alpha) / 2 * (1 / n[n > 0]).sum()) / classes)
    return float(recalls.mean()), reach, classes


def _needed_for_first(n: int, apart: float, reach: float) -> int:
    """Records with which the limits would be as near as the score lies from what is asked; at least 2n."""
    return max(2 * n, ceil(n * (reach / apart) ** 2) if apart > 0 else 0)


def _unsettled(seen: Comparison, suspicion: str) -> Judgement:
    """Too few records to say either; how many would be enough."""
    have, would = say.records(seen.n, "holdout"), f"{say.about(seen.needed)} would, {UNTIL_THEN}"
    more: dict[str, float] = {"n_needed": seen.needed}
    if seen.n < int(stats.floor_n(seen.margin, seen.alpha)):
        cannot = f"{have} cannot settle a margin of {say.with_unit(seen.margin, digits=2)}"
        return "undecided", f"experience {seen.experience}: {cannot}; {would}", more
    allowed = f"{say.allowed(seen.margin)} allowed"
    return "undecided", f"{suspicion}, {allowed}; {have} cannot settle it, {would}", more
