"""Obsolete holdouts: the same inputs under other labels are distinguished from a stream that merely moved."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.gate.base import DataEvidence, Evidence, GateConfig, NearDuplicates, PairedAnswers
from service.gate.decide import decide
from service.gate.obsolete import near_duplicates
from tests.support.homes import digits

CONFIG = GateConfig(margin=0.05, learning_margin=0.05)


def arrays(
    batch: int, *, angle: float = 0.0, records: int = 300
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    found = digits(batch, angle=angle, records=records)
    return np.asarray(found.features), np.asarray(found.labels)


def rejected_or_not(found: NearDuplicates) -> tuple[str, str]:
    """The verdict on a challenger that lost a fifth of a holdout, given these near_duplicates."""
    right, lost = np.ones(500, dtype=bool), np.arange(500) >= 100
    past = (PairedAnswers(0, right, lost, near_duplicates=found),)
    new = (PairedAnswers(1, right, right),)
    verdict = decide(Evidence(DataEvidence(900, 0), past=past, new=new), CONFIG)
    return verdict.outcome, verdict.reason


def test_swapped_labels_make_a_holdout_obsolete_and_a_person_decides() -> None:
    held, learnt = arrays(0), arrays(1)
    found = near_duplicates(held[0], held[1], learnt[0], (learnt[1] + 5) % 10)
    assert found.records > 100
    assert found.relabelled > 0.9 * found.records
    outcome, reason = rejected_or_not(found)
    assert outcome == "review"
    assert "its holdout looks obsolete" in reason
    assert "holdfast holdout retire" in reason


@pytest.mark.parametrize("angle", [0.0, 10.0, 25.0, 45.0, 90.0])
def test_a_stream_that_merely_moves_makes_nothing_obsolete(angle: float) -> None:
    held, learnt = arrays(0), arrays(1, angle=angle)
    found = near_duplicates(*held, *learnt)
    outcome, reason = rejected_or_not(found)
    assert outcome == "reject", (found, reason)


def test_too_few_or_broken_records_say_nothing() -> None:
    held, learnt = arrays(0), arrays(1)
    nothing = NearDuplicates(0, 0, 0.0)
    assert near_duplicates(held[0][:1], held[1][:1], *learnt) == nothing
    assert near_duplicates(*held, learnt[0][:0], learnt[1][:0]) == nothing
    broken = np.full_like(learnt[0], np.nan)
    assert near_duplicates(*held, broken, learnt[1]) == nothing
    assert rejected_or_not(nothing)[0] == "reject"
    assert rejected_or_not(NearDuplicates(10, 10, 0.0))[0] == "reject"
    assert rejected_or_not(NearDuplicates(100, 100, float("nan")))[0] == "reject"
