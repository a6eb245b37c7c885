"""The rules on counts decide as `decide` does on answers, update by update."""

from dataclasses import replace

import numpy as np
import pytest

from service.gate import stats
from service.gate.base import Audit, DataEvidence, Evidence, GateConfig, PairedAnswers, PastExperience
from service.gate.decide import decide
from service.gate.simulation.rule import Alike, Looks, audited, retained

BATCH = DataEvidence(2000, 0)
GATE = GateConfig(margin=0.05, learning_margin=0.05, budget=0.05)

Counts = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def bits(n: int, lost: int, gained: int, *, experience: int, before: Looks | None = None) -> PairedAnswers:
    """Answers with these counts; both models are right on the first record."""
    baseline, challenger = np.ones((2, n), dtype=np.bool_)
    baseline[n - gained :] = False
    challenger[n - gained - lost : n - gained] = False
    pair = PairedAnswers(experience, baseline, challenger)
    if before is None:
        return pair
    return replace(pair, looks=before.looks, failures=before.failures, failure_runs=before.runs)


def flips(
    random: np.random.Generator, n: int, experiences: int, *, updates: int, worst: float
) -> tuple[Counts, Counts]:
    """(updates, experiences) lost and gained: one experience of each update lost up to `worst`."""
    losses = np.zeros((updates, experiences))
    losses[np.arange(updates), random.integers(0, experiences, updates)] = random.random(updates) * worst
    losses += random.random((updates, 1)) * 0.04 - 0.01
    churn = 0.04 + np.abs(losses) + random.random((updates, 1)) * 0.08
    # At least one record stays right with both.
    lost, gained = random.binomial(n - 1, (churn + losses) / 2), random.binomial(n - 1, (churn - losses) / 2)
    return lost, np.minimum(gained, n - 1 - lost)


@pytest.mark.parametrize("attempt", [None, 2])
@pytest.mark.parametrize(
    ("n", "experiences"), [(600, 1), (40, 3), (100, 12), (180, 4), (181, 4), (600, 5), (1300, 3)]
)
def test_retention_on_counts_is_that_of_decide(n: int, experiences: int, attempt: int | None) -> None:
    updates = 60
    worst = 0.6 if n <= 100 else 0.15
    lost, gained = flips(np.random.default_rng(n), n, experiences, updates=updates, worst=worst)
    alpha = GATE.alpha if attempt is None else stats.spent(GATE.alpha, attempt)
    # What a first try may spend sets blocks and margins.
    planned = GATE.model_copy(update={"alpha": stats.spent_at_first(alpha, attempt)})
    passes, fails = retained(lost, gained, n=n, config=planned, alpha=alpha)
    new = (bits(3000, 0, 300, experience=99),)
    seen = []
    for row in range(updates):
        past = tuple(
            bits(n, int(lost[row, each]), int(gained[row, each]), experience=each)
            for each in range(experiences)
        )
        seen.append(decide(Evidence(BATCH, past=past, new=new, attempt=attempt), GATE).outcome)
    assert [outcome == "promote" for outcome in seen] == passes.tolist()
    assert [outcome == "reject" for outcome in seen] == fails.tolist()
    assert len(set(seen)) > 1, "nothing is compared where all are alike"


@pytest.mark.parametrize("before", [Looks(), Looks(4, 2, 1), Looks(60, 5, 5)])
@pytest.mark.parametrize(
    ("n", "experiences"), [(300, 1), (2000, 1), (4000, 1), (400, 6), (1500, 4), (60, 20)]
)
def test_an_audit_on_counts_is_that_of_decide(n: int, experiences: int, before: Looks) -> None:
    updates, gate_n = 50, n + 17
    random = np.random.default_rng(n)
    lost, gained = flips(random, n, experiences, updates=updates, worst=0.3 if experiences > 1 else 0.1)
    gate_lost, gate_gained = flips(random, gate_n, experiences, updates=updates, worst=0.2)
    passes = audited(lost, gained, n=n, config=GATE, before=before, gate=(gate_lost, gate_gained, gate_n))
    past, new = (bits(9000, 0, 0, experience=98),), (bits(3000, 0, 300, experience=99),)
    history = tuple(PastExperience(each, n) for each in range(experiences))
    seen = []
    for row in range(updates):
        sealed, gate = (
            tuple(
                bits(size, int(b[row, each]), int(c[row, each]), experience=each, before=looks)
                for each in range(experiences)
            )
            for size, b, c, looks in ((n, lost, gained, before), (gate_n, gate_lost, gate_gained, None))
        )
        audit = Audit(sealed, gate=gate, history=history)
        seen.append(decide(Evidence(BATCH, past=past, new=new, audit=audit), GATE).outcome == "promote")
    assert seen == passes.tolist()
    assert len(set(seen)) == 2, "nothing is compared where all are alike"


def test_experiences_that_are_alike_have_the_history_of_their_sizes() -> None:
    alike = Alike(3, 50)
    assert alike.history == tuple(PastExperience(each, 50) for each in range(3))
    assert alike.sizes == {0: 50, 1: 50, 2: 50}


def test_rows_are_judged_each_by_itself() -> None:
    lost, gained = flips(np.random.default_rng(0), 600, 5, updates=40, worst=0.1)
    passes, fails = retained(lost, gained, n=600, config=GATE, alpha=GATE.alpha)
    for row in range(40):
        one = retained(lost[[row]], gained[[row]], n=600, config=GATE, alpha=GATE.alpha)
        assert (one[0][0], one[1][0]) == (passes[row], fails[row])
    assert not (passes & fails).any()
