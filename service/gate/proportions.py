"""Exact limits of a proportion without scipy, which the API process does not load."""

from functools import lru_cache
from math import exp, lgamma, log

_HALVINGS = 40
"""Of the interval from 0 to 1: the limits are exact to 1e-12."""


@lru_cache(maxsize=4096)
def exact_interval(count: int, of: int, *, error: float = 0.05) -> tuple[float, float]:
    """Two-sided interval of a share that was seen `count` times in `of` trials; `error` / 2 on either side.

    Clopper and Pearson, Biometrika 26:404 (1934), by bisection; `stats.clopper_pearson` finds the same by
    beta quantiles. From 0 to 1 where nothing was tried.

    Raises:
        ValueError: `count` is not between 0 and `of`.
    """
    if not 0 <= count <= of:
        raise ValueError(f"{count} of {of} is no share")
    return _lower(count, of, error / 2), 1.0 - _lower(of - count, of, error / 2)


def _lower(count: int, of: int, error: float) -> float:
    """The share at which `count` or more of `of` are seen with probability `error`; 0 for none."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS if count else 0):
        middle = (low + high) / 2
        if _at_least(count, of, middle) < error:
            low = middle
        else:
            high = middle
    return low


def _at_least(count: int, of: int, share: float) -> float:
    """P(`count` or more of `of`), each with probability `share`, which is neither 0 nor 1."""
    of_all = lgamma(of + 1)
    return sum(
        exp(
            of_all
            - lgamma(seen + 1)
            - lgamma(of - seen + 1)
            + seen * log(share)
            + (of - seen) * log(1 - share)
        )
        for seen in range(count, of + 1)
    )
