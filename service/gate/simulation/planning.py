"""Plans a pipeline: from how many records on the gate keeps which promise, by the gate's own functions."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np

from service.gate import stats
from service.gate.base import GateConfig, PastExperience
from service.gate.guards import budget, retention
from service.gate.guards.classes import rare_margin, records_of_rare
from service.gate.holdouts import archive, records_judged
from service.gate.simulation.rates import Holdout, promote_rate
from service.gate.simulation.rule import Alike, judged_together

_MOST_EXPERIENCES = 4096
"""What takes more than so many experiences to be held is not held."""


@dataclass(frozen=True)
class Sized:
    """What a pipeline gets whose experiences all have so many records, none of them pinned."""

    gate_records: int
    """Of each, as many as are judged."""
    sealed_records: int
    block_experiences: int
    """Experiences that fill a block."""
    judged_records: int
    """Gate records that are judged of so many experiences: those that are archived share a limit."""
    least_experiences: int
    """Past experiences below which nothing can pass."""
    single_experiences: int
    """Neighbours that are judged as one at the margin that follows; 1: each is judged by itself."""
    single_margin: float
    """What these may lose less than."""
    unseen: float | None
    """Loss on one experience that could go unseen; None: it is judged by itself."""
    audited_from: int | None
    """Past experiences from which on their sealed records are held to some margin; None: never."""
    audited_margin: float | None
    """The widest such margin until the budget is held, in full tenths of a point; None: none is."""
    budget_from: int | None
    """Past experiences from which on the budget is held; None: never."""


@dataclass(frozen=True)
class Plan:
    """From how many records on which promise is kept."""

    block_records: int
    """Gate records at which a block of past experiences is closed."""
    block_passes: float
    """Exact chance that such a block passes where nothing is lost and as much flips as planned; first try."""
    least_records: int
    """Gate records below which nothing can pass."""
    single_records: int
    """Gate records from which on an experience is also judged by itself."""
    single_margin: float
    """What it may lose less than, with so many."""
    audited_records: int
    """Sealed records from which on some margin is held."""
    budget_alone: int
    """Sealed records of one experience from which on it is held against the budget."""
    budget_together: int
    """The same of several experiences."""
    rare_records: int
    """Gate records of a rare class from which on its recall is guarded."""
    rare_margin: float
    """What its recall may lose less than, with so many."""
    sized: Sized | None


def plan(config: GateConfig, *, gate: float, audit: float, records: int | None) -> Plan:
    """What a gate asks for; with `records` also what experiences of that size get.

    Args:
        config: what the pipeline requires; `planned_churn` is what a harmless update may flip.
        gate: share of an experience that every later update is judged on.
        audit: share that is sealed.
        records: records of each experience; None: of none.
    """
    first = stats.spent(config.alpha, 1)
    block = retention.records_of_block(config, config.margin, alpha=first)
    rare = records_of_rare(first, config.planned_churn / 2, config.rare_margin)
    recall = rare_margin(rare, alpha=first, lost=config.planned_churn / 2, widest=config.rare_margin)
    sized = None
    if records is not None:
        sized = _sized(config, gate=round(records * gate), sealed=round(records * audit), block=block)
    return Plan(
        block,
        promote_rate(Holdout(block, config.planned_churn, config.margin, first), 0.0),
        int(stats.floor_n(config.margin, first)),
        retention.records_of_single(config, alpha=first),
        max(config.single_margin, config.margin),
        _first(lambda n: bool(_questions(1, n, config))) or 0,
        budget.records_alone(config.budget, config.alpha),
        budget.records_together(config.budget, config.alpha, config.audits),
        rare,
        config.rare_margin if recall is None else recall,
        sized,
    )


def _sized(config: GateConfig, *, gate: int, sealed: int, block: int) -> Sized:
    gate, sealed = (min(each, config.holdout_records) for each in (gate, sealed))
    first = stats.spent(config.alpha, 1)
    one = one_experience(config, gate)
    blocks = ceil(block / gate)
    judged = records_judged(range(blocks), (), config).values()

    def held(experiences: int) -> list[float]:
        return [each.margin for each in _questions(experiences, sealed, config)]

    audited = _first(lambda many: bool(held(many)), _MOST_EXPERIENCES)
    kept = _first(lambda many: min(held(many), default=1.0) <= config.budget, _MOST_EXPERIENCES)
    before = [] if audited in (None, kept) else [*held(audited or 1), *(held(kept - 1) if kept else [])]
    return Sized(
        gate,
        sealed,
        blocks,
        sum(min(gate, most) for most in judged),
        ceil(int(stats.floor_n(config.margin, first)) / gate),
        one.neighbours,
        one.margin,
        one.unseen,
        audited,
        ceil(1000 * max(before) - 1e-9) / 1000 if before else None,
        kept,
    )


@dataclass(frozen=True)
class One:
    """What one experience may lose, in a pipeline whose experiences all have as many gate records."""

    neighbours: int
    """Experiences that are judged as one at the margin that follows; 1: each is judged by itself."""
    margin: float
    """What these may lose less than."""
    unseen: float | None
    """Loss on one of them that could go unseen; None: it is judged by itself."""

    @property
    def loss(self) -> float:
        """What the experience may lose and pass nevertheless."""
        return self.margin if self.unseen is None else self.unseen


def one_experience(config: GateConfig, gate: int) -> One:
    """What an experience with so many gate records, at least 1, is held to in a pipeline of many."""
    gate = min(gate, config.holdout_records)
    first = stats.spent(config.alpha, 1)

    def settled(records: int) -> float:
        return float(retention.single_margins(np.array([records]), config, alpha=first)[0])

    if gate >= retention.records_of_block(config, config.margin, alpha=first):
        return One(1, config.margin, None)
    if gate >= retention.records_of_single(config, alpha=first):
        return One(1, settled(gate), None)
    planned = config.model_copy(update={"alpha": first})
    past = Alike(config.max_holdouts, gate)
    unit = retention.past_units(past.history, past.sizes, config, planned=first)[0].members
    family = past.experiences + sum(len(members) > 1 for members in judged_together(past, planned)[0])
    unseen = retention.unseen_loss(gate, alpha=config.alarm_alpha / family, churn=config.planned_churn)
    return One(len(unit), settled(gate * len(unit)), unseen)


def _questions(experiences: int, sealed: int, config: GateConfig) -> list[budget.Question]:
    """What the next look asks, where none before it failed: one look for each experience since it was learnt.

    The first experience is looked at for the first time when it is the only one.
    """
    archived = archive(range(experiences), (), config)
    judged = records_judged(range(experiences), (), config)
    return budget.questions(
        [PastExperience(each, sealed, archived=each in archived) for each in range(experiences)],
        {each: min(sealed, most) for each, most in judged.items()},
        config,
        {each: config.alpha * stats.look_share(experiences - each) for each in judged},
    )


def _first(holds: Callable[[int], bool], most: int = 2**40) -> int | None:
    """The smallest number that something holds from, by bisection; None: not up to `most`."""
    low, high = 0, 1
    while not holds(high):
        if high >= most:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
