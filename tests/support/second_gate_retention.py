"""Past experiences of the second implementation of the gate's outcome: blocks, and what fails on them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from service.gate.base import Answer, Evidence, GateConfig, PairedAnswers
from tests.support.second_gate_obsolete import has_other_labels, looks_obsolete
from tests.support.second_gate_statistics import (
    Block,
    Counts,
    attempt_alpha,
    count,
    holm,
    in_order,
    joined,
    make_blocks,
    make_units,
    p_gained,
    p_lost,
    p_margin,
    planned_alpha,
    records_needed,
    settled_margin,
)

BLOCK_POWER, SINGLE_POWER = 0.9995, 0.9996


class Asked(NamedTuple):
    """A question on a block, or on an experience."""

    block: Block
    margin: float | None
    """It passes where less than this is shown to be lost; None: it passes where no loss is shown."""
    held: float
    """It never fails where less than this is shown to be lost."""


class Judged(NamedTuple):
    """The answer to it."""

    block: Block
    counts: Counts
    answer: Answer
    obsolete: bool = False
    """It would have failed, if it did not look obsolete."""

    @property
    def about(self) -> frozenset[int]:
        """The members' numbers."""
        return self.block.key


def usable(evidence: Evidence, config: GateConfig) -> list[PairedAnswers]:
    """Past holdouts that are not exhausted."""
    return [each for each in evidence.past if each.looks < config.holdout_looks]


def single_needs(config: GateConfig, planned: float) -> int:
    """Records from which on an experience is judged by itself."""
    widest = max(config.single_margin, config.margin)
    return records_needed(widest, planned, SINGLE_POWER, config.planned_churn)


def single_margin(n: int, config: GateConfig, planned: float) -> float:
    """The margin that so many records settle, in full tenths of a point."""
    settled = settled_margin(n, planned, SINGLE_POWER, config.planned_churn)
    rounded = float(np.ceil(settled * 1000 - 1e-9) / 1000)
    return min(max(rounded, config.margin), max(config.single_margin, config.margin))


def past_blocks(evidence: Evidence, config: GateConfig) -> list[Block]:
    """The blocks that are judged, each with the neighbours that it needs; the newest is the last."""
    planned, churn = planned_alpha(config, evidence.attempt), config.planned_churn
    small = config.small_margin or config.margin
    alone = records_needed(config.margin, planned, BLOCK_POWER, churn)
    together = records_needed(small, planned, BLOCK_POWER, churn)
    shared = [each for each in usable(evidence, config) if each.margin is None]
    blocks = make_blocks(shared, in_order(evidence.history, evidence.past), alone, together)

    def has_enough(block: Block) -> bool:
        return block.n >= (alone if len(block.members) == 1 else together)

    return joined(blocks, has_enough)


def retention(evidence: Evidence, config: GateConfig) -> list[Judged]:
    """Was anything forgotten?"""
    live = {each.experience for each in usable(evidence, config)}
    exhausted = [Block((each,)) for each in evidence.past if each.experience not in live]
    found = [Judged(each, Counts(0, 0, 0, 0), "undecided") for each in exhausted]
    alone, several = each_by_itself(evidence, config), block_questions(evidence, config)
    units = unit_questions(evidence, config)
    family = len(alone) + len(several) + len(units)
    singles = judge_all(alone, family, evidence, config)
    rest = without(evidence, [each.about for each in singles if each.obsolete])
    several, units = block_questions(rest, config), unit_questions(rest, config)
    pools = [each for asked in (several, units) for each in judge_all(asked, family, evidence, config)]
    return [*found, *singles, *pools]


def judge_all(asked: Sequence[Asked], family: int, evidence: Evidence, config: GateConfig) -> list[Judged]:
    """The answers to these questions, which are some of the family."""
    alpha = attempt_alpha(config, evidence.attempt)
    counted = [count(each.block.members) for each in asked]
    found = []
    for each, counts, p in zip(asked, counted, holm([p_lost(each) for each in counted], family), strict=True):
        answer = past_answer(each, counts, lost=p <= config.alarm_alpha, alpha=alpha)
        own = [one for one in each.block.members if one.experience not in each.block.joined]
        obsolete = answer == "fail" and looks_obsolete(own, alpha)
        found.append(Judged(each.block, counts, "undecided" if obsolete else answer, obsolete))
    return found


def without(evidence: Evidence, gone: Iterable[Iterable[int]]) -> Evidence:
    """The evidence without these holdouts, which leave their blocks as retired ones do."""
    numbers = frozenset[int]().union(*gone)
    return replace(
        evidence,
        past=tuple(each for each in evidence.past if each.experience not in numbers),
        history=tuple(in_order(evidence.history, evidence.past)),
    )


def obsolete_ones(evidence: Evidence, judged: Sequence[Judged]) -> list[frozenset[int]]:
    """The holdouts that wait for a person because they look obsolete, by themselves or in a block."""
    found = [each.block for each in judged if each.obsolete]
    named = [each.key - each.joined for each in found]
    gone = [each for each in named if len(each) == 1]
    if len(gone) < len(named):
        gone += [frozenset({each.experience}) for each in evidence.past if has_other_labels(each)]
    return gone


def block_questions(evidence: Evidence, config: GateConfig) -> list[Asked]:
    """Questions on blocks of several experiences."""
    small = config.small_margin or config.margin
    return [Asked(each, small, small) for each in past_blocks(evidence, config) if len(each.members) > 1]


def unit_questions(evidence: Evidence, config: GateConfig) -> list[Asked]:
    """Questions on experiences that are too small for one by themselves, with their neighbours."""
    planned = planned_alpha(config, evidence.attempt)
    known = {each.key for each in past_blocks(evidence, config)}
    shared = [each for each in usable(evidence, config) if each.margin is None]
    least = single_needs(config, planned)
    units = make_units(shared, in_order(evidence.history, evidence.past), least)
    found = []
    for unit in joined(units, lambda block: block.n >= least):
        if len(unit.members) > 1 and unit.key not in known:
            margin = single_margin(unit.n, config, planned)
            found.append(Asked(unit, margin, margin))
    return found


def each_by_itself(evidence: Evidence, config: GateConfig) -> list[Asked]:
    """Questions on each experience by itself."""
    planned = planned_alpha(config, evidence.attempt)
    blocks = past_blocks(evidence, config)
    alone = {each.members[0].experience for each in blocks if len(each.members) == 1}
    asked = []
    for each in usable(evidence, config):
        held = each.margin or config.margin
        if each.margin is not None or each.experience in alone:
            asked.append(Asked(Block((each,)), held, held))
        elif each.n >= single_needs(config, planned):
            asked.append(Asked(Block((each,)), single_margin(each.n, config, planned), held))
        else:
            asked.append(Asked(Block((each,)), None, held))
    return asked


def past_answer(asked: Asked, counts: Counts, *, lost: bool, alpha: float) -> Answer:
    """The answer on a block or an experience."""
    fails = lost and p_margin(counts, asked.held) > alpha
    if asked.margin is None and not fails:
        return "pass"
    if not counts.right and p_gained(counts) > alpha:
        return "undecided"
    if fails or asked.margin is None:
        return "fail"
    return "pass" if p_margin(counts, asked.margin) <= alpha else "undecided"
