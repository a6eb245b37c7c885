"""Groups guard: did any group of records lose more than it may? The worst slice decides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import Answer, Column, Evidence, Finding, GateConfig, PairedAnswers
from service.gate.comparisons import Comparison, ComparisonTable, compare_counts, problem
from service.gate.pairs import AT_ONCE, Counts

_LONGEST_VALUE = 40


@dataclass(frozen=True)
class _Slices:
    """The slices of one group column: the value, the experiences and the counts of each."""

    column: str
    values: Sequence[str]
    experiences: Sequence[tuple[int, ...]]
    """Several where each has too few records of the value."""
    counted: Counts
    """(4, slices), as `comparisons.counts` returns them."""

    def __len__(self) -> int:
        return len(self.values)

    def described(self, row: int) -> str:
        value = self.values[row]
        return f"{self.column} = {value if len(value) <= _LONGEST_VALUE else value[:_LONGEST_VALUE] + '...'}"

    def name(self, row: int) -> str:
        return f"{self.described(row)} of {say.experiences(self.experiences[row])}"


def groups(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """One finding for each group column: did any group lose more than it may, on a past or a new holdout?

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
    cut, broken = [], []
    for column in columns:
        checked = [(each, _problem(each, column, margin)) for each in holdouts]
        broken.append([(each.experience, why) for each, why in checked if why is not None])
        whole = [each for each, why in checked if why is None and not each.is_empty]
        cut.append(_joined(_cut(whole, column), floor=floor))
    seen = _compared(cut, margin=margin, alpha=config.alpha, broken=sum(map(len, broken)))
    return tuple(
        _worst(slices, its, wrong, floor=floor) for slices, its, wrong in zip(cut, seen, broken, strict=True)
    )


def _problem(each: PairedAnswers, column: str, margin: float) -> str | None:
    """Why a holdout cannot be divided by a group column; None: it can, or it is empty."""
    if each.baseline is not None and each.challenger is not None:
        if each.is_empty:
            return None
        if column not in each.groups:
            return f"its holdout has no group column {column}; a person decides"
        if len(each.groups[column]) != len(each.baseline):
            return (
                f"{len(each.groups[column])} values of {column} cannot be matched with "
                f"{say.records(len(each.baseline))}; predict its holdout again"
            )
    return problem(each, margin)


def _cut(holdouts: Sequence[PairedAnswers], column: str) -> _Slices:
    """The slices of a column: every value on every holdout."""
    values = [value for each in holdouts for value in each.groups[column].values]
    experiences = [(each.experience,) for each in holdouts for _ in each.groups[column].values]
    n = np.concatenate([np.zeros(0, dtype=np.int64), *(each.groups[column].sizes for each in holdouts)])
    some = [_wrong(holdouts[first : first + AT_ONCE], column) for first in range(0, len(holdouts), AT_ONCE)]
    neither, gained, lost = np.concatenate([np.zeros((3, 0), dtype=np.int64), *some], axis=1)
    both = n - neither - gained - lost
    return _Slices(column, values, experiences, np.array([n, both + lost, both + gained, both]))


def _wrong(holdouts: Sequence[PairedAnswers], column: str) -> Counts:
    """(3, slices) records that neither model, only the challenger, and only the baseline answer right."""
    groups = [each.groups[column] for each in holdouts]
    before = np.concatenate([each.baseline for each in holdouts if each.baseline is not None])
    after = np.concatenate([each.challenger for each in holdouts if each.challenger is not None])
    # Most records are right by both, which need no counting: they are the rest.
    wrong = np.flatnonzero(~(before & after))
    slices = np.concatenate([each.indices for each in groups])[wrong] + _firsts(groups, wrong)
    cells = 4 * slices + (2 * before.view(np.uint8)[wrong] + after.view(np.uint8)[wrong])
    return np.bincount(cells, minlength=4 * sum(len(each.values) for each in groups)).reshape(-1, 4).T[:3]


def _firsts(groups: Sequence[Column], records: Counts) -> Counts:
    """For records (rising) of concatenated columns: the index of the first slice of each record's column."""
    widths, sizes = (np.cumsum([0, *map(len, each)]) for each in ([g.values for g in groups], groups))
    return np.repeat(widths[:-1], np.diff(np.searchsorted(records, sizes)))


def _joined(slices: _Slices, *, floor: int) -> _Slices:
    """Slices that can be judged alone, unchanged; small slices with the same value joined into one."""
    n = slices.counted[0]
    alone = np.flatnonzero(n >= floor).tolist()
    small: dict[str, list[int]] = {}
    for row in np.flatnonzero((n > 0) & (n < floor)).tolist():
        small.setdefault(slices.values[row], []).append(row)
    together = [
        tuple(sorted({index for row in rows for index in slices.experiences[row]})) for rows in small.values()
    ]
    sums = [slices.counted[:, rows].sum(axis=1, keepdims=True) for rows in small.values()]
    return _Slices(
        slices.column,
        [*(slices.values[row] for row in alone), *small],
        [*(slices.experiences[row] for row in alone), *together],
        np.concatenate([slices.counted[:, alone], *sums], axis=1),
    )


def _compared(
    cut: Sequence[_Slices], *, margin: float, alpha: float, broken: int
) -> Iterator[ComparisonTable]:
    """Compare the slices of each column; all, and `broken` more, are one family of tests."""
    counted = np.concatenate([each.counted for each in cut], axis=1)
    count = counted.shape[1]
    columns = compare_counts(
        counted,
        experiences=[index for each in cut for index, *_ in each.experiences],
        margins=np.full(count, margin),
        alpha=alpha,
        holdouts=count + broken,
    )
    end = 0
    for each in cut:
        first, end = end, end + len(each)
        yield {name: values[first:end] for name, values in columns.items()}


def _worst(
    slices: _Slices, seen: ComparisonTable, broken: Sequence[tuple[int, str]], *, floor: int
) -> Finding:
    """The finding of a column: that of its worst slice."""
    passed, fell = seen["p_noninferior"] <= seen["alpha"], seen["p_drop"] <= seen["alpha"]
    badness = np.where(passed, 0, np.where(fell, 2, 1))
    if broken and 2 not in badness:
        experience, why = broken[0]
        return Finding("groups", "undecided", f"{slices.column}: experience {experience}: {why}", experience)
    if not len(slices):
        none = f"{slices.column}: no holdout has a record; put records aside, or let a person decide"
        return Finding("groups", "undecided", none)
    row = int(np.where(badness == badness.max(), seen["upper"], -np.inf).argmax())
    its = Comparison._make(values[row].item() for values in seen.values())
    answer, sentence, needed = _judge(slices, row, its, floor=floor)
    if answer == "pass":
        count = len(slices)
        kept = "its only group kept its accuracy" if count == 1 else f"all {count} groups kept their accuracy"
        sentence = f"{slices.column}: {kept}, the worst being {sentence}"
    numbers = its.numbers({"slices": len(slices)})
    if needed is not None:
        numbers["n_needed"] = needed
    experiences = slices.experiences[row]
    return Finding("groups", answer, sentence, experiences[0] if len(experiences) == 1 else None, numbers)


def _judge(slices: _Slices, row: int, seen: Comparison, *, floor: int) -> tuple[Answer, str, int | None]:
    """Answer and sentence of one slice, and, where it is undecided, the records that would settle it."""
    name, described = slices.name(row), slices.described(row)
    allowed = say.allowed(seen.margin)
    if seen.p_noninferior <= seen.alpha:
        worst = f"{say.at_worst(seen.upper, seen.margin)}, {allowed} allowed"
        return "pass", f"{name}: {worst} ({say.flips(seen.n, seen.lost, seen.gained)})", None
    if seen.p_drop <= seen.alpha:
        lost = (
            f"{name} lost {say.between(seen.lower, seen.upper, seen.margin)}; {say.were_allowed(seen.margin)}"
        )
        return "fail", f"{lost}: keep the champion, and replay more records of {described}", None
    if seen.n < floor:
        few = f"{name} has {say.records(seen.n, 'holdout')} in all, which cannot settle a margin of "
        rest = (
            f"{say.with_unit(seen.margin, digits=2)}; it takes at least {floor}, until then a person decides"
        )
        return "undecided", few + rest, floor
    may = f"{name} may have lost {say.up_to(seen.upper, seen.margin)}, {allowed} allowed"
    cannot = f"{say.records(seen.n, 'holdout')} cannot settle it, {say.about(seen.needed)} would have"
    remedy = "a person decides, or learn with less churn (more replay, smaller steps)"
    return "undecided", f"{may}; {cannot}; {remedy}", seen.needed
