"""The rules of retention and budget on the counts of many simulated updates at once.

All past experiences have equally many records, and none has a margin of its own.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.gate import stats
from service.gate.base import GateConfig, PastExperience
from service.gate.guards import budget, retention

Counts = NDArray[np.int64]
Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Alike:
    """So many past experiences of so many records each."""

    experiences: int
    records: int

    @property
    def history(self) -> tuple[PastExperience, ...]:
        return tuple(PastExperience(index, self.records) for index in range(self.experiences))

    @property
    def sizes(self) -> dict[int, int]:
        return dict.fromkeys(range(self.experiences), self.records)


def retained(lost: Counts, gained: Counts, *, n: int, config: GateConfig, alpha: float) -> tuple[Bits, Bits]:
    """(updates,) each: whether all of retention passes, and whether a loss is shown.

    Args:
        lost: (updates, experiences) records that turned wrong, of `n` each.
        gained: (updates, experiences) records that turned right.
        n: records of each experience.
        config: the gate; its `alpha` is what a first try may spend, which sets the blocks.
        alpha: what this try may spend.
    """
    past = Alike(lost.shape[1], n)
    pools, margins = judged_together(past, config)
    together_lost, together_gained = _pooled(lost, pools), _pooled(gained, pools)
    sizes = np.array([n * len(members) for members in pools])
    within = stats.noninferiority_p(together_lost, together_gained, n=sizes, margin=margins) <= alpha
    kept = stats.noninferiority_p(lost, gained, n=n, margin=config.margin) <= alpha
    family = lost.shape[1] + sum(len(members) > 1 for members in pools)
    alarms = [
        _alarms(lost, gained, kept, family=family, alpha=config.alarm_alpha),
        _alarms(together_lost, together_gained, within, family=family, alpha=config.alarm_alpha),
    ]
    fails: Bits = np.asarray(np.concatenate(alarms, axis=1).any(axis=1), dtype=np.bool_)
    passes: Bits = np.asarray(within.all(axis=1) & ~fails, dtype=np.bool_)
    return passes, fails


def _alarms(lost: Counts, gained: Counts, kept: Bits, *, family: int, alpha: float) -> Bits:
    """(updates, questions) where a loss is shown, among so many questions in all, and is not within."""
    p = stats.mcnemar_drop_p(lost, gained)
    others = np.ones((len(p), max(family - p.shape[1], 0)))
    adjusted = _holm(np.concatenate([p, others], axis=1))[:, : p.shape[1]]
    return np.asarray((adjusted <= alpha) & ~kept, dtype=np.bool_)


def judged_together(past: Alike, config: GateConfig) -> tuple[list[list[int]], NDArray[np.float64]]:
    """The members of each pool that must pass, and its margin; `alpha` is what a first try may spend."""
    blocks = retention.past_blocks(past.history, past.sizes, config, planned=config.alpha)
    units = retention.past_units(past.history, past.sizes, config, planned=config.alpha, blocks=blocks)
    n = np.array([past.records * len(pool.members) for pool in units], dtype=np.int64)
    together = retention.block_margin(config)
    margins = [
        np.array([together if len(pool.members) > 1 else config.margin for pool in blocks]),
        retention.single_margins(n, config, alpha=config.alpha),
    ]
    return [list(pool.members) for pool in (*blocks, *units)], np.concatenate(margins)


@dataclass(frozen=True)
class Looks:
    """Earlier looks at the sealed records."""

    looks: int = 0
    failures: int = 0
    runs: int = 0


def audited(
    lost: Counts,
    gained: Counts,
    *,
    n: int,
    config: GateConfig,
    before: Looks,
    gate: tuple[Counts, Counts, int],
) -> Bits:
    """(updates,) whether a look at the sealed records passes.

    Args:
        lost: (updates, experiences) sealed records that the anchor answers right and the challenger wrong.
        gained: (updates, experiences) the other way round.
        n: sealed records of each experience.
        config: the gate.
        before: earlier looks, of all experiences.
        gate: lost and gained on the gate parts against the anchors, and their records.
    """
    spending = config.alpha * stats.look_share(before.looks + 1, before.failures, before.runs)
    past = Alike(lost.shape[1], n)
    asked = budget.questions(past.history, past.sizes, config, dict.fromkeys(past.sizes, spending))
    kept = np.ones(len(lost), dtype=np.bool_)
    if asked:
        members = [list(each.pool.members) for each in asked]
        p = stats.noninferiority_p(
            _pooled(lost, members),
            _pooled(gained, members),
            n=np.array([n * len(each) for each in members]),
            margin=np.array([each.margin for each in asked]),
        )
        kept &= (p <= spending).all(axis=1)
    both = n + gate[2]
    level = budget.alarm_level(np.full(lost.shape, before.failures), config)
    alarms = budget.alarmed(
        lost + gate[0], gained + gate[1], n=np.full(lost.shape, both), budget=config.budget, level=level
    )
    return kept & ~alarms.any(axis=1)


def _pooled(counted: Counts, pools: list[list[int]]) -> Counts:
    """(updates, pools) sums over the members."""
    return np.stack([counted[:, members].sum(axis=1) for members in pools], axis=1)


def _holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """`stats.holm` of every row."""
    order = np.argsort(p, axis=1, kind="stable")
    stepped = np.take_along_axis(p, order, axis=1) * np.arange(p.shape[1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(stepped, axis=1), 1.0), axis=1)
    return adjusted
