"""Evidence for the gate: clean batches, and answers of two models that flip as often as a test says."""

import math
from typing import cast

import numpy as np
from numpy.typing import NDArray

from service.gate.base import DataEvidence, Finding, GateConfig, PairedAnswers, Verdict

CONFIG = GateConfig(margin=0.05, learning_margin=0.05)
CLEAN = DataEvidence(
    records=600,
    nonfinite_records=0,
    sample=512,
    label_error_rate=0.03,
    reference_label_error_rate=0.03,
    anomaly_rate=0.01,
    reference_anomaly_rate=0.01,
    has_reference=True,
)
NOT_BITS = cast("NDArray[np.bool_]", np.full(200, math.nan))


def paired(
    n: int, *, lost: int = 0, gained: int = 0, experience: int = 0, margin: float | None = None
) -> PairedAnswers:
    """Answers of two models on n records, of which `lost` got worse and `gained` got better."""
    baseline: NDArray[np.bool_] = np.ones(n, dtype=np.bool_)
    baseline[lost : lost + gained] = False
    challenger = np.ones(n, dtype=np.bool_)
    challenger[:lost] = False
    return PairedAnswers(experience, baseline, challenger, margin)


def first(n: int, *, majority: int, right: int) -> PairedAnswers:
    """The first version's answers, none of them where the majority class is right too unless it must."""
    baseline = np.arange(n) < majority
    challenger = np.arange(n) >= n - right
    return PairedAnswers(0, baseline, challenger)


def drawn(
    random: np.random.Generator, n: int, *, loss: float, churn: float, experience: int = 0
) -> PairedAnswers:
    """Answers of which `churn` flip on average, and a challenger that truly lost `loss`."""
    lost, gained, _ = random.multinomial(n, [(churn + loss) / 2, (churn - loss) / 2, 1 - churn])
    return paired(n, lost=int(lost), gained=int(gained), experience=experience)


def of_guard(verdict: Verdict, guard: str) -> list[Finding]:
    """The findings of one guard."""
    return [each for each in verdict.findings if each.guard == guard]
