"""A second implementation of the gate's outcome, from its reference pages alone.

It covers the guards that are on by default, for an update that has a champion: retention, golden sets,
learning, rare classes and budget. Obsolete holdouts, disputes and little traffic turn rejections into
questions.
"""

from collections.abc import Sequence

from service.gate.base import Answer, Audit, Evidence, GateConfig, Outcome, PairedAnswers, PastExperience
from tests.support.second_gate_classes import rare_classes
from tests.support.second_gate_disputes import becomes_question
from tests.support.second_gate_golden import golden
from tests.support.second_gate_retention import BLOCK_POWER, obsolete_ones, past_blocks, retention, without
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
    p_lost,
    p_margin,
    planned_alpha,
    records_needed,
    settled_margin,
)

ALONE_POWER = 0.998
AUDIT_CHURN = 0.18

Questions = list[tuple[Block, float]]
"""Sealed records, and what may be lost on them."""


def outcome(evidence: Evidence, config: GateConfig) -> Outcome:
    """Promote, review or reject."""
    past = retention(evidence, config)
    rest = without(evidence, obsolete_ones(evidence, past))
    others = [*golden(evidence, config), *learning(rest, config)]
    classes = rare_classes(rest, config)
    lost = [label for label, answer in classes.items() if answer == "fail"]
    fails = any(each.answer == "fail" for each in past)
    if "fail" in others or (lost and not fails):
        return "reject"
    if fails:
        return "review" if becomes_question(past, lost, evidence, config) else "reject"
    answers = [*others, *classes.values(), *(each.answer for each in past)]
    if "undecided" in answers or evidence.freeze is not None:
        return "review"
    passed = evidence.audit is None or audit_passes(evidence.audit, config)
    return "promote" if passed else "review"


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
