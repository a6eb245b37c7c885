"""The battery keeps its false alarm rate, sees what it should, and says when it cannot tell."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import rotate
from scipy.stats import chi2_contingency, ks_2samp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from streams.shift import (
    MIN_RECORDS,
    Answers,
    Columns,
    battery,
    can_decide,
    estimated_accuracy,
    ks_distances,
    ks_p_value,
    label_p_value,
    prior_shift,
    subsample,
)

Sample = NDArray[Any]


@cache
def digits() -> tuple[Sample, Sample, Sample]:
    """Images (1797, 8, 8), the same turned by 10 degrees, and their classes."""
    data = load_digits()
    turned = np.stack([rotate(image, 10, reshape=False, order=1) for image in data.images])
    return data.images, turned, data.target


@cache
def classifier() -> LogisticRegression:
    """Fitted on the first 400 digits, which no test compares."""
    images, _, labels = digits()
    return LogisticRegression(C=0.01, max_iter=200).fit(images[:400].reshape(400, -1), labels[:400])


def probabilities(images: Sample) -> Sample:
    return np.asarray(classifier().predict_proba(images.reshape(len(images), -1)))


def both(seed: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of two samples of the digits, without a common one."""
    order = 400 + np.random.default_rng(seed).permutation(1397)
    return order[:count], order[count : 2 * count]


def test_false_alarms_stay_below_alpha_over_250_windows() -> None:
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(250):
        normal = random.normal(size=(2, 300, 16))
        ties = random.poisson(0.5, (2, 300, 16))
        reference, window = np.concatenate([normal, ties], axis=2)
        alarms += battery(reference, window, alpha=0.05).verdict == "shifted"
    assert alarms <= 0.05 * 250


def test_false_alarms_of_all_three_tests_stay_below_alpha() -> None:
    images, _, _ = digits()
    alarms = 0
    for seed in range(150):
        one, other = both(seed, 300)
        answers = Answers(probabilities(images[one]), probabilities(images[other]))
        alarms += battery(images[one], images[other], alpha=0.05, answers=answers).verdict == "shifted"
    # Samples of a finite set without a common member differ a little more than independent ones would.
    assert alarms <= 0.05 * 150 + 5


@pytest.mark.parametrize("count", [100, 300])
def test_digits_turned_by_10_degrees_are_seen_every_time(count: int) -> None:
    images, turned, _ = digits()
    for seed in range(30):
        one, other = both(seed, count)
        found = battery(images[one], turned[other], alpha=0.05)
        assert found.verdict == "shifted"
        assert found.distance > 0.3


def test_a_prior_shift_is_seen_in_the_predicted_labels_first() -> None:
    images, _, labels = digits()
    seen = {"features": 0, "labels": 0}
    for seed in range(30):
        one, other = both(seed, 690)
        other = other[labels[other] != 0][:300]
        one = one[:300]
        answers = Answers(probabilities(images[one]), probabilities(images[other]))
        found = battery(images[one], images[other], alpha=0.05, answers=answers)
        seen["features"] += found.p_values["features"] <= 0.05
        seen["labels"] += found.p_values["labels"] <= 0.05
    assert seen["labels"] == 30
    assert seen["features"] < 15


def test_the_feature_that_moved_is_named_with_its_distance() -> None:
    random = np.random.default_rng(1)
    reference, window = random.random((2, 1000, 3, 2))
    window[:, 1, 0] += 0.4
    found = battery(reference, window, alpha=0.001)
    assert (found.verdict, found.feature, found.features) == ("shifted", 2, 6)
    assert found.distance == pytest.approx(0.4, abs=0.06)
    assert found.p_value == found.p_values["features"] < 1e-20
    assert (found.prior_shift, found.estimated_accuracy) == (None, None)


def test_the_distances_are_scipys_also_with_ties_and_unequal_sizes() -> None:
    random = np.random.default_rng(2)
    for one, other in ((60, 300), (300, 60), (100, 100)):
        reference = np.column_stack([random.random(one), random.poisson(1, one), random.normal(size=one)])
        window = np.column_stack([random.random(other), random.poisson(2, other), random.normal(size=other)])
        distances, varying = ks_distances(Columns.of(reference), window)
        expected = [ks_2samp(reference[:, index], window[:, index]).statistic for index in range(3)]
        np.testing.assert_allclose(distances, expected, atol=1e-12)
        assert varying.all()


@pytest.mark.parametrize("sizes", [(50, 50), (50, 75), (50, 1000), (100, 100), (300, 1000), (458, 458)])
def test_the_p_value_bounds_the_exact_one_closely(sizes: tuple[int, int]) -> None:
    one, other = sizes
    for share in (0.1, 0.2, 0.3, 0.4):
        reference = np.arange(one) / one
        window = np.where(np.arange(other) < share * other, -1.0, (np.arange(other) + 0.5) / other)
        exact = ks_2samp(reference, window, method="exact")
        bound = ks_p_value(float(exact.statistic), one, other)
        if 1e-9 < exact.pvalue < 0.1:
            assert exact.pvalue <= bound < 2.5 * exact.pvalue


def test_constant_features_are_skipped_and_cost_no_power() -> None:
    random = np.random.default_rng(3)
    reference, window = random.random((2, 200, 1))
    still = np.zeros((200, 500))
    found = battery(np.hstack([still, reference]), np.hstack([still, window + 0.4]), alpha=0.001)
    assert (found.verdict, found.feature, found.features) == ("shifted", 500, 1)
    assert found.p_value == ks_p_value(found.distance, 200, 200)


def test_nothing_but_constants_is_no_shift() -> None:
    found = battery(np.zeros((100, 4)), np.zeros((100, 4)), alpha=0.05)
    assert (found.verdict, found.feature, found.features, found.p_value) == ("same", None, 0, 1.0)


def test_a_feature_that_is_constant_at_another_value_has_shifted() -> None:
    assert battery(np.zeros((100, 4)), np.ones((100, 4)), alpha=0.05).distance == 1.0


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 500), (500, 0), (MIN_RECORDS - 1, 500), (500, 49)])
def test_too_few_records_are_undecided_however_different(one: int, other: int) -> None:
    found = battery(np.zeros((one, 4)), np.ones((other, 4)), alpha=0.05)
    assert (found.verdict, found.p_values, found.p_value) == ("undecided", {}, 1.0)
    assert (found.reference_records, found.window_records) == (one, other)


def test_records_that_cannot_give_evidence_at_this_alpha_are_undecided() -> None:
    assert can_decide(50, 50, 1000, 1e-6)
    assert not can_decide(50, 50, 1000, 1e-20)
    assert battery(np.zeros((50, 1000)), np.ones((50, 1000)), alpha=1e-20).verdict == "undecided"


def test_chi_square_is_scipys_where_no_class_is_rare() -> None:
    random = np.random.default_rng(4)
    reference, window = random.random((400, 3)), random.random((300, 3))
    window[:, 0] += 0.1
    counts = [np.bincount(side.argmax(axis=1), minlength=3) for side in (reference, window)]
    expected = chi2_contingency(np.array(counts), correction=False).pvalue
    assert label_p_value(reference, window) == pytest.approx(expected)


def test_one_record_of_a_rare_class_is_no_evidence() -> None:
    reference, window = np.zeros((2, 100, 50))
    reference[:, 0] = window[:, 0] = 0.5
    window[:3, 7] = window[3, 8] = 1.0
    assert label_p_value(reference, window) == 1.0


def test_the_shift_of_the_classes_is_estimated_through_the_confusion() -> None:
    random = np.random.default_rng(5)
    confusion = np.array([[900, 100], [200, 800]])

    def said(classes: NDArray[np.int64]) -> Sample:
        one = random.random(len(classes)) < np.where(classes == 0, 0.1, 0.8)
        return np.column_stack([~one, one]).astype(np.float64)

    reference, window = said(np.repeat([0, 1], 2000)), said(np.repeat([0, 1], [1000, 3000]))
    shift = prior_shift(Answers(reference, window, confusion=confusion))
    assert shift == pytest.approx(0.25, abs=0.03)
    assert prior_shift(Answers(reference, said(np.repeat([0, 1], 2000)), confusion=confusion)) < 0.03  # type: ignore[operator]


@pytest.mark.parametrize("confusion", [[[50, 50], [50, 50]], [[100, 0], [100, 0]]])
def test_a_model_that_cannot_tell_the_classes_estimates_no_prior(confusion: list[list[int]]) -> None:
    answers = Answers(np.eye(2), np.eye(2), confusion=np.array(confusion))
    assert prior_shift(answers) is None
    assert prior_shift(Answers(np.eye(2), np.eye(2))) is None


def test_the_accuracy_is_estimated_by_the_difference_of_confidences() -> None:
    images, turned, labels = digits()
    one, other = both(0, 600)
    known = classifier().score(images[one].reshape(len(one), -1), labels[one])
    answers = Answers(probabilities(images[one]), probabilities(turned[other]), accuracy=float(known))
    estimate = estimated_accuracy(answers)
    assert estimate is not None
    assert estimate < known - 0.02
    assert battery(images[one], turned[other], alpha=0.05, answers=answers).estimated_accuracy == estimate


def test_a_subsample_is_drawn_the_same_way_every_time() -> None:
    sample = np.arange(1000)
    drawn = subsample(sample, 100)
    np.testing.assert_array_equal(drawn, subsample(sample, 100))
    assert len(np.unique(drawn)) == 100
    assert (np.diff(drawn) > 0).all()
    assert abs(drawn.mean() - 500) < 100
    assert subsample(sample, 1000) is sample
