"""Sizes without scipy: the same numbers as the statistics of the guards."""

import numpy as np
import pytest

from service.gate import stats
from service.gate.sizes import floor_records, needed_records, settled_margin, spent_at_first_try


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.0304, 0.001])
def test_they_are_those_of_the_statistics(alpha: float) -> None:
    assert spent_at_first_try(alpha) == pytest.approx(stats.spent(alpha, 1), rel=1e-12)
    for margin in np.linspace(0.002, 0.6, 97).tolist():
        assert floor_records(margin, alpha) == int(stats.floor_n(margin, alpha))
        for churn in (0.01, 0.12, 0.4):
            needed = int(stats.needed_n(margin, alpha, churn=churn, power=0.8))
            assert needed_records(margin, alpha, churn=churn, power=0.8) == needed
    for records in (0, 1, 40, 203, 5000, 10**6):
        settled = float(stats.settled_margin(records, alpha, churn=0.12, power=0.8))
        assert settled_margin(records, alpha, churn=0.12, power=0.8) == pytest.approx(settled, rel=1e-9)
