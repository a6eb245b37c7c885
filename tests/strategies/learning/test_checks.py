"""Checks of an experience, and its records as Avalanche reads them."""

from typing import Any

import numpy as np
import pytest
import torch

from strategies.errors import ExperienceUnfitError, StrategyError
from strategies.learning.checks import check_fits, check_shape
from strategies.learning.dataset import TensorDataset
from strategies.stream_info import StreamInfo
from streams.base import Experience

INFO = StreamInfo(shape=(2,), classes=("a", "b"))


def experience(**changes: Any) -> Experience:
    fields: dict[str, Any] = {
        "inputs": np.zeros((3, 2), np.float32),
        "labels": np.array([0, 1, 0]),
        "record_ids": np.array(["x", "y", "z"]),
        "groups": {},
        "digest": "",
    }
    return Experience(7, **(fields | changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"labels": np.array([0, 1])}, "3 records and 2 labels"),
        ({"inputs": np.zeros((3, 2), np.uint8)}, "holds uint8, the stream float32"),
        ({"labels": np.array([0, 1, 2])}, "label 2; the stream declares classes 0 to 1"),
        ({"inputs": np.full((3, 2), np.inf, np.float32)}, "NaN or infinite; remove those records"),
    ],
)
def test_an_unfit_experience_is_refused_with_the_reason(changes: dict[str, Any], why: str) -> None:
    check_fits(experience(), INFO)
    with pytest.raises(ExperienceUnfitError, match=f"experience 7 .*{why}"):
        check_fits(experience(**changes), INFO)


def test_records_of_another_shape_are_refused() -> None:
    with pytest.raises(StrategyError, match=r"takes \(n, \*shape\) of shape \(2,\)"):
        check_shape(np.zeros((3, 4)), INFO)


def test_a_dataset_gives_whole_batches_and_evenly_spaced_records() -> None:
    data = TensorDataset(torch.arange(10.0)[:, None], torch.arange(10) % 3)
    inputs, rows, task = data.__getitems__([1, 4])
    assert inputs.flatten().tolist() == [1, 4]
    assert rows.tolist() == [1, 1]
    assert task.tolist() == [0, 0]
    assert data.targets.uniques == {0, 1, 2}
    assert data.spread(5).inputs.flatten().tolist() == [0, 2, 4, 6, 8]
    assert data.spread(20) is data
