"""The groups guard: did any group of records lose more than it may? The worst slice decides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import Answer, Evidence, Finding, GateConfig, PairedAnswers
from service.gate.comparisons import Comparison, compare, problem

_LONGEST_VALUE = 40


@dataclass(frozen=True)
class _Slice:
    """The records of one value of one column: of one holdout, or of several where each has too few."""

    column: str
    value: str
    experiences: tuple[int, ...]
    answers: PairedAnswers

    @property
    def n(self) -> int:
        return 0 if self.answers.baseline is None else len(self.answers.baseline)

    @property
    def described(self) -> str:
        value = self.value if len(self.value) <= _LONGEST_VALUE else self.value[:_LONGEST_VALUE] + "..."
        return f"{self.column} = {value}"

    @property
    def name(self) -> str:
        return f"{self.described} of {say.experiences(self.experiences)}"


def groups(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Did any group lose more than it may, on a past holdout or the new? One finding a column.

    Every slice (one value on one holdout) must pass on its own at alpha, so nothing needs correcting
    (intersection-union). Slices too small for any challenger to pass are taken together by value.
    """
    margin = config.groups
    if margin is None or evidence.first:
        return ()
    holdouts = (*evidence.past, *evidence.new)
    columns = sorted({column for each in holdouts for column in each.groups})
    if not columns:
        nothing = (
            "no holdout carries a group column, so no group can be judged: declare them in the schema, "
            "or unset groups"
        )
        return (Finding("groups", "undecided", nothing),)
    # Of the first try: what is judged alone stays so, however little of alpha is left.
    floor = int(stats.floor_n(margin, stats.spent_at_first(config.alpha, evidence.attempt)))
    broken = {column: _broken(holdouts, column, margin) for column in columns}
    slices = [
        each
        for column in columns
        for each in _joined(
            [piece for holdout in holdouts for piece in _slices(holdout, column, margin)], floor=floor
        )
    ]
    family = len(slices) + sum(map(len, broken.values()))
    seen = compare([(each.answers, margin) for each in slices], alpha=config.alpha, holdouts=family)
    judged = [_judge(each, its, floor=floor) for each, its in zip(slices, seen, strict=True)]
    return tuple(
        _worst(column, [each for each in judged if each.slice.column == column], broken[column])
        for column in columns
    )


def _broken(holdouts: Sequence[PairedAnswers], column: str, margin: float) -> list[tuple[int, str]]:
    """Experiences that cannot be cut by a column, with the reason. An empty holdout has nothing to cut."""
    found = []
    for each in holdouts:
        wrong = _uncut(each, column, margin)
        if wrong is not None:
            found.append((each.experience, wrong))
    return found


def _uncut(each: PairedAnswers, column: str, margin: float) -> str | None:
    if each.baseline is not None and each.challenger is not None:
        if not len(each.baseline) and not len(each.challenger):
            return None
        if column not in each.groups:
            return f"its holdout has no group column {column}; a person decides"
        if len(each.groups[column]) != len(each.baseline):
            return (
                f"{len(each.groups[column])} values of {column} cannot be matched with "
                f"{say.records(len(each.baseline))}; predict its holdout again"
            )
    return problem(each, margin)


def _slices(holdout: PairedAnswers, column: str, margin: float) -> Iterator[_Slice]:
    if (
        column not in holdout.groups
        or _uncut(holdout, column, margin) is not None
        or holdout.baseline is None
        or holdout.challenger is None
    ):
        return
    values, places = np.unique(np.asarray(holdout.groups[column]).astype(np.str_), return_inverse=True)
    for place, value in enumerate(values):
        chosen = places == place
        answers = PairedAnswers(holdout.experience, holdout.baseline[chosen], holdout.challenger[chosen])
        yield _Slice(column, str(value), (holdout.experience,), answers)


def _joined(slices: Sequence[_Slice], *, floor: int) -> list[_Slice]:
    """Slices that can be judged alone as they are; the small ones of a value as one."""
    alone = [each for each in slices if each.n >= floor]
    small: dict[str, list[_Slice]] = {}
    for each in slices:
        if each.n < floor:
            small.setdefault(each.value, []).append(each)
    for value, pieces in small.items():
        experiences = tuple(sorted({index for piece in pieces for index in piece.experiences}))
        answers = PairedAnswers(
            experiences[0],
            np.concatenate([p.answers.baseline for p in pieces if p.answers.baseline is not None]),
            np.concatenate([p.answers.challenger for p in pieces if p.answers.challenger is not None]),
        )
        alone.append(_Slice(pieces[0].column, value, experiences, answers))
    return alone


@dataclass(frozen=True)
class _Judged:
    slice: _Slice
    seen: Comparison
    answer: Answer
    sentence: str
    needed: int | None = None


def _judge(each: _Slice, seen: Comparison, *, floor: int) -> _Judged:
    allowed = say.allowed(seen.margin)
    if seen.p_noninferior <= seen.alpha:
        worst = f"{say.at_worst(seen.upper, seen.margin)}, {allowed} allowed"
        flips = say.flips(seen.n, seen.lost, seen.gained)
        return _Judged(each, seen, "pass", f"{each.name}: {worst} ({flips})")
    if seen.p_drop <= seen.alpha:
        lost = f"{each.name} lost {say.between(seen.lower, seen.upper)}; {say.were_allowed(seen.margin)}"
        return _Judged(
            each, seen, "fail", f"{lost}: keep the champion, and replay more records of {each.described}"
        )
    if seen.n < floor:
        few = f"{each.name} has {say.records(seen.n, 'holdout')} in all, which cannot settle a margin of "
        rest = (
            f"{say.with_unit(seen.margin, digits=2)}; it takes at least {floor}, until then a person decides"
        )
        return _Judged(each, seen, "undecided", few + rest, floor)
    needed = seen.needed
    may = f"{each.name} may have lost {say.up_to(seen.upper, seen.margin)}, {allowed} allowed"
    cannot = f"{say.records(seen.n, 'holdout')} cannot settle it, {say.about(needed)} would have"
    remedy = "a person decides, or learn with less churn (more replay, smaller steps)"
    return _Judged(each, seen, "undecided", f"{may}; {cannot}; {remedy}", needed)


_BADNESS: dict[Answer, int] = {"pass": 0, "undecided": 1, "fail": 2}


def _worst(column: str, judged: Sequence[_Judged], broken: Sequence[tuple[int, str]]) -> Finding:
    """One column's finding: that of its worst slice."""
    worst = max(judged, key=lambda each: (_BADNESS[each.answer], each.seen.upper), default=None)
    if broken and (worst is None or worst.answer != "fail"):
        experience, why = broken[0]
        return Finding("groups", "undecided", f"{column}: experience {experience}: {why}", experience)
    if worst is None:
        none = f"{column}: no holdout has a record; put records aside, or let a person decide"
        return Finding("groups", "undecided", none)
    sentence = worst.sentence
    if worst.answer == "pass":
        count = len(judged)
        kept = "its only group kept its accuracy" if count == 1 else f"all {count} groups kept their accuracy"
        sentence = f"{column}: {kept}, the worst being {sentence}"
    numbers = worst.seen.numbers() | {"slices": len(judged)}
    if worst.needed is not None:
        numbers["n_needed"] = worst.needed
    alone = worst.slice.experiences[0] if len(worst.slice.experiences) == 1 else None
    return Finding("groups", worst.answer, sentence, alone, numbers)
