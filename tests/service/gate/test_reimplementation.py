"""Two implementations of the gate agree: its own, and a second one from the reference pages alone."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from service.gate.base import Evidence
from service.gate.decide import decide
from tests.support import second_gate
from tests.support.random_evidence import random_case

SEED, BLOCKS, CASES = 20, 10, 100
FEWEST = 15
"""Of each outcome in a block of cases."""
FEWEST_FOUND = 2
"""Of each of these findings in a block of cases."""
FOUND = (
    ("golden", "pass"),
    ("golden", "fail"),
    ("golden", "undecided"),
    ("golden_anchor", "pass"),
    ("golden_anchor", "undecided"),
    ("dispute", "undecided"),
)
FEWEST_DECIDED = 3
"""Cases that would end otherwise without a piece of evidence."""


@pytest.mark.parametrize("block", range(BLOCKS))
def test_both_implementations_give_the_same_outcome(block: int) -> None:
    outcomes: Counter[str] = Counter()
    found: Counter[tuple[str, str]] = Counter()
    for index in range(block * CASES, (block + 1) * CASES):
        evidence, config = random_case(SEED, index)
        verdict = decide(evidence, config)
        said = f"case {index} of seed {SEED}: {verdict.reason}"
        assert second_gate.outcome(evidence, config) == verdict.outcome, said
        outcomes[verdict.outcome] += 1
        found.update({(each.guard, each.answer) for each in verdict.findings})
    rare = {each for each in ("promote", "review", "reject") if outcomes[each] < FEWEST}
    assert not rare, f"too few to compare: {outcomes}"
    unseen = {each for each in FOUND if found[each] < FEWEST_FOUND}
    assert not unseen, f"too few to compare: {found}"


def _without_traffic(evidence: Evidence) -> Evidence | None:
    if all(each.traffic is None for each in evidence.past):
        return None
    return replace(evidence, past=tuple(replace(each, traffic=None) for each in evidence.past))


def _without_near_duplicates(evidence: Evidence) -> Evidence | None:
    if all(each.near_duplicates is None for each in evidence.past):
        return None
    return replace(evidence, past=tuple(replace(each, near_duplicates=None) for each in evidence.past))


def _without_anchors(evidence: Evidence) -> Evidence:
    at_champion = [replace(each, anchor_version=evidence.champion) for each in evidence.golden]
    return replace(evidence, golden=tuple(at_champion))


PIECES: dict[str, Callable[[Evidence], Evidence | None]] = {
    "golden": lambda evidence: replace(evidence, golden=()) if evidence.golden else None,
    "anchors": lambda evidence: _without_anchors(evidence) if evidence.golden else None,
    "disputed": lambda evidence: replace(evidence, disputed=()) if evidence.disputed else None,
    "kept": lambda evidence: replace(evidence, kept=()) if evidence.kept else None,
    "kept_shifted": lambda evidence: replace(evidence, kept_shifted=()) if evidence.kept_shifted else None,
    "shift": lambda evidence: replace(evidence, shift=None) if evidence.kept and evidence.shift else None,
    "traffic": _without_traffic,
    "near duplicates": _without_near_duplicates,
}
"""The evidence less one piece of it; None: it has none."""


def test_each_piece_of_evidence_decides_some_of_the_cases() -> None:
    decided: Counter[str] = Counter()
    for index in range(BLOCKS * CASES):
        evidence, config = random_case(SEED, index)
        outcome = second_gate.outcome(evidence, config)
        for piece, less in PIECES.items():
            rest = less(evidence) if decided[piece] < FEWEST_DECIDED else None
            if rest is not None:
                decided[piece] += second_gate.outcome(rest, config) != outcome
    rare = {each for each in PIECES if decided[each] < FEWEST_DECIDED}
    assert not rare, f"too few to compare: {decided}"
