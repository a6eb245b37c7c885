"""Golden guard: does the challenger keep what the champion, and the anchor, answer right on golden sets?

Too little, missing or broken evidence is undecided, with the reason; never a pass.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import PROMISE, Bits, Evidence, Finding, GateConfig, GoldenAnswers, Note, PairedAnswers
from service.gate.comparisons import Comparison, compare, problem
from service.gate.guards.judgements import Judgement, looks_left

GOLDEN = "golden"
"""Name of the question against the champion; a loss that is shown fails it."""
GOLDEN_ANCHOR = "golden_anchor"
"""Name of the question against the anchor; what is not kept asks a person."""

Side = Literal["champion", "anchor"]


def golden(evidence: Evidence, config: GateConfig) -> tuple[Finding | Note, ...]:
    """Two findings on each golden set: against the champion, and against the anchor where that is another.

    A set with a margin is held to it by the test of retention, at alpha, and to `budget` or the margin, if
    that is larger, against its anchor. Every set must pass by itself (an intersection-union test: Berger,
    Technometrics 24:295, 1982), so alpha needs no correction. The alarm "some of them lost" is adjusted over
    the sets (Holm) and held against `alarm_alpha`. A set without a margin must lose no right answer: that is
    a count, and promises nothing of other records.
    """
    times = Counter(each.number for each in evidence.golden)
    sets = [each for each in evidence.golden if times[each.number] == 1]
    names = {each.number: each.name for each in evidence.golden if times[each.number] > 1}
    twice = [
        Finding(
            GOLDEN,
            "undecided",
            f"golden set {name} is more than once among the golden sets; run the update again",
            numbers={"golden": number},
        )
        for number, name in names.items()
    ]
    if evidence.first:
        return (*twice, *(_first(each) for each in sets))
    family = len(evidence.golden)
    anchored = _against(_anchored(sets, evidence), config, "anchor", family=family)
    found = [*twice, *_against(sets, config, "champion", family=family), *anchored]
    return (*found, *_promises(sets, evidence, config))


def _anchored(sets: Sequence[GoldenAnswers], evidence: Evidence) -> list[GoldenAnswers]:
    """Sets whose anchor is not the champion itself; an anchor that nobody names is missing."""
    return [each for each in sets if each.anchor_version is None or each.anchor_version != evidence.champion]


def _first(answers: GoldenAnswers) -> Finding | Note:
    """A first version has nothing to keep; its own answers must be there all the same."""
    right = answers.challenger
    wrong = _problem(answers, right, right, "champion")
    if wrong is not None or right is None:
        return Finding(GOLDEN, "undecided", f"{_name(answers)}: {wrong}", numbers={"golden": answers.number})
    share = f"{int(right.sum())} of {say.records(len(right))} right"
    sentence = f"{_name(answers)}: the first version answers {share}; later ones are held to what it answers"
    return Note(GOLDEN, sentence, {"golden": answers.number, "n": len(right)})


def _against(sets: Sequence[GoldenAnswers], config: GateConfig, side: Side, *, family: int) -> list[Finding]:
    """One finding on each set, in their order; of so many that are asked about in all."""
    margins = {each.number: _margin(each, config, side) for each in sets}
    wrong = {each.number: _wrong(each, config, side) for each in sets}
    sound = [each for each in sets if wrong[each.number] is None]
    seen = compare(
        # A set without a margin takes part with any: it is judged by its count alone.
        [(_pair(each, side), margins[each.number] or 0.5) for each in sound],
        alpha=config.alpha,
        holdouts=family,
    )
    compared = {each.number: its for each, its in zip(sound, seen, strict=True)}
    found = []
    for each in sets:
        its, why = compared.get(each.number), wrong[each.number]
        if its is None:
            guard = GOLDEN if side == "champion" else GOLDEN_ANCHOR
            numbers = {"golden": each.number}
            found.append(Finding(guard, "undecided", f"{_name(each)}: {why}", numbers=numbers))
        elif side == "champion":
            found.append(_of_champion(each, its, config))
        else:
            found.append(_of_anchor(each, its))
    return found


def _margin(answers: GoldenAnswers, config: GateConfig, side: Side) -> float | None:
    if answers.margin is None or side == "champion":
        return answers.margin
    return max(answers.margin, config.budget)


def _wrong(answers: GoldenAnswers, config: GateConfig, side: Side) -> str | None:
    """Why a set cannot be judged, and what to do; None: it can."""
    baseline = answers.baseline if side == "champion" else answers.anchor
    wrong = _problem(answers, baseline, answers.challenger, side)
    margin = _margin(answers, config, side)
    if wrong is None and margin is not None:
        wrong = problem(_pair(answers, side), margin)
        if wrong is None and not 0 <= answers.looks < config.holdout_looks:
            wrong = (
                f"it was compared {answers.looks} times, and is exhausted: models chosen by it so often may "
                "fit it by luck; retire it (holdfast holdout retire), and add a new one"
            )
    return wrong


def _problem(
    answers: GoldenAnswers, baseline: Bits | None, challenger: Bits | None, side: Side
) -> str | None:
    """Why these answers are not those of the set's records; None: they are."""
    for whose, bits in ((side, baseline), ("challenger", challenger)):
        if bits is None:
            return f"the answers of the {whose} are missing; run the update again, or a person decides"
        if not isinstance(bits, np.ndarray) or bits.dtype.kind != "b" or bits.ndim != 1:
            return f"the answers of the {whose} are not right/wrong bits; run the update again"
        if len(bits) != answers.records:
            return (
                f"{len(bits)} answers of the {whose} are not those of its {say.records(answers.records)}; "
                "run the update again"
            )
    if not answers.records:
        return "it holds no record; retire it (holdfast holdout retire)"
    return None


def _pair(answers: GoldenAnswers, side: Side) -> PairedAnswers:
    baseline = answers.baseline if side == "champion" else answers.anchor
    return PairedAnswers(answers.number, baseline, answers.challenger, answers.margin)


def _name(answers: GoldenAnswers) -> str:
    return f"golden set {answers.name}"


def _of_champion(answers: GoldenAnswers, seen: Comparison, config: GateConfig) -> Finding:
    if answers.margin is None:
        return _none_lost(answers, seen, "champion")
    late, looks = looks_left(answers.looks, config.holdout_looks)
    shown = seen.p_noninferior > seen.alpha and seen.p_drop <= config.alarm_alpha
    if shown:
        lost = f"{_name(answers)} lost {say.between(seen.lower, seen.upper, seen.margin)}"
        said = f"{lost}; {say.were_allowed(seen.margin)}: keep the champion, and learn with more replay"
        judged: Judgement = ("fail", said, {})
    else:
        judged = _kept(answers, seen, since="", nothing="the champion")
    answer, sentence, more = judged
    numbers = {"golden": answers.number, **seen.numbers({**more, **looks})}
    return Finding(GOLDEN, answer, sentence + late, numbers=numbers)


def _of_anchor(answers: GoldenAnswers, seen: Comparison) -> Finding:
    if answers.margin is None:
        return _none_lost(answers, seen, "anchor")
    answer, sentence, more = _kept(answers, seen, since=f" {_since(answers)}", nothing="the anchor")
    numbers = {"golden": answers.number, **seen.numbers(more)}
    return Finding(GOLDEN_ANCHOR, answer, sentence, numbers=numbers)


def _since(answers: GoldenAnswers) -> str:
    """The anchor is the champion at the addition, or a version that a person approved with a loss since."""
    return f"since v{answers.anchor_version}, its anchor,"


def _kept(answers: GoldenAnswers, seen: Comparison, *, since: str, nothing: str) -> Judgement:
    """Pass, or undecided: whether less than the margin was lost."""
    name = _name(answers)
    if not seen.baseline_right and seen.p_gain > seen.alpha:
        none = f"{name}: {nothing} answers none of {say.records(seen.n)} right"
        return "undecided", f"{none}, so whether anything was lost is unknown; a person decides", {}
    if seen.p_noninferior <= seen.alpha:
        worst = f"{say.at_worst(seen.upper, seen.margin)}, {say.allowed(seen.margin)} allowed"
        said = f"{name} kept its accuracy{since.rstrip(',')}: {worst}"
        return "pass", f"{said} ({say.flips(seen.n, seen.lost, seen.gained)})", {}
    needed = max(seen.needed, int(stats.floor_n(seen.margin, seen.alpha)))
    may = f"{name} may have lost {say.up_to(seen.upper, seen.margin)}{since.rstrip(',')}"
    settle = f"{say.records(seen.n)} cannot settle it, {say.about(needed)} would"
    remedy = "a person decides, or add a larger set"
    said = f"{may}, {say.allowed(seen.margin)} allowed; {settle}; {remedy}"
    return "undecided", said, {"n_needed": needed}


def _none_lost(answers: GoldenAnswers, seen: Comparison, side: Side) -> Finding:
    """By count: every record that the champion, or the anchor, answers right must still be answered right."""
    numbers = {
        "golden": answers.number,
        "n": seen.n,
        "lost": seen.lost,
        "gained": seen.gained,
        "baseline_accuracy": seen.baseline_accuracy,
        "challenger_accuracy": seen.challenger_accuracy,
    }
    name, guard = _name(answers), GOLDEN if side == "champion" else GOLDEN_ANCHOR
    of = f"of {say.records(seen.baseline_right)} that the {side} answers right"
    when = "" if side == "champion" else f" {_since(answers).rstrip(',')}"
    if not seen.baseline_right:
        none = f"{name}: the {side} answers none of {say.records(seen.n)} right, so nothing can be lost"
        return Finding(guard, "undecided", f"{none}; a person decides", numbers=numbers)
    if not seen.lost:
        counted = "a count of these records, which promises nothing of others"
        return Finding(guard, "pass", f"{name} lost none{when} {of} ({counted})", numbers=numbers)
    if side == "champion":
        sentence = f"{name} lost {seen.lost} {of}; none may be lost: keep the champion"
        return Finding(guard, "fail", sentence, numbers=numbers)
    sentence = f"{name} lost {seen.lost}{when} {of}; none may be lost: a person decides"
    return Finding(guard, "undecided", sentence, numbers=numbers)


def _promises(sets: Sequence[GoldenAnswers], evidence: Evidence, config: GateConfig) -> list[Note]:
    alpha = stats.shared_out(config.alpha, evidence.attempt)
    notes = []
    for each in sets:
        if each.margin is not None:
            lost = f"a challenger that truly lost {say.with_unit(each.margin, digits=2)} or more on it"
            sentence = f"{_name(each)}: {lost} is promoted at most {say.percent_of(alpha)} of the time"
            notes.append(Note(PROMISE, sentence, {"margin": each.margin, "alpha": alpha}))
    return notes
