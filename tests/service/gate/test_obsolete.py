"""Obsolete holdouts: the same inputs under other labels are distinguished from a stream that merely moved."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.gate.base import (
    DataEvidence,
    Evidence,
    GateConfig,
    NearDuplicates,
    PairedAnswers,
    Relabelled,
    Verdict,
)
from service.gate.decide import decide
from service.gate.guards.judgements import obsolete_part, together
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


NAMES = tuple(f"digit-{label}" for label in range(10))


def fallen(found: NearDuplicates) -> Verdict:
    """The verdict on a challenger that lost a tenth of a holdout: one class of ten."""
    right, lost = np.ones(500, dtype=bool), np.arange(500) >= 50
    past = (PairedAnswers(0, right, lost, near_duplicates=found),)
    new = (PairedAnswers(1, right, right),)
    return decide(Evidence(DataEvidence(900, 0), past=past, new=new, classes=NAMES), CONFIG)


@pytest.mark.parametrize("renamed", [0, 3, 7])
def test_one_class_of_ten_that_is_renamed_makes_a_review_that_names_it(renamed: int) -> None:
    held, learnt = arrays(0, records=600), arrays(1, records=600)
    labels = np.where(learnt[1] == renamed, (renamed + 5) % 10, learnt[1])
    found = near_duplicates(held[0], held[1], learnt[0], labels)
    assert found.relabelled < 0.25 * found.records, "the whole holdout does not show it"
    part = obsolete_part(found, CONFIG.alpha)
    assert isinstance(part, Relabelled)
    assert (part.label, part.relabelled > 0.5 * part.records) == (renamed, True)
    verdict = fallen(found)
    assert verdict.outcome == "review", verdict.reason
    assert (
        f"{part.relabelled} of its {part.records} records of class digit-{renamed} that have a near "
        "duplicate in the new data carry another label there"
    ) in verdict.reason
    (finding,) = (each for each in verdict.findings if each.guard == "retention")
    assert (finding.numbers["class"], finding.numbers["twins"]) == (renamed, part.records)


@pytest.mark.parametrize("seed", range(5))
def test_a_few_labels_that_are_wrong_make_nothing_obsolete(seed: int) -> None:
    held, learnt = arrays(0, records=600), arrays(1, records=600)
    random = np.random.default_rng(seed)
    wrong = random.random(len(learnt[1])) < 0.02
    labels = np.where(wrong, (learnt[1] + random.integers(1, 10, len(wrong))) % 10, learnt[1])
    found = near_duplicates(held[0], held[1], learnt[0], labels)
    assert obsolete_part(found, CONFIG.alpha) is None
    assert fallen(found).outcome == "reject"


def test_classes_are_counted_apart_and_add_up_over_holdouts() -> None:
    held, learnt = arrays(0), arrays(1)
    found = near_duplicates(*held, *learnt)
    assert [each.label for each in found.classes] == list(range(10))
    assert sum(each.records for each in found.classes) == found.records
    assert sum(each.relabelled for each in found.classes) == found.relabelled
    assert all(found.usual <= each.usual <= 1 for each in found.classes)
    twice = together([PairedAnswers(each, None, None, near_duplicates=found) for each in (0, 1)])
    assert [(each.label, each.records) for each in twice.classes] == [
        (each.label, 2 * each.records) for each in found.classes
    ]
    assert twice.records == 2 * found.records
    assert twice.usual == pytest.approx(found.usual)


@pytest.mark.parametrize(
    ("classes", "clear"),
    [
        ([(7, 20, 12, 0.05)], True),
        ([(7, 20, 5, 0.05)], False),
        ([(7, 2, 2, 0.0)], False),
        ([(7, 3, 3, 0.02)], True),
        ([(7, 20, 12, float("nan")), (8, 0, 0, 0.0)], False),
        ([(7, 0, 0, 0.0), (8, 20, 12, 0.05)], True),
    ],
    ids=["most", "no more than a quarter", "two", "three", "broken", "another"],
)
def test_a_class_is_obsolete_by_enough_records_of_which_far_more_than_usual_are_relabelled(
    classes: list[tuple[int, int, int, float]], clear: bool
) -> None:
    found = NearDuplicates(400, 12, 0.02, tuple(Relabelled(*each) for each in classes))
    part = obsolete_part(found, CONFIG.alpha)
    assert (part is not None) is clear
    assert fallen(found).outcome == ("review" if clear else "reject")
