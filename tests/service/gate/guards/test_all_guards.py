"""All guards at once: hostile evidence is never promoted and always has a reason; sound evidence is."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.gate.base import Column, Details, Disturbed, Evidence, GateConfig, PairedAnswers, Repeat, Running
from service.gate.decide import decide
from tests.service.gate.guards.test_cost import TIMES, WHOLE
from tests.support.gate_parts import CLEAN

ALL = GateConfig(
    margin=0.05,
    learning_margin=0.05,
    groups=0.05,
    negative_flips=0.05,
    calibration=0.01,
    metrics={"macro_f1": 0.1, "balanced_accuracy": 0.1, "auc": 0.05, "brier": 0.02},
    robustness=0.05,
    train_gap=0.1,
    latency_ratio=1.5,
    size_ratio=2,
    update_seconds=60,
    seeds=2,
)
WAYS = ("fgsm", "pgd", "noise", "blur", "brightness", "contrast", "occlusion")


def sound(experience: int, *, n: int = 600) -> PairedAnswers:
    """Two classes and two groups; both models are right but for every twentieth record."""
    labels = np.arange(n, dtype=np.int64) % 2
    right = np.arange(n) % 20 != 0
    said = np.where(right, labels, 1 - labels)
    score = np.where(said == 1, 0.9, 0.1).astype(np.float32)
    brier = np.where(right, 0.02, 1.62).astype(np.float32)
    details = Details(said.astype(np.int32), np.full(n, 0.9, np.float32), brier, score)
    sites = np.where(np.arange(n) < n // 2, "north", "south")
    return PairedAnswers(
        experience,
        right,
        right.copy(),
        labels=labels,
        groups={"site": Column.of(sites)},
        baseline_details=details,
        challenger_details=details,
    )


def disturbed(n: int = 400) -> tuple[Disturbed, ...]:
    bits = np.arange(n) % 3 != 0
    return tuple(Disturbed(way, bits, bits.copy()) for way in WAYS)


def repeated(*experiences: int, n: int = 600) -> Repeat:
    """Another seed that answers as the challenger does."""
    right, same = np.arange(n) % 20 != 0, np.ones(n, dtype=np.bool_)
    return Repeat(1, dict.fromkeys(experiences, right), dict.fromkeys(experiences, same))


GOOD = Evidence(
    CLEAN,
    past=(sound(0), sound(1)),
    new=(sound(2),),
    disturbed=disturbed(),
    running=replace(WHOLE),
    repeats=(repeated(0, 1, 2),),
)


def test_sound_evidence_is_promoted_by_all_guards() -> None:
    verdict = decide(GOOD, ALL)
    assert verdict.outcome == "promote", verdict.reason
    guards = {finding.guard for finding in verdict.findings}
    assert guards >= {
        "groups",
        "negative_flips",
        "calibration",
        *ALL.metrics,
        "robustness",
        "latency",
        "size",
        "seeds",
        "disagreement",
    }
    assert decide(GOOD, ALL) == verdict
    restored = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert len(restored["findings"]) == len(verdict.findings)


@pytest.mark.parametrize(
    "evidence",
    [
        replace(GOOD, disturbed=()),
        replace(GOOD, running=None),
        replace(GOOD, running=Running()),
        replace(GOOD, repeats=()),
        replace(GOOD, repeats=(repeated(0, 1),)),
        replace(GOOD, past=(replace(sound(0), challenger_details=None), sound(1))),
        replace(GOOD, past=(replace(sound(0), groups={}), sound(1))),
        replace(GOOD, new=(replace(sound(2), labels=None),)),
    ],
)
def test_one_missing_piece_goes_to_a_person(evidence: Evidence) -> None:
    verdict = decide(evidence, ALL)
    assert verdict.outcome == "review"
    assert verdict.reason


def test_what_only_exceeds_a_limit_is_told_after_what_was_lost() -> None:
    forgotten = replace(sound(0), challenger=np.arange(600) % 3 != 0)
    slow = replace(WHOLE, challenger_rounds=tuple(9 * each for each in TIMES))
    verdict = decide(replace(GOOD, past=(forgotten, sound(1)), running=slow), ALL)
    assert verdict.outcome == "reject"
    assert "lost between" in verdict.reason
    assert decide(replace(GOOD, running=slow), ALL).reason.startswith("latency: ")


def spoilt(details: Details, column: str, value: float) -> Details:
    values: NDArray[np.float32] = np.array(getattr(details, column), dtype=np.float32)
    values[0] = value
    changes: dict[str, Any] = {column: values}
    return replace(details, **changes)


@settings(deadline=None, max_examples=80)
@given(
    column=st.sampled_from(["brier", "confidence", "score"]),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    where=st.integers(0, 2),
    challenger=st.booleans(),
)
def test_one_number_that_is_none_is_never_promoted(
    column: str, value: float, where: int, challenger: bool
) -> None:
    each = sound(where)
    assert each.challenger_details is not None
    broken = spoilt(each.challenger_details, column, value)
    side: dict[str, Any] = {"challenger_details": broken} if challenger else {"baseline_details": broken}
    holdouts = [sound(0), sound(1), sound(2)]
    holdouts[where] = replace(each, **side)
    verdict = decide(replace(GOOD, past=tuple(holdouts[:2]), new=(holdouts[2],)), ALL)
    assert verdict.outcome == "review"
    assert verdict.reason


@settings(deadline=None, max_examples=40)
@given(n=st.integers(0, 140), ways=st.integers(0, 60))
def test_few_records_are_never_promoted(n: int, ways: int) -> None:
    """Two past holdouts and a new one of 140 hold 420 records, but 60 that are disturbed settle nothing."""
    evidence = replace(GOOD, past=(sound(0, n=n), sound(1, n=n)), new=(sound(2, n=n),))
    assert decide(replace(evidence, disturbed=disturbed(ways)), ALL).outcome == "review"
    if n < 100:
        verdict = decide(evidence, ALL)
        assert verdict.outcome == "review"
        assert verdict.reason
