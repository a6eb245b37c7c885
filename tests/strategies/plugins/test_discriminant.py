"""Means and one covariance: what slda answers by, in whatever order the records come."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from strategies.base import LearningDivergedError, StrategyError, StreamInfo
from strategies.catalog import STRATEGIES
from strategies.learning.learner import AvalancheLearner
from strategies.network_choice import Installation, install
from strategies.plugins.discriminant import StreamingDiscriminant
from streams.base import Experience

INFO = StreamInfo(shape=(4,), classes=("a", "b", "c"))
DRAW = np.random.default_rng(0)
LABELS = DRAW.permutation(np.repeat(np.arange(3), 60))
MIX = np.eye(4) + 0.3 * DRAW.normal(size=(4, 4))
INPUTS = (DRAW.normal(size=(180, 4)) @ MIX + LABELS[:, None]).astype(np.float32)


def experience(index: int, chosen: Any) -> Experience:
    inputs, labels = INPUTS[chosen], LABELS[chosen]
    return Experience(index, inputs, labels, np.array([str(n) for n in range(len(labels))]), {}, "")


def build(**settings: Any) -> AvalancheLearner:
    spec = STRATEGIES["slda"]
    learner = spec.build(spec.config(device="cpu", **settings), INFO)
    assert isinstance(learner, AvalancheLearner)
    return learner


def test_the_order_of_records_says_nothing() -> None:
    features, rows = torch.from_numpy(INPUTS).double() + 1000, torch.from_numpy(LABELS)
    found = []
    for order, size in ((np.arange(180), 180), (np.argsort(LABELS), 7), (np.arange(180)[::-1].copy(), 1)):
        plugin = StreamingDiscriminant(0.1)
        plugin._grow(3, 4)
        for some in torch.split(torch.from_numpy(order), size):
            plugin.add(features[some], rows[some])
        found.append((*plugin.solution(), plugin.scatter))
    within = features - torch.stack([features[rows == row].mean(0) for row in range(3)])[rows]
    for weight, bias, scatter in found:
        assert torch.allclose(scatter, within.T @ within)
        assert torch.allclose(weight, found[0][0])
        assert torch.allclose(bias, found[0][1])


def test_answers_are_those_of_a_discriminant_analysis_of_all_records() -> None:
    """Classes that come one by one, after a first experience that the scaling is learnt from."""
    learner = build(hidden=[], shrinkage=1e-9)
    parts = [np.arange(30), *(30 + np.flatnonzero(LABELS[30:] == label) for label in (2, 0, 1))]
    for index, chosen in enumerate(parts):
        learner.learn(experience(index, chosen))
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(INPUTS.astype(np.float64), LABELS)
    expected, found = peer.predict_log_proba(INPUTS), np.log(learner.predict(INPUTS))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_what_says_how_a_network_is_trained_says_nothing_here() -> None:
    plain, other = build(hidden=[8]), build(hidden=[8], optimizer="sgd", learning_rate=1e30, epochs=7)
    for learner in (plain, other):
        report = learner.learn(experience(0, np.arange(90)))
        assert len(report.losses) == 1
        learner.learn(experience(1, np.arange(90, 180)))
    assert np.array_equal(plain.predict(INPUTS), other.predict(INPUTS))


def test_one_record_is_enough() -> None:
    learner = build(hidden=[8])
    learner.learn(experience(0, [0]))
    assert learner.predict(INPUTS)[:, LABELS[0]].tolist() == [1.0] * 180


class Overflowing(nn.Module):
    """Features without end, as a network with broken weights makes them."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1) * torch.inf


def overflowing(_shape: tuple[int, ...]) -> nn.Module:
    return Overflowing()


def test_features_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    install(Installation({"overflowing": f"{__name__}:overflowing"}))
    try:
        learner = build(network={"name": "own", "of": "overflowing"})
        with pytest.raises(LearningDivergedError, match="choose another network"):
            learner.learn(experience(0, np.arange(90)))
        with pytest.raises(StrategyError, match="last saved state"):
            learner.save(tmp_path / "saved")
    finally:
        install(Installation())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_no_tensor_of_the_network_moves(norm: str) -> None:
    spec = STRATEGIES["slda"]
    images = StreamInfo(shape=(1, 8, 8), classes=("a", "b"))
    config = spec.config.model_validate(
        {"network": {"name": "cnn", "channels": [4], "norm": norm}, "device": "cpu"}
    )
    learner = spec.build(config, images)
    assert isinstance(learner, AvalancheLearner)
    before = {name: tensor.clone() for name, tensor in learner.network.body.state_dict().items()}
    inputs = DRAW.normal(size=(20, 1, 8, 8)).astype(np.float32)
    labels = np.arange(20) % 2
    learner.learn(Experience(0, inputs, labels, np.array([str(n) for n in labels]), {}, ""))
    for name, tensor in learner.network.body.state_dict().items():
        assert torch.equal(tensor, before[name])
