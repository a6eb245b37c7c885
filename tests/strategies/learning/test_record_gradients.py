"""Gradients of single records: every way to them gives what a plain loop over the records gives."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from strategies.learning import record_gradients
from strategies.learning.networks import Network
from strategies.learning.record_gradients import Objective, Size, mean_over_records
from strategies.naive import NaiveConfig
from strategies.network_choice import Installation, install
from tests.support.network_parts import NETWORKS, installation

RECORDS = 9
WAYS: dict[str, tuple[dict[str, object], str]] = {
    "mlp": ({"name": "mlp"}, "layers"),
    "mlp, dropout": ({"name": "mlp", "dropout": 0.5}, "layers"),
    "mlp, norm": ({"name": "mlp", "norm": "layer"}, "records"),
    "cnn": (NETWORKS["cnn"], "records"),
    "cnn, batch": (NETWORKS["cnn, batch"], "records"),
    "frozen": (NETWORKS["backbone, frozen"], "layers"),
    "plain": ({"name": "own", "of": "plain"}, "layers"),
    "used twice": ({"name": "own", "of": "used-twice"}, "records"),
    "on sequences": ({"name": "own", "of": "on-sequences"}, "records"),
    "borrowed": ({"name": "own", "of": "borrowed"}, "records"),
    "only borrowed": ({"name": "own", "of": "only-borrowed"}, "records"),
    "written over": ({"name": "own", "of": "written-over"}, "records"),
    "branching": ({"name": "own", "of": "branching"}, "layers"),
    "normalised": ({"name": "own", "of": "normalised"}, "records"),
}
"""A network, and the way that its gradients are taken."""


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return installation(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def _installed(everything: Installation) -> Iterator[None]:
    torch.set_num_threads(1)
    install(everything)
    yield
    install(Installation())


def loss_of_each(logits: Tensor, rows: Tensor) -> Tensor:
    return cross_entropy(logits, rows, reduction="none")


def squared_length(logits: Tensor, _rows: Tensor) -> Tensor:
    return logits.square().sum(1)


def make(network: dict[str, object]) -> tuple[Network, Tensor, Tensor]:
    """A network with three rows, records, and their labels."""
    torch.manual_seed(0)
    made = Network(NaiveConfig.model_validate({"hidden": (7, 5), "network": network}), (1, 8, 8))
    made.head.grow(3, torch.Generator().manual_seed(0))
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            module.running_mean.uniform_(-1, 1)
    return made, torch.rand(RECORDS, 1, 8, 8), torch.arange(RECORDS) % 3


def by_a_loop(
    network: Network, inputs: Tensor, rows: Tensor, objective: Objective, size: Size
) -> list[Tensor]:
    network.eval()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    total = [torch.zeros_like(weight) for weight in weights]
    for place in range(len(inputs)):
        one = slice(place, place + 1)
        value = objective(network(inputs[one]), rows[one]).sum()
        for sum_, gradient in zip(
            total, torch.autograd.grad(value, weights, materialize_grads=True), strict=True
        ):
            sum_ += size(gradient)
    return [sum_ / len(inputs) for sum_ in total]


@pytest.mark.parametrize("name", list(WAYS))
@pytest.mark.parametrize(("objective", "size"), [(loss_of_each, torch.square), (squared_length, torch.abs)])
def test_every_network_gives_what_a_loop_over_records_gives(
    name: str, objective: Objective, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice, way = WAYS[name]
    network, inputs, rows = make(choice)
    taken = spy(monkeypatch, "_by_records")
    monkeypatch.setattr(record_gradients, "PASS_RECORDS", 4)  # three passes, the last of one record
    network.train()
    found = mean_over_records(network, inputs, rows, objective=objective, size=size)
    assert bool(taken) == (way == "records")
    assert network.training
    expected = by_a_loop(network, inputs, rows, objective, size)
    for value, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-4)


def test_linear_layers_and_torch_func_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs, rows = make({"name": "mlp"})
    by_layers = mean_over_records(network, inputs, rows, objective=loss_of_each, size=torch.square)
    monkeypatch.setattr(record_gradients, "_linear_layers", lambda *_: {})
    by_records = mean_over_records(network, inputs, rows, objective=loss_of_each, size=torch.square)
    assert list(by_layers) == list(by_records)
    for name, value in by_layers.items():
        torch.testing.assert_close(value, by_records[name])


def test_what_torch_func_cannot_follow_is_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs, rows = make({"name": "own", "of": "branching"})
    by_layers = mean_over_records(network, inputs, rows, objective=loss_of_each, size=torch.square)
    monkeypatch.setattr(record_gradients, "_linear_layers", lambda *_: {})
    taken = spy(monkeypatch, "_one_by_one")
    found = mean_over_records(network, inputs, rows, objective=loss_of_each, size=torch.square)
    assert taken
    for name, value in found.items():
        torch.testing.assert_close(value, by_layers[name])


def spy(monkeypatch: pytest.MonkeyPatch, function: str) -> list[str]:
    """The calls of a function of the module."""
    calls: list[str] = []
    real: Callable[..., dict[str, Tensor]] = getattr(record_gradients, function)

    def noted(*arguments: object) -> dict[str, Tensor]:
        calls.append(function)
        return real(*arguments)

    monkeypatch.setattr(record_gradients, function, noted)
    return calls
