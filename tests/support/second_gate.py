"""A second implementation of the gate's outcome, from its reference pages alone.

It covers the guards that are on by default, for an update that has a champion: retention, learning, rare
classes and budget.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from service.gate.base import Answer, Audit, Evidence, GateConfig, Outcome, PairedAnswers, PastExperience
from tests.support.second_gate_statistics import (
    Block,
    Counts,
    attempt_alpha,
    count,
    holm,
    in_order,
    joined,
    look_alpha,
    make_blocks,
    make_units,
    p_gained,
    p_lost,
    p_margin,
    planned_alpha,
    records_needed,
    settled_margin,
)

BLOCK_POWER, SINGLE_POWER, ALONE_POWER = 0.9995, 0.9996, 0.998
AUDIT_CHURN = 0.18


class Asked(NamedTuple):
    """A question on a block, or on an experience."""

    counts: Counts
    margin: float | None
    """It passes where less than this is shown to be lost; None: it passes where no loss is shown."""
    held: float
    """It never fails where less than this is shown to be lost."""


Questions = list[tuple[Block, float]]
"""Sealed records, and what may be lost on them."""


def outcome(evidence: Evidence, config: GateConfig) -> Outcome:
    """Promote, review or reject."""
    answers = [
        *retention(evidence, config),
        *learning(evidence, config),
        *rare_classes(evidence, config),
    ]
    if evidence.freeze is not None:
        answers.append("undecided")
    if "fail" in answers:
        return "reject"
    if "undecided" in answers:
        return "review"
    passed = evidence.audit is None or audit_passes(evidence.audit, config)
    return "promote" if passed else "review"


# Past experiences


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


def retention(evidence: Evidence, config: GateConfig) -> list[Answer]:
    """Was anything forgotten?"""
    planned, alpha = planned_alpha(config, evidence.attempt), attempt_alpha(config, evidence.attempt)
    live = usable(evidence, config)
    exhausted: list[Answer] = ["undecided"] * (len(evidence.past) - len(live))
    blocks = past_blocks(evidence, config)
    alone = {each.members[0].experience for each in blocks if len(each.members) == 1}
    small = config.small_margin or config.margin
    least = single_needs(config, planned)
    asked = [Asked(count(each.members), small, small) for each in blocks if len(each.members) > 1]
    known = {each.key for each in blocks}
    for unit in past_units(evidence, config, least):
        if len(unit.members) > 1 and unit.key not in known:
            margin = single_margin(unit.n, config, planned)
            asked.append(Asked(count(unit.members), margin, margin))
    for each in live:
        counts, held = count([each]), each.margin or config.margin
        if each.margin is not None or each.experience in alone:
            asked.append(Asked(counts, held, held))
        elif each.n >= least:
            asked.append(Asked(counts, single_margin(each.n, config, planned), held))
        else:
            asked.append(Asked(counts, None, held))
    adjusted = holm([p_lost(each.counts) for each in asked])
    return exhausted + [
        past_answer(each, lost=p <= config.alarm_alpha, alpha=alpha)
        for each, p in zip(asked, adjusted, strict=True)
    ]


def past_units(evidence: Evidence, config: GateConfig, least: int) -> list[Block]:
    """Experiences by themselves, and those with fewer records together with their neighbours."""
    shared = [each for each in usable(evidence, config) if each.margin is None]
    units = make_units(shared, in_order(evidence.history, evidence.past), least)
    return joined(units, lambda block: block.n >= least)


def past_answer(asked: Asked, *, lost: bool, alpha: float) -> Answer:
    """The answer on a block or an experience."""
    counts = asked.counts
    fails = lost and p_margin(counts, asked.held) > alpha
    if asked.margin is None and not fails:
        return "pass"
    if not counts.right and p_gained(counts) > alpha:
        return "undecided"
    if fails or asked.margin is None:
        return "fail"
    return "pass" if p_margin(counts, asked.margin) <= alpha else "undecided"


# New experiences


def learning(evidence: Evidence, config: GateConfig) -> list[Answer]:
    """Was the new experience learnt?"""
    planned, alpha = planned_alpha(config, evidence.attempt), attempt_alpha(config, evidence.attempt)
    needed = records_needed(config.learning_margin, planned, BLOCK_POWER, config.planned_churn)
    blocks = past_blocks(evidence, config)
    alone = [count([each]) for each in evidence.new]
    adjusted = holm([p_lost(each) for each in alone])
    answers: list[Answer] = []
    for new, counts, p in zip(evidence.new, alone, adjusted, strict=True):
        members = {new.experience: new}
        for block in reversed(blocks):
            if sum(each.n for each in members.values()) >= needed:
                break
            members.update({each.experience: each for each in block.members})
        whole = count(members.values())
        passes = p_margin(whole, config.learning_margin) <= alpha
        lost = p <= config.alarm_alpha and p_margin(counts, config.learning_margin) > alpha
        if lost or (passes and nothing_learnt(counts, whole, config)):
            answers.append("fail")
        else:
            answers.append("pass" if passes else "undecided")
    return answers


def nothing_learnt(alone: Counts, whole: Counts, config: GateConfig) -> bool:
    """Whether the challenger predicts none of it right, and more is expected by what it is judged with."""
    if alone.right - alone.lost + alone.gained:
        return False
    most = 1 - config.alarm_alpha ** (1 / alone.n)
    return bool(most < max(whole.right / whole.n, config.learning_margin))


# Rare classes


def rare_classes(evidence: Evidence, config: GateConfig) -> list[Answer]:
    """Was a class lost that accuracy cannot see?"""
    past = usable(evidence, config)
    if not config.rare_classes or not past:
        return []
    labels = np.concatenate([each.labels for each in past if each.labels is not None])
    baseline = np.concatenate([each.baseline for each in past if each.baseline is not None])
    challenger = np.concatenate([each.challenger for each in past if each.challenger is not None])
    masks = [labels == label for label in np.unique(labels)]
    classes = [count([PairedAnswers(0, baseline[mask], challenger[mask])]) for mask in masks]
    adjusted = holm([p_lost(each) for each in classes])
    rarer = (config.small_margin or config.margin) * len(labels)
    rare = [(each, p) for each, p in zip(classes, adjusted, strict=True) if each.n <= rarer]
    return [
        class_answer(each, evidence, config, lost=p <= config.alarm_alpha, classes=len(rare))
        for each, p in rare
    ]


def class_answer(
    counts: Counts, evidence: Evidence, config: GateConfig, *, lost: bool, classes: int
) -> Answer:
    """The answer on the recall of one rare class."""
    planned, alpha = planned_alpha(config, evidence.attempt), attempt_alpha(config, evidence.attempt)
    turned, widest = config.planned_churn / 2, config.rare_margin
    if counts.n >= single_needs(config, planned):
        passes = p_margin(counts, single_margin(counts.n, config, planned)) <= alpha
    elif counts.n >= class_needs(planned, turned, widest):
        margin = max(class_margin(counts.n, planned, turned, widest) or widest, config.margin)
        passes = bool(binom.cdf(counts.lost, counts.n, margin) <= alpha)
    else:
        passes = True
    if not passes:
        return "fail" if lost else "undecided"
    chance = float(binom.sf(counts.lost - 1, counts.right, config.planned_churn))
    mostly = 2 * (counts.lost - counts.gained) > counts.right
    return "undecided" if mostly and chance * classes <= config.alarm_alpha else "pass"


@lru_cache(maxsize=4096)
def class_margin(n: int, alpha: float, turned: float, widest: float) -> float | None:
    """The margin, in full points, that n records of a class settle; None: none so small as is asked."""
    most = int(binom.ppf(SINGLE_POWER, n, turned))
    margins = np.arange(1, round(widest * 100) + 1) / 100
    settled = margins[binom.cdf(most, n, margins) <= alpha]
    return float(settled[0]) if len(settled) else None


@lru_cache(maxsize=256)
def class_needs(alpha: float, turned: float, widest: float) -> int:
    """Records of a class with which, and with more, a margin is settled."""
    n = 1
    while any(class_margin(n + more, alpha, turned, widest) is None for more in range(20)):
        n += 1
    return n


# The audit


def spends(block: Block, config: GateConfig) -> float:
    """What the next look at these may spend of alpha."""
    return min(look_alpha(config, each.looks + 1, each.failures, each.failure_runs) for each in block.members)


def enough_for(block: Block, margin: float, config: GateConfig, power: float = BLOCK_POWER) -> bool:
    """Whether these have enough sealed records for their next look at a margin."""
    return block.n >= records_needed(margin, spends(block, config), power, AUDIT_CHURN)


def within(block: Block, margin: float, config: GateConfig) -> bool:
    """Whether the next look shows that these keep within a margin."""
    return p_margin(count(block.members), margin) <= spends(block, config)


def audit_passes(audit: Audit, config: GateConfig) -> bool:
    """Whether all three questions of an audit pass."""
    sealed = [each for each in audit.answers if each.n]
    wide = {each.experience for each in sealed if each.margin and each.margin > config.budget}
    shared = [each for each in sealed if each.experience not in wide]
    history = in_order(audit.history, sealed)
    questions = block_questions(shared, history, config)
    known = {block.key for block, _ in questions}
    questions += [each for each in unit_questions(shared, history, config) if each[0].key not in known]
    for each in sealed:
        if each.experience in wide and enough_for(Block((each,)), each.margin or 0, config):
            questions.append((Block((each,)), each.margin or 0))
    return all(
        count(block.members).right and within(block, margin, config) for block, margin in questions
    ) and not alarmed(sealed, audit, config)


def block_questions(
    shared: Sequence[PairedAnswers], history: Sequence[PastExperience], config: GateConfig
) -> Questions:
    """Blocks that are held against the budget."""
    budget = config.budget
    alone = records_needed(budget, look_alpha(config, 1), ALONE_POWER, AUDIT_CHURN)
    failed = look_alpha(config, config.audits, failures=1, runs=1)
    together = records_needed(budget, failed, BLOCK_POWER, AUDIT_CHURN)
    blocks = make_blocks(shared, history, alone, together)

    def has_enough(block: Block) -> bool:
        power = ALONE_POWER if len(block.members) == 1 else BLOCK_POWER
        return enough_for(block, budget, config, power)

    return [
        (pool, budget)
        for pool in joined(blocks, has_enough)
        if pool.n >= together or max(each.n for each in pool.members) >= alone
    ]


def unit_questions(
    shared: Sequence[PairedAnswers], history: Sequence[PastExperience], config: GateConfig
) -> Questions:
    """Each experience, by itself or with its neighbours, at the margin that the sealed records settle."""
    widest = max(config.single_margin, config.budget)
    planned = look_alpha(config, config.audits)
    units = make_units(shared, history, records_needed(widest, planned, BLOCK_POWER, AUDIT_CHURN))
    found = []
    for unit in joined(units, lambda block: enough_for(block, widest, config)):
        if enough_for(unit, widest, config):
            settled = settled_margin(unit.n, spends(unit, config), BLOCK_POWER, AUDIT_CHURN)
            found.append((unit, max(settled, config.budget)))
    return found


def alarmed(sealed: Sequence[PairedAnswers], audit: Audit, config: GateConfig) -> bool:
    """Whether an experience is shown to have lost what it may, sealed and gate records together."""
    gate = {each.experience: each for each in audit.gate if each.n}
    for each in sealed:
        both = count([each, gate[each.experience]] if each.experience in gate else [each])
        allowed = max(each.margin or 0, config.budget)
        shown = p_lost(both) * len(sealed) <= config.alpha / 2.0**each.failures
        if shown and both.lost - both.gained >= allowed * both.n:
            return True
    return False
