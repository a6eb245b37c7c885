"""The gate's statistics against an independent oracle, and their error rates by exact enumeration."""

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats as scipy_stats
from scipy.special import gammaln

from service.gate import stats
from service.gate.base import GateConfig
from tests.support.real_data import DATA

ORACLE: dict[str, Any] = json.loads((DATA / "gate_values.json").read_text())


def column(name: str) -> NDArray[np.float64]:
    return np.array([case[name] for case in ORACLE["cases"]], dtype=np.float64)


class Flips:
    """All (lost, gained) that n records can show, and their exact probabilities at a true loss and churn."""

    def __init__(self, n: int, *, at_most: int | None = None) -> None:
        counts = np.arange(min(n, at_most or n) + 1)
        lost, gained = np.meshgrid(counts, counts, indexing="ij")
        possible = lost + gained <= n
        self.n, self.lost, self.gained = n, lost[possible], gained[possible]
        kept = n - self.lost - self.gained
        self.ways = gammaln(n + 1) - gammaln(self.lost + 1) - gammaln(self.gained + 1) - gammaln(kept + 1)

    def probability(self, chosen: NDArray[np.bool_], *, loss: float, churn: float) -> float:
        p_lost, p_gained = (churn + loss) / 2, (churn - loss) / 2
        b, c = self.lost[chosen], self.gained[chosen]
        # xlogy-like: a probability of 0 allows only 0 flips.
        logs = self.ways[chosen] + (self.n - b - c) * math.log1p(-churn)
        for count, p in ((b, p_lost), (c, p_gained)):
            logs = logs + (count * math.log(p) if p > 1e-15 else np.where(count > 0, -np.inf, 0.0))
        return float(np.exp(logs).sum())

    def passing(self, *, margin: float, alpha: float) -> NDArray[np.bool_]:
        return stats.noninferiority_p(self.lost, self.gained, n=self.n, margin=margin) <= alpha


def test_score_and_p_values_match_the_oracle() -> None:
    flips = {"n": column("n"), "margin": column("margin")}
    z = stats.noninferiority_z(column("b"), column("c"), **flips)
    np.testing.assert_allclose(z, column("z"), atol=1e-8)
    p = stats.noninferiority_p(column("b"), column("c"), **flips)
    np.testing.assert_allclose(p, column("p"), rtol=1e-6)
    drop = stats.mcnemar_drop_p(column("b"), column("c"))
    np.testing.assert_allclose(drop, column("mcnemar_drop_p"), rtol=1e-6)


def test_upper_limits_match_the_oracle() -> None:
    _, upper = stats.loss_limits(column("b"), column("c"), n=column("n"), alpha=0.05)
    np.testing.assert_allclose(np.maximum(upper, 1e-6), column("loss_upper_95"), atol=1e-6)


def test_promote_probabilities_match_the_oracle() -> None:
    enumerated: dict[int, Flips] = {}
    for case in ORACLE["exact_promote_probability"]:
        n = case["n"]
        # No case expects more than 375 flips of a kind; beyond 600 nothing is left at six digits.
        if n not in enumerated:
            enumerated[n] = Flips(n, at_most=600)
        flips = enumerated[n]
        passing = flips.passing(margin=case["margin"], alpha=case["alpha"])
        probability = flips.probability(passing, loss=case["true_drop"], churn=case["churn"])
        assert probability == pytest.approx(case["promote_probability"], abs=2e-5), case


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.01])
@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
def test_error_rate_stays_below_alpha_whatever_the_churn(margin: float, alpha: float) -> None:
    for n in (60, 100, 180, 300, 600, 1000):
        flips = Flips(n)
        passing = flips.passing(margin=margin, alpha=alpha)
        for churn in (margin, 1.5 * margin, 2 * margin, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5):
            if churn >= margin:
                error = flips.probability(passing, loss=margin, churn=churn)
                assert error <= alpha, (n, churn, error)


def test_limits_and_test_agree() -> None:
    lost, gained = np.array([0, 3, 12, 40, 0]), np.array([0, 9, 12, 5, 30])
    lower, upper = stats.loss_limits(lost, gained, n=500, alpha=0.05)
    np.testing.assert_allclose(stats.noninferiority_p(lost, gained, n=500, margin=upper), 0.05, atol=1e-9)
    assert (lower <= (lost - gained) / 500).all()
    assert ((lost - gained) / 500 <= upper).all()
    _, gain_upper = stats.loss_limits(gained, lost, n=500, alpha=0.05)
    np.testing.assert_allclose(lower, -gain_upper)


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.001, 1e-6])
def test_every_limit_is_where_the_test_turns(alpha: float) -> None:
    """From single records to many, from no flips to nothing but flips."""
    random = np.random.default_rng(0)
    for n in (1, 2, 5, 60, 500, 20_000):
        lost = random.integers(0, n + 1, 500) // random.choice([1, 30], 500)
        gained = (random.random(500) * (n - lost + 1)).astype(int) // random.choice([1, 30], 500)
        _, upper = stats.loss_limits(lost, gained, n=n, alpha=alpha)
        inside = np.abs(upper) < 1 - 1e-6
        above, below = (
            stats.noninferiority_p(lost, gained, n=n, margin=upper + aside)[inside] for aside in (1e-9, -1e-9)
        )
        assert (above <= alpha).all()
        assert (below > alpha).all()


def test_empty_holdout_has_no_p_value() -> None:
    assert math.isnan(float(stats.noninferiority_p(0, 0, n=0, margin=0.02)))
    assert all(math.isnan(float(limit)) for limit in stats.loss_limits(0, 0, n=0, alpha=0.05))


def test_mcnemar_by_hand() -> None:
    assert float(stats.mcnemar_drop_p(3, 0)) == pytest.approx(1 / 8)
    assert float(stats.mcnemar_drop_p(2, 1)) == pytest.approx(4 / 8)
    assert float(stats.mcnemar_gain_p(0, 3)) == pytest.approx(1 / 8)
    assert float(stats.mcnemar_drop_p(0, 0)) == 1


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(stats.holm([0.5, 0.9]), [1.0, 1.0])
    assert stats.holm([]).shape == (0,)


def test_holm_holds_its_error_rate() -> None:
    p = np.random.default_rng(0).random((20_000, 5))
    alarms = np.mean([stats.holm(row).min() <= 0.05 for row in p[:4000]])
    assert alarms <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.01, 0.001])
def test_floor_is_the_first_n_that_passes_without_flips(alpha: float) -> None:
    for margin in (0.005, 0.01, 0.02, 0.05, 0.1, 0.3):
        floor = int(stats.floor_n(margin, alpha))
        assert stats.noninferiority_p(0, 0, n=floor, margin=margin) <= alpha
        assert stats.noninferiority_p(0, 0, n=floor - 1, margin=margin) > alpha
        exact = int(stats.exact_floor_n(margin, alpha))
        assert (1 - margin) ** exact <= alpha < (1 - margin) ** (exact - 1)
        assert exact <= floor


def test_a_lax_alpha_would_let_too_few_records_pass() -> None:
    """Why the configuration stops at 0.1."""
    assert stats.floor_n(0.005, 0.2) < stats.exact_floor_n(0.005, 0.2)
    with pytest.raises(ValidationError):
        GateConfig(alpha=0.2)


def test_floors_as_published() -> None:
    assert stats.floor_n([0.02, 0.01, 0.05], 0.05).tolist() == [180, 361, 70]
    assert stats.exact_floor_n([0.02, 0.01, 0.05], 0.05).tolist() == [149, 299, 59]


def test_needed_n_gives_the_power_it_promises() -> None:
    margins, churns = [0.01, 0.01, 0.02, 0.02, 0.02, 0.05], [0.02, 0.06, 0.02, 0.06, 0.12, 0.06]
    needed = stats.needed_n(margins, 0.05, churn=churns)
    assert needed.tolist() == [1632, 4114, 502, 1127, 2057, 227]
    for n, margin, churn in zip(needed.tolist(), margins, churns, strict=True):
        if n <= 1200:
            flips = Flips(n)
            power = flips.probability(flips.passing(margin=margin, alpha=0.05), loss=0.0, churn=churn)
            assert 0.8 <= power <= 0.9
    assert int(stats.needed_n(0.02, 0.05, churn=1e-9)) == 180


@settings(deadline=None, max_examples=200)
@given(
    st.floats(0.005, 0.3),
    st.sampled_from([0.05, 0.03, 0.01, 4e-4, 1e-6]),
    st.floats(0.001, 0.5),
    st.floats(0.5, 0.9999),
)
def test_a_settled_margin_is_the_inverse_of_needed_records(
    margin: float, alpha: float, churn: float, power: float
) -> None:
    needed = int(stats.needed_n(margin, alpha, churn=churn, power=power))
    if needed > int(stats.floor_n(margin, alpha)):
        settled, one_less = stats.settled_margin(
            [needed, needed - 1], alpha, churn=churn, power=power
        ).tolist()
        assert settled <= margin * (1 + 1e-9) < one_less * (1 + 2e-9)


def test_a_settled_margin_shrinks_with_records_and_none_settle_nothing() -> None:
    n = np.arange(0, 20_000, 7)
    settled = stats.settled_margin(n, 0.05, churn=0.12, power=0.9996)
    assert settled[0] == np.inf
    assert (np.diff(settled) < 0).all()
    assert (np.diff(stats.settled_margin(1000, [0.05, 0.01, 1e-4], churn=0.12, power=0.9)) > 0).all()
    assert float(stats.settled_margin(600, 0.05, churn=0.12, power=0.9996)) == pytest.approx(0.0772, abs=1e-4)


def test_a_settled_margin_gives_the_power_it_promises() -> None:
    for n in (181, 300, 600):
        margin = float(stats.settled_margin(n, 0.05, churn=0.12, power=0.99))
        flips = Flips(n)
        assert flips.probability(flips.passing(margin=margin, alpha=0.05), loss=0.0, churn=0.12) >= 0.99


def _failures_and_runs(passed: Sequence[bool]) -> tuple[int, int]:
    runs = sum(not now and (not place or passed[place - 1]) for place, now in enumerate(passed))
    return len(passed) - sum(passed), runs


def test_looks_share_alpha_out_over_all_that_can_have_come_before() -> None:
    """Every string of bits that audits can have revealed up to the thirteenth look, and the tail after it."""
    spent, log_first = 0.0, math.log(20)
    for look in range(1, 14):
        weight = log_first * (1 / math.log(19 + look) - 1 / math.log(20 + look))
        transcripts = itertools.product((True, False), repeat=look - 1)
        of_look = math.fsum(stats.look_share(look, *_failures_and_runs(bits)) for bits in transcripts)
        assert 0 < of_look <= weight
        spent += of_look
    # The weights of all later looks, which telescope.
    assert spent + log_first / math.log(20 + 13) <= 1


def test_later_looks_failures_and_runs_spend_less_but_never_nothing() -> None:
    shares = [stats.look_share(look) for look in (1, 2, 5, 50, 500, 10**6)]
    assert shares == sorted(shares, reverse=True)
    assert stats.look_share(5, 1, 1) == pytest.approx(stats.look_share(5) / 4 / 4)
    assert stats.look_share(5, 2, 1) == pytest.approx(stats.look_share(5, 1, 1) / 3)
    assert stats.look_share(9, 4, 2) == pytest.approx(stats.look_share(9) / math.comb(8, 2) / 4 / 12 / 3)
    assert stats.look_share(100, 50, 1) > stats.look_share(100, 1, 1) / 1500, "a long run can be left again"
    assert 0 < stats.look_share(10**6, 40, 1) < shares[-1]


def test_tries_share_alpha_out_and_any_try_tells_what_all_may_spend() -> None:
    assert sum(stats.spent(0.05, attempt) for attempt in range(1, 100_000)) <= 0.05
    assert stats.shared_out(0.05, None) == 0.05
    assert stats.spent_at_first(0.05, None) == 0.05
    for attempt in (1, 2, 7, 1000):
        spending = stats.spent(0.05, attempt)
        assert stats.shared_out(spending, attempt) == pytest.approx(0.05)
        assert stats.spent_at_first(spending, attempt) == pytest.approx(stats.spent(0.05, 1))


def test_needed_n_difference_gives_the_power_it_promises() -> None:
    n = int(stats.needed_n_difference(0.05, 0.05, churn=0.1))
    flips = Flips(n)
    seen = stats.mcnemar_drop_p(flips.lost, flips.gained) <= 0.05
    assert 0.7 <= flips.probability(seen, loss=0.05, churn=0.1) <= 0.85


def test_clopper_pearson_covers_and_closes_at_the_ends() -> None:
    lower, upper = stats.clopper_pearson([0, 7, 10], 10, alpha=0.05)
    assert lower[0] == 0
    assert upper[2] == 1
    assert float(scipy_stats.binom.sf(6, 10, lower[1])) == pytest.approx(0.05)
    assert float(scipy_stats.binom.cdf(7, 10, upper[1])) == pytest.approx(0.05)
    nothing = stats.clopper_pearson(0, 0, alpha=0.05)
    assert [float(limit) for limit in nothing] == [0, 1]


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_more_losses_never_help(n: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, n - 1))
    gained = data.draw(st.integers(0, n - lost - 1))
    p = [float(stats.noninferiority_p(lost + more, gained, n=n, margin=0.02)) for more in (0, 1)]
    assert 0 <= p[0] <= p[1] + 1e-12
    assert p[1] <= 1
    assert stats.mcnemar_drop_p(lost + 1, gained) <= stats.mcnemar_drop_p(lost, gained) + 1e-12


def test_a_share_is_compared_with_an_estimated_one_at_its_rate() -> None:
    """Exact rejection rate of the score test where both shares are the same, over all pairs of counts."""
    here, there, alpha = 150, 60, 1 / 60
    seen, usual = np.arange(here + 1)[:, None], np.arange(there + 1)[None]
    p = stats.higher_p(seen / here, usual / there, sample=here, reference_sample=there)
    for share in (0.01, 0.05, 0.2, 0.5):
        mass = scipy_stats.binom.pmf(seen, here, share) * scipy_stats.binom.pmf(usual, there, share)
        assert mass[p <= alpha].sum() <= 1.5 * alpha
    assert stats.higher_p(0.0, 0.0, sample=10, reference_sample=10) == 0.5
    assert stats.higher_p(0.3, 0.01, sample=150, reference_sample=60) < 1e-4
