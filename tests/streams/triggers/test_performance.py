"""A champion that answers worse than its holdout promised makes a cut; one that does not makes none."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from streams.triggers.catalog import Judge, PerformanceTrigger, TriggerContext
from tests.support.real_data import elec2
from tests.support.trigger_parts import ALONE, Parrot, answered, cuts_of, fed, made, sizes_of

BOTH = pytest.mark.parametrize("detector", ["cusum", "e-detector"])


def judged_by(judge: Judge | None) -> TriggerContext:
    return TriggerContext(judge=lambda: judge)


def rates(*pairs: tuple[int, float], seed: int = 0) -> NDArray[np.bool_]:
    """So many answers each, wrong with this rate."""
    counts, each = zip(*pairs, strict=True)
    wrong: NDArray[np.bool_] = np.random.default_rng(seed).random(sum(counts)) < np.repeat(each, counts)
    return wrong


@BOTH
def test_a_risen_error_is_cut_with_its_numbers(detector: Any) -> None:
    config = PerformanceTrigger(detector=detector)
    cut = fed(config.watch({}, judged_by(Parrot(0.1))), answered(rates((2000, 0.1), (600, 0.3))))
    assert cut is not None
    assert 2010 < cut.records < 2130
    decision = cut.decision
    assert decision["alarm"]
    assert decision["detector"] == detector
    assert decision["statistic"] >= decision["threshold"]
    assert (decision["version"], decision["error_rate"], decision["judged"]) == (1, 0.1, cut.records)
    assert decision["acceptable"] == pytest.approx(0.11)
    wrong, latest = decision["latest_wrong"], decision["latest"]
    assert cut.reason.startswith(f"Version 1 got {wrong} of the last {latest} records wrong; at most 11.0%")
    assert latest < 400, "the reason looks at the answers since the rise"
    assert 0.14 < wrong / latest < 0.5


@BOTH
def test_an_error_as_promised_is_cut_at_the_most(detector: Any) -> None:
    config = PerformanceTrigger(detector=detector, at_most=3000)
    cuts = cuts_of(config, answered(rates((7000, 0.1))), around=judged_by(Parrot(0.1)))
    assert sizes_of(cuts) == [3000, 3000]
    assert cuts[0].reason == "3,000 records have arrived without an alarm."
    assert not cuts[0].decision["alarm"]


def test_without_a_champion_records_are_counted() -> None:
    cut = fed(PerformanceTrigger(first=500).watch({}, ALONE), made(600))
    assert cut is not None
    assert cut.records == 500
    assert cut.reason == "500 records have arrived, and there is no champion yet."


def test_an_early_alarm_waits_for_enough_records() -> None:
    watch = PerformanceTrigger(at_least=200).watch({}, judged_by(Parrot(0.1)))
    assert fed(watch, answered(rates((100, 1.0))), [10] * 9) is None
    cut = watch.see(answered(rates((150, 0.0))), 0.0, 0.0)
    assert cut is not None
    assert (cut.records, cut.decision["judged"]) == (200, cut.decision["alarmed_at"])
    assert cut.decision["alarmed_at"] < 30


def test_a_new_champion_starts_the_detector_anew() -> None:
    champions: list[Parrot] = [Parrot(0.1, version=1)]
    watch = PerformanceTrigger(at_least=1).watch({}, TriggerContext(judge=lambda: champions[-1]))
    almost = answered(rates((60, 0.25), seed=1))
    assert watch.see(almost, 0.0, 0.0) is None
    champions.append(Parrot(0.3, version=2))
    for seed in range(5):
        assert watch.see(answered(rates((500, 0.25), seed=seed)), 0.0, 0.0) is None
    cut = watch.see(answered(rates((500, 0.9))), 0.0, 0.0)
    assert cut is not None
    assert (cut.decision["version"], cut.decision["error_rate"]) == (2, 0.3)
    assert cut.decision["judged"] == cut.records - 60


def test_a_champion_that_goes_away_leaves_the_bound() -> None:
    champions: list[Parrot | None] = [Parrot(0.1)]
    watch = PerformanceTrigger(first=10, at_most=500).watch({}, TriggerContext(judge=lambda: champions[-1]))
    assert watch.see(made(100), 0.0, 0.0) is None
    champions.append(None)
    assert watch.see(made(399), 0.0, 0.0) is None
    cut = watch.see(made(5), 0.0, 0.0)
    assert cut is not None
    assert cut.records == 500


def test_records_beyond_the_bound_are_not_judged() -> None:
    asked: list[int] = []

    class Counting(Parrot):
        def wrong(self, features: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
            asked.append(len(labels))
            return super().wrong(features, labels)

    config = PerformanceTrigger(at_most=300)
    fed(config.watch({}, judged_by(Counting(0.1))), made(5000), [100])
    assert asked == [100, 200]


@pytest.mark.parametrize("error_rate", [0.0, 1.0])
def test_extreme_champions_are_followed(error_rate: float) -> None:
    config = PerformanceTrigger(at_most=2000)
    cut = fed(config.watch({}, judged_by(Parrot(error_rate))), answered(rates((2000, error_rate))))
    assert cut is not None
    assert cut.records == (2000 if error_rate == 0 else cut.records)


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="at_least must not be above at_most"):
        PerformanceTrigger(at_least=500, at_most=400)


class Elec2Judge:
    """A logistic regression on the first 1,500 of 2,000 records, whose error is that on the rest."""

    version = 1

    def __init__(self) -> None:
        features, labels = elec2()
        self._model = LogisticRegression().fit(features[:1500], labels[:1500])
        self.error_rate = float(self.wrong(features[1500:2000], labels[1500:2000]).mean())

    def wrong(self, features: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        wrong: NDArray[np.bool_] = self._model.predict(features) != labels
        return wrong


@cache
def elec2_judge() -> Elec2Judge:
    return Elec2Judge()


@BOTH
def test_real_drift_is_cut_for_good_reasons_however_it_is_chunked(detector: Any) -> None:
    features, labels = elec2()
    stream = made(len(labels) - 2000, features=features[2000:], labels=labels[2000:])
    judge = elec2_judge()
    config = PerformanceTrigger(detector=detector, at_least=500, at_most=5000)
    cuts = cuts_of(config, stream, chunk=5000, around=judged_by(judge))
    assert cuts == cuts_of(config, stream, chunk=333, around=judged_by(judge))
    alarms = [cut for cut in cuts if cut.decision["alarm"]]
    assert 20 < len(cuts) < len(stream) / 500
    assert len(alarms) > 20, "the prices of 1996 do not hold for the years after"
    for cut in cuts:
        assert 500 <= cut.records <= 5000
        if cut.decision["alarm"]:
            assert cut.decision["latest_wrong"] / cut.decision["latest"] > judge.error_rate
        else:
            assert cut.records == 5000
