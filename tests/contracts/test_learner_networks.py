"""What every network promises under every kind of strategy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strategies import catalog
from strategies.base import ExperienceUnfitError, StreamInfo
from strategies.learning.state import load_any
from strategies.network_choice import Installation, install
from streams.base import Experience
from tests.contracts.test_learners import digest, global_randomness
from tests.support.network_parts import NETWORKS, accuracy, build, experience, installation

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
    "mlp, dropout": (1200, 20, 0.90),
    "cnn": (1200, 5, 0.90),
    "cnn, batch": (1200, 5, 0.90),
    "cnn, none": (1200, 10, 0.85),
    "resnet18": (160, 5, 0.70),
    "backbone, frozen": (600, 20, 0.78),
    "backbone": (400, 4, 0.70),
    "own": (1200, 10, 0.90),
}
"""Records, epochs, and the accuracy on 300 other digits that must be reached."""

SMALL: dict[str, Any] = {"channels": (8, 8, 8, 8), "norm": "batch"}
"""Its last block sees one place of an image of 8 pixels."""
HEAVY = ("resnet18", "backbone")
QUICK = ("replay", "lwf", "ewc, records")
"""With these strategies the heavy networks are tried by every run, with the others by `make test-all`."""

every_network = pytest.mark.parametrize("network", list(NETWORKS))
every_network_and_strategy = pytest.mark.parametrize(
    ("network", "strategy"),
    [
        pytest.param(
            network,
            strategy,
            marks=[pytest.mark.slow] if network in HEAVY and strategy not in QUICK else [],
        )
        for network in NETWORKS
        for strategy in STRATEGIES
    ],
)


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


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=[pytest.mark.slow] if n in HEAVY else []) for n in NETWORKS]
)
def test_every_network_learns_digits(network: str) -> None:
    records, epochs, wanted = LEARNS[network]
    learner = build(network, epochs=epochs)
    learner.learn(experience(0, 0, records))
    assert accuracy(learner, experience(1, 1497, 1797)) >= wanted


@every_network_and_strategy
def test_a_reloaded_learner_goes_on_bit_for_bit(network: str, strategy: str, tmp_path: Path) -> None:
    settings = STRATEGIES[strategy]
    learner = build(network, settings["name"], **settings)
    learner.learn(experience(0, 0, 20, below=5))
    learner.save(tmp_path / "saved")
    reloaded = load_any(tmp_path / "saved", catalog.STRATEGIES)
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
    assert not learner.network.features(learner.network.prepare(torch.zeros(2, 8, 8))).isnan().any()
    assert learner.network(torch.zeros(2, 8, 8)).shape == (2, 0)


@every_network
def test_gdumb_draws_all_trained_weights_again(network: str) -> None:
    # Steps so small that only a new draw moves a weight.
    learner = build(network, "gdumb", capacity=10, learning_rate=1e-12)
    learner.learn(experience(0, 0, 20))
    first = {name: weight.clone() for name, weight in learner.network.named_parameters()}
    learner.learn(experience(1, 0, 20))
    for name, weight in learner.network.named_parameters():
        if name.startswith("body.") and NETWORKS[network]["name"] == "backbone":
            assert torch.allclose(weight, first[name], atol=1e-9)  # read from its file again, or never moved
        elif weight.dim() > 1:  # scales and shifts of a normalisation begin as ones and zeros
            assert not torch.allclose(weight, first[name], atol=1e-3)


def test_statistics_of_batches_restart_with_gdumb() -> None:
    learner = build("cnn, batch", "gdumb", capacity=10)
    for index in range(2):
        learner.learn(experience(index, 0, 20))
        counted = {int(t) for n, t in learner.network.named_buffers() if n.endswith("batches_tracked")}
        assert counted == {1}


@pytest.mark.parametrize("network", ["cnn", "resnet18"])
def test_a_batch_of_one_record_and_one_position_moves_no_statistics(network: str) -> None:
    """At 4 or 8 pixels the last feature maps are 1x1: torch refuses to take statistics of a single value."""
    learner = build(network, network=NETWORKS[network] | ({} if network == "resnet18" else SMALL))
    learner.learn(experience(0, 0, 17))
    counted = {int(t) for n, t in learner.network.named_buffers() if n.endswith("batches_tracked")}
    assert counted == {1}  # of two steps


def test_a_frozen_backbone_never_changes_and_each_record_passes_it_once_an_experience() -> None:
    learner = build("backbone, frozen", "lwf", epochs=3)
    body = {name: tensor.clone() for name, tensor in learner.network.body.state_dict().items()}
    seen: list[int] = []
    learner.network.body.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))
    for index in range(2):
        learner.learn(experience(index, index * 20, index * 20 + 20))
        assert sum(seen) == 20
        seen.clear()
    after = learner.network.body.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in body.items())
    assert not any(module.training for module in learner.network.body.modules())
    tensors = learner.state().tensors
    assert {n for n in tensors if n.startswith("optimizer/")} == {
        f"optimizer/head.{weight}/{key}"
        for weight in ("weight", "bias")
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert {n for n in tensors if n.startswith("plugin/lwf/")} == {
        f"plugin/lwf/head.{weight}" for weight in ("weight", "bias")
    }


def test_a_frozen_backbone_passes_records_in_bounded_memory() -> None:
    learner = build("backbone, frozen", network=NETWORKS["backbone, frozen"] | {"size": 1024})
    # 64 channels of 512 x 512 values are the widest layer: one record is as much as may pass.
    assert learner.network.records_at_once == 1
    assert build("mlp").network.records_at_once > 10_000


def test_images_of_another_range_are_refused_by_a_backbone() -> None:
    learner = build("backbone, frozen")
    good = experience(0, 0, 20)
    bright = Experience(0, good.inputs * 16, good.labels, good.record_ids, {}, "")
    with pytest.raises(ExperienceUnfitError, match=r"float32 ones in 0 to 1; these records hold 0 to 16"):
        learner.learn(bright)
