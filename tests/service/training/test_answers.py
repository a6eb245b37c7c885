"""Holdouts in judging order: stable samples of all classes, and the baseline of the majority class."""

import numpy as np
import pytest

from service.training.answers import details, judged, majority_right, records_of, sample
from streams.base import Experience


def experience(index: int, labels: list[int]) -> Experience:
    rows = np.arange(len(labels))
    return Experience(
        index,
        (rows[:, None] + 100 * index).astype(np.float32),
        np.array(labels, dtype=np.int64),
        np.array([f"{index}-{row}" for row in rows]),
        {"even": np.array([str(row % 2 == 0) for row in rows])},
        f"digest {index}",
    )


def test_fewer_records_of_a_holdout_are_the_first_of_more() -> None:
    holdout = experience(3, [0, 1] * 50)
    few, many, whole = judged(holdout, 10), judged(holdout, 40), judged(holdout, None)
    np.testing.assert_array_equal(many.record_ids[:10], few.record_ids)
    np.testing.assert_array_equal(whole.record_ids[:40], many.record_ids)
    assert sorted(whole.record_ids) == sorted(holdout.record_ids)
    for part in (few, many, whole):
        rows = part.inputs[:, 0].astype(int) - 300
        np.testing.assert_array_equal(part.labels, holdout.labels[rows])
        np.testing.assert_array_equal(part.groups["even"], holdout.groups["even"][rows])
    assert abs(int(few.labels.sum()) - 5) <= 1


@pytest.mark.parametrize("limit", [1, 7, 30, 100])
def test_a_sample_draws_from_all_holdouts_alike(limit: int) -> None:
    holdouts = [experience(0, [0] * 10), experience(1, []), experience(2, [1] * 30)]
    inputs, labels = sample(holdouts, limit=limit, seed=0)
    assert len(inputs) == len(labels) == min(limit, 40)
    assert len(np.unique(inputs)) == len(inputs)
    np.testing.assert_array_equal(labels, (inputs[:, 0] >= 200).astype(np.int64))
    again, _ = sample(holdouts, limit=limit, seed=0)
    np.testing.assert_array_equal(inputs, again)


def test_the_majority_class_is_that_of_the_batch_and_not_of_the_holdout() -> None:
    right = majority_right(experience(0, [2, 2, 1]), experience(1, [1, 1, 2]))
    np.testing.assert_array_equal(right, [False, False, True])


def test_details_hold_the_brier_score_and_the_score_of_two_classes() -> None:
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5]], dtype=np.float32)
    found = details(probabilities, np.array([0, 1]))
    np.testing.assert_allclose(found.brier, [0.125, 0.5])
    assert found.score is not None
    np.testing.assert_allclose(found.score, [0.25, 0.5])
    assert details(np.zeros((1, 3), np.float32), np.array([2])).score is None


def test_the_records_of_a_holdout_keep_their_groups() -> None:
    found = records_of(experience(0, [1, 0, 1]))
    column = found.groups["even"]
    assert [column.values[index] for index in column.indices] == ["True", "False", "True"]
    np.testing.assert_array_equal(found.labels, [1, 0, 1])
