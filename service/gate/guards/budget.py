"""Budget guard: the total loss of an experience since it was learnt, judged on its sealed audit part.

A step margin alone lets small losses add up: each update may lose almost all of it. So each challenger that
would be promoted is also compared with the anchors, the versions right after each experience was learnt. An
audit publishes whether it passed, and nothing else: no counts, no limits, not which experience. What a later
challenger can follow from is then the sequence of these bits, and alpha is shared out over all sequences
(`stats.look_share`), as in the union over transcripts of Renggli et al., "Continuous integration of machine
learning models with ease.ml/ci", MLSys 2019.
"""

from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import (
    BUDGET,
    Audit,
    Evidence,
    Finding,
    GateConfig,
    Note,
    PairedAnswers,
    PastExperience,
)
from service.gate.blocks import Enough, Pool, blocks_of, history_of, pools_of, units_of
from service.gate.comparisons import pooled_counts, problem
from service.gate.pairs import counts

LASTING_CHURN, LASTING_POWER = 0.18, 0.9995
"""A champion that lost nothing passes one look at a block with this chance, where this share of its answers
differs from the anchor's. Two models that are right nine times in ten differ in 2 * 0.9 * 0.1 of their
answers, which flips back and forth reach in a few updates."""
FIRST_POWER = 0.998
"""The same of the first look at an experience alone."""


_MOST_LOOKS = 10**9


def frozen(evidence: Evidence, _config: GateConfig) -> tuple[Finding, ...]:
    """Undecided while promotion is frozen by an earlier audit."""
    if evidence.freeze is None:
        return ()
    stopped = f"promotion is frozen: the audit of update {evidence.freeze.update_id} did not pass"
    return (
        Finding(
            "freeze", "undecided", f"{stopped}; {_remedy(evidence.freeze.last_audited, evidence.champion)}"
        ),
    )


def budget(evidence: Evidence, config: GateConfig) -> tuple[Finding | Note, ...]:
    """One finding: whether the challenger is shown to have lost less than the budget since each was learnt.

    As retention, on sealed records and against the anchors: blocks keep within `budget`; each experience by
    itself, or with its neighbours where it has few records, keeps within the margin that these records
    settle; and none may be shown to have lost the budget, on its sealed and its gate part together.
    """
    audit = evidence.audit
    if audit is None:
        return ()
    sealed = [each for each in audit.answers if not each.is_empty]
    if not sealed:
        nothing = "budget: nothing is sealed (split.audit), so nobody sees small losses add up"
        return (Note(BUDGET, nothing),)
    broken = [(each, wrong) for each in sealed if (wrong := _problem(each, config))]
    if broken:
        return tuple(_broken(each, wrong) for each, wrong in broken)
    return _Look(sealed, audit, config).found(_remedy(audit.last_audited, evidence.champion))


def records_alone(budget: float, alpha: float) -> int:
    """Sealed records from which on an experience is held against the budget alone."""
    return _records(budget, alpha * stats.look_share(1), FIRST_POWER)


def records_together(budget: float, alpha: float, audits: int) -> int:
    """Sealed records from which on smaller ones are held against it together.

    They are several, of which one may raise the alarm by chance: so many still pass the planned number of
    looks after one that did not pass.
    """
    look = max(audits, 2)
    return _records(budget, alpha * stats.look_share(look, failures=1, runs=1), LASTING_POWER)


@lru_cache(maxsize=65536)
def _records(margin: float, alpha: float, power: float) -> int:
    return int(stats.needed_n(margin, alpha, churn=LASTING_CHURN, power=power))


class Question(NamedTuple):
    """Sealed records that a look must show to be kept."""

    pool: Pool
    margin: float
    alpha: float


def questions(
    history: Sequence[PastExperience],
    sizes: Mapping[int, int],
    config: GateConfig,
    spends: Mapping[int, float],
) -> list[Question]:
    """What one look asks, by numbers of records alone: blocks at the budget, then singles at wider margins.

    Blocks are held against the budget from `records_alone` sealed records of one experience, or from
    `records_together` of several, on. Before that, and beside it, experiences by themselves, or with their
    neighbours, are held against what their records settle.

    Args:
        history: every experience that was learnt, in that order, with its sealed records.
        sizes: experience -> its sealed records, of those that are judged.
        config: the gate.
        spends: experience -> what this look may spend on it; several together spend the least of theirs.
    """
    found: list[Question] = []
    alone = records_alone(config.budget, config.alpha)
    together = records_together(config.budget, config.alpha, config.audits)
    blocks = blocks_of(history, sizes, together, alone=alone)
    for pool in pools_of(blocks, sizes, _enough(config.budget, sizes, spends)):
        records = [sizes[each] for each in pool.members]
        if sum(records) >= together or max(records) >= alone:
            found.append(Question(pool, config.budget, _spent(pool.members, spends)))
    planned = config.alpha * stats.look_share(config.audits)
    units = units_of(history, sizes, _records(_widest(config), planned, LASTING_POWER))
    return found + _alone(
        units, sizes, config, spends, asked={frozenset(each.pool.members) for each in found}
    )


def _alone(
    units: Sequence[Sequence[int]],
    sizes: Mapping[int, int],
    config: GateConfig,
    spends: Mapping[int, float],
    *,
    asked: Set[frozenset[int]],
) -> list[Question]:
    """Experiences by themselves, or with their neighbours, at what their records settle; none twice."""
    shortest = min(map(len, asked), default=0)
    small, enough = [], _enough(_widest(config), sizes, spends)
    for pool in pools_of(units, sizes, enough):
        members = pool.members
        n = sizes[members[0]] if len(members) == 1 else sum(map(sizes.__getitem__, members))
        if n >= enough(members) and (len(members) < shortest or frozenset(members) not in asked):
            small.append((pool, n, _spent(members, spends)))
    n_of, alphas = (np.array([each[place] for each in small]) for place in (1, 2))
    settled = stats.settled_margin(n_of, alphas, churn=LASTING_CHURN, power=LASTING_POWER).tolist()
    return [
        Question(pool, max(config.budget, margin), spending)
        for (pool, _, spending), margin in zip(small, settled, strict=True)
    ]


def _widest(config: GateConfig) -> float:
    return max(config.single_margin, config.budget)


def _enough(margin: float, sizes: Mapping[int, int], spends: Mapping[int, float]) -> Enough:
    # Most were looked at alike, and may spend the same.
    by_spending = {each: _records(margin, each, LASTING_POWER) for each in set(spends.values())}
    needs = {each: by_spending[spends[each]] for each in sizes}
    return lambda members: needs[members[0]] if len(members) == 1 else max(map(needs.__getitem__, members))


def _spent(members: Sequence[int], spends: Mapping[int, float]) -> float:
    return min(map(spends.__getitem__, members))


class _Look:
    """One look at all sealed records."""

    def __init__(self, sealed: Sequence[PairedAnswers], audit: Audit, config: GateConfig) -> None:
        self.sealed, self.audit, self.config = sealed, audit, config
        self.place = {each.experience: place for place, each in enumerate(sealed)}
        self.counted = counts(sealed)
        self.sizes = {each.experience: each.n for each in sealed}
        # A person who lets a holdout lose more at once lets it lose as much in all.
        self.wider = {
            each.experience: each.margin
            for each in sealed
            if each.margin is not None and each.margin > config.budget
        }
        self.shared = {index: n for index, n in self.sizes.items() if index not in self.wider}
        self.look = max(each.looks for each in sealed) + 1
        self.spends = {
            each.experience: config.alpha * stats.look_share(each.looks + 1, each.failures, each.failure_runs)
            for each in sealed
        }
        self.questions = [
            *questions(history_of(audit.history, sealed), self.shared, config, self.spends),
            *self._wider(),
        ]
        members = [[self.place[each] for each in its.pool.members] for its in self.questions]
        self.pooled = pooled_counts(self.counted, members) if members else self.counted[:, :0]

    def found(self, remedy: str) -> tuple[Finding | Note, ...]:
        notes = self._notes()
        # Where the anchor answers nothing right, nothing could be lost.
        right = self.pooled[1].tolist()
        if blind := [each.pool for each, its in zip(self.questions, right, strict=True) if not its]:
            return (*(self._blind(pool) for pool in blind), *notes)
        n = sum(self.sizes.values())
        numbers: dict[str, float] = {"n": n, "look": self.look, "budget": self.config.budget}
        if self._kept() and not self._alarms():
            return (Finding(BUDGET, "pass", self._within(), None, numbers), *notes)
        # What did not pass, and by how much, would let the next challengers fit the sealed records.
        sentence = (
            f"the audit on the sealed records did not pass (look {self.look}), and what was lost on them "
            f"stays sealed; promotion is frozen: {remedy}"
        )
        return (Finding(BUDGET, "undecided", sentence, None, numbers), *notes)

    def _within(self) -> str:
        on = f"({say.records(sum(self.sizes.values()), 'sealed')}; look {self.look})"
        judged = sorted({index for each in self.questions for index in each.pool.members})
        others = sorted(set(self.sizes) - set(judged))
        said = []
        if judged:
            least, most = (edge(each.margin for each in self.questions) for edge in (min, max))
            within = f"within {say.with_unit(least, digits=2)}"
            if most > least:
                margins = f"{say.points(least, digits=2)} to {say.with_unit(most, digits=2)}"
                within = f"within their margins, {margins},"
            said.append(f"{say.experiences(judged)} {within} since learnt")
        if others:
            budget = say.with_unit(self.config.budget, digits=2)
            said.append(f"{say.experiences(others)} not shown to have lost {budget} since learnt")
        return f"budget: {', '.join(said)} {on}"

    def _wider(self) -> list[Question]:
        """Experiences with a wider margin of their own, where they have records enough for it."""
        found = [Question(Pool((index,)), margin, self.spends[index]) for index, margin in self.wider.items()]
        return [
            each
            for each in found
            if self.sizes[each.pool.own[0]] >= _records(each.margin, each.alpha, LASTING_POWER)
        ]

    def _kept(self) -> bool:
        n, before, after, both = self.pooled
        margins = np.array([each.margin for each in self.questions])
        p = stats.noninferiority_p(before - both, after - both, n=n, margin=margins)
        return bool((p <= np.array([each.alpha for each in self.questions])).all())

    def _alarms(self) -> bool:
        """Whether any experience is shown to have lost, and by the estimate at least the budget.

        On its sealed and its gate part together. It only asks a person: no promise rests on it, so it need
        not be shared out over looks.
        """
        counted = self.counted.copy()
        gate = [
            each
            for each in self.audit.gate
            if each.experience in self.place and each.n and problem(each, self.config.budget) is None
        ]
        if gate:
            counted[:, [self.place[each.experience] for each in gate]] += counts(gate)
        n, before, after, both = counted
        allowed = np.array([self.wider.get(each.experience, self.config.budget) for each in self.sealed])
        level = alarm_level(np.array([each.failures for each in self.sealed]), self.config)
        return bool(alarmed(before - both, after - both, n=n, budget=allowed, level=level).any())

    def _blind(self, pool: Pool) -> Finding:
        """The anchor alone decides this, so it is no look."""
        n = say.records(sum(self.sizes[each] for each in pool.members), "sealed")
        none = f"{say.experiences(pool.own)}: the anchor answers none of {n} right"
        retire = "retire it (holdfast holdout retire), or a person decides"
        sentence = f"{none}, so what was lost is unknown; {retire}"
        return Finding(BUDGET, "undecided", sentence, pool.own[0] if len(pool.own) == 1 else None)

    def _notes(self) -> list[Note]:
        config = self.config
        if not self.shared or any(each.margin <= config.budget for each in self.questions):
            return []
        n, needed = sum(self.shared.values()), records_together(config.budget, config.alpha, config.audits)
        budget = say.with_unit(config.budget, digits=2)
        sentence = (
            f"budget: {say.records(n, 'sealed')} so far; to hold {budget} takes {say.about(needed)}, and "
            "until then a wider margin is held, once these records settle any"
        )
        return [Note(BUDGET, sentence, {"n": n, "n_needed": needed})]


def alarmed(
    lost: NDArray[np.int64],
    gained: NDArray[np.int64],
    *,
    n: NDArray[np.int64],
    budget: NDArray[np.float64] | float,
    level: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """(..., experiences) whether one is shown to have lost, and by the estimate at least the budget.

    Exact McNemar at these levels, Bonferroni over the experiences.
    """
    p = stats.mcnemar_drop_p(lost, gained) * lost.shape[-1]
    return np.asarray((p <= level) & (lost - gained >= budget * n), dtype=np.bool_)


def alarm_level(failures: NDArray[np.int64], config: GateConfig) -> NDArray[np.float64]:
    """(...) Level of the alarm, after so many audits that did not pass.

    It begins at `alpha`, and each of these halves it: what showed a loss by chance would otherwise show it
    at many later looks too, each of which costs the blocks of their `alpha`, while what is being forgotten
    shows more of it each time.
    """
    return np.asarray(config.alpha * 0.5 ** np.minimum(failures, 64), dtype=np.float64)


def _problem(answers: PairedAnswers, config: GateConfig) -> str | None:
    looks, failures, runs = answers.looks, answers.failures, answers.failure_runs
    if not 0 <= runs <= failures <= looks or bool(runs) != bool(failures) or not looks < _MOST_LOOKS:
        counted = f"{looks} looks at its sealed records, of which {failures} in {runs} runs did not pass"
        return f"{counted}, cannot be; count them again"
    return problem(answers, config.budget)


def _broken(answers: PairedAnswers, wrong: str) -> Finding:
    subject = f"experience {answers.experience}, since it was learnt"
    wrong = wrong.replace("the baseline's", "its anchor's").replace("the baseline", "its anchor")
    return Finding(BUDGET, "undecided", f"{subject}: {wrong}", answers.experience)


def _remedy(last_audited: int | None, champion: int | None) -> str:
    lift = "lift the freeze with a reason (holdfast unfreeze)"
    if last_audited is None:
        return f"no version has passed an audit yet; look at the accuracy since each was learnt, then {lift}"
    if last_audited == champion:
        stays = f"version {champion}, the last whose audit passed, stays"
        return f"{stays}; look at the accuracy since each was learnt, then {lift}"
    return f"roll back to version {last_audited}, the last whose audit passed (holdfast rollback), or {lift}"
