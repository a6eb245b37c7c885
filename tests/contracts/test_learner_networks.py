"""What every network promises under every kind of strategy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strategies.base import StreamInfo
from strategies.network_choice import Installation, install
from strategies.state import load_any
from tests.contracts.test_learners import digest, global_randomness
from tests.network_parts import NETWORKS, accuracy, build, experience, installation

STRATEGIES: dict[str, dict[str, Any]] = {
    "replay": {"name": "replay", "capacity": 10},
    "ewc, batches": {"name": "ewc", "fisher_records": 6},
    "ewc, records": {"name": "ewc", "fisher": "records", "fisher_records": 6, "strength": 50.0},
    "lwf": {"name": "lwf"},
    "mas": {"name": "mas", "importance_records": 6},
    "si": {"name": "si"},
    "gdumb": {"name": "gdumb", "capacity": 10},
    "er-ace": {"name": "er-ace", "capacity": 10},
}
LEARNS: dict[str, tuple[int, int, float]] = {
    "mlp": (1200, 10, 0.90),
    "mlp, dropout": (1200, 20, 0.85),
    "cnn": (1200, 5, 0.90),
    "cnn, batch": (1200, 3, 0.90),
    "cnn, none": (1200, 10, 0.75),
    "resnet18": (240, 4, 0.75),
    "backbone, frozen": (600, 20, 0.75),
    "backbone": (600, 4, 0.60),
    "own": (1200, 10, 0.85),
}
"""Records, epochs, and the accuracy on 300 other digits that must be reached."""

every_network = pytest.mark.parametrize("network", list(NETWORKS))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return installation(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def _installed(everything: Installation) -> Iterator[None]:
    torch.set_num_threads(1)
    install(everything)
    yield
    install(Installation())


def test_every_network_is_held_to_an_accuracy() -> None:
    assert set(LEARNS) == set(NETWORKS)


@every_network
def test_every_network_learns_digits(network: str) -> None:
    records, epochs, wanted = LEARNS[network]
    learner = build(network, epochs=epochs)
    learner.learn(experience(0, 0, records))
    assert accuracy(learner, experience(1, 1497, 1797)) >= wanted


@every_network
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_reloaded_learner_goes_on_bit_for_bit(network: str, strategy: str, tmp_path: Path) -> None:
    settings = STRATEGIES[strategy]
    learner = build(network, settings["name"], **settings)
    learner.learn(experience(0, 0, 20, below=5))
    learner.save(tmp_path / "saved")
    reloaded = load_any(tmp_path / "saved")
    assert digest(reloaded.state()) == digest(learner.state())  # type: ignore[attr-defined]
    for each in (learner, reloaded):
        each.learn(experience(1, 20, 37))  # 17 records: the last step has one; and the head grows
    assert digest(reloaded.state()) == digest(learner.state())  # type: ignore[attr-defined]


@every_network
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_the_served_network_answers_as_the_learner_and_exports(network: str, dtype: Any) -> None:
    learner = build(network, info=StreamInfo((1, 8, 8), tuple("0123456789"), dtype))
    learner.learn(experience(0, 0, 20, dtype=dtype))
    before, randomness = digest(learner.state()), global_randomness()
    asked = experience(1, 20, 29, dtype=dtype).inputs
    expected = learner.predict(asked)
    # Served are raw features as float32, whatever the stream's type.
    program = torch.export.export(
        learner.served_network(),
        (torch.zeros(2, 1, 8, 8),),
        dynamic_shapes=({0: torch.export.Dim("records")},),
    ).module()
    for records in (1, 2, 9):
        with torch.no_grad():
            answers = program(torch.from_numpy(asked[:records].astype(np.float32))).numpy()
        np.testing.assert_allclose(answers, expected[:records], atol=1e-5)
    assert np.array_equal(learner.predict(asked), expected)
    assert (digest(learner.state()), global_randomness()) == (before, randomness)


@every_network
def test_a_single_record_can_be_learnt(network: str) -> None:
    learner = build(network)
    learner.learn(experience(0, 0, 1))
    assert np.isfinite(learner.predict(experience(0, 0, 3).inputs)).all()


@every_network
def test_images_without_a_channel_are_images_of_one(network: str) -> None:
    flat = StreamInfo((8, 8), tuple("0123456789"))
    learner = build(network, info=flat)
    assert learner.network(torch.zeros(2, 8, 8)).shape == (2, 0)


@every_network
def test_gdumb_draws_all_that_is_trained_anew(network: str) -> None:
    learner = build(network, "gdumb", capacity=10, learning_rate=1e-12)
    learner.learn(experience(0, 0, 20))
    first = {name: weight.clone() for name, weight in learner.network.named_parameters()}
    learner.learn(experience(1, 20, 40))
    for name, weight in learner.network.named_parameters():
        # Scales and shifts of a normalisation are drawn as ones and zeros; pretrained weights are read again.
        drawn = weight.requires_grad and weight.dim() > 1 and not name.startswith("body.model.")
        moved = not torch.allclose(weight, first[name][: len(weight)], atol=1e-6)
        assert moved == drawn or not drawn, name
