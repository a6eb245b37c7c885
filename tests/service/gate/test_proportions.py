"""Exact limits of a share are those that beta quantiles give."""

import numpy as np
import pytest

from service.gate.proportions import exact_interval
from service.gate.stats import clopper_pearson


@pytest.mark.parametrize("of", [1, 2, 7, 40, 100, 1000])
def test_the_limits_are_those_of_clopper_and_pearson(of: int) -> None:
    for count in {0, 1, of // 3, of - 1, of}:
        expected = clopper_pearson(count, of, alpha=0.025)
        np.testing.assert_allclose(exact_interval(count, of), expected, atol=1e-9)
        expected = clopper_pearson(count, of, alpha=0.005)
        np.testing.assert_allclose(exact_interval(count, of, error=0.01), expected, atol=1e-9)


def test_without_trials_every_share_is_possible() -> None:
    assert exact_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("count", "of"), [(-1, 5), (6, 5), (1, 0)])
def test_what_is_no_share_is_refused(count: int, of: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        exact_interval(count, of)
