"""Two implementations of the gate agree: its own, and a second one from the reference pages alone."""

from collections import Counter

import pytest

from service.gate.decide import decide
from tests.support import second_gate
from tests.support.random_evidence import random_case

SEED, BLOCKS, CASES = 20, 10, 100
FEWEST = 15
"""Of each outcome in a block of cases."""


@pytest.mark.parametrize("block", range(BLOCKS))
def test_both_implementations_give_the_same_outcome(block: int) -> None:
    outcomes: Counter[str] = Counter()
    for index in range(block * CASES, (block + 1) * CASES):
        evidence, config = random_case(SEED, index)
        verdict = decide(evidence, config)
        said = f"case {index} of seed {SEED}: {verdict.reason}"
        assert second_gate.outcome(evidence, config) == verdict.outcome, said
        outcomes[verdict.outcome] += 1
    rare = {each for each in ("promote", "review", "reject") if outcomes[each] < FEWEST}
    assert not rare, f"too few to compare: {outcomes}"
