"""Scaling of raw features, the growing head, and the served network."""

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.learning import networks
from strategies.learning.networks import FeatureScaling, GrowingHead, Network, Readout, ServedNetwork
from strategies.naive import NaiveConfig


def perceptron(shape: tuple[int, ...], hidden: tuple[int, ...]) -> Network:
    return Network(NaiveConfig(hidden=hidden), shape)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(inputs: Tensor) -> FeatureScaling:
    scaling = FeatureScaling(inputs.shape[1:])
    scaling.fit(inputs)
    return scaling


def test_tabular_columns_of_any_unit_come_out_alike() -> None:
    units = torch.tensor([1e-6, 1.0, 1e4, 1e9])
    inputs = torch.randn(2000, 4, generator=generator()) * units + 3 * units
    scaled = fitted(inputs)(inputs)
    assert torch.allclose(scaled.mean(0), torch.zeros(4), atol=0.02)
    assert torch.allclose(scaled.std(0), torch.ones(4), atol=0.02)


def test_a_timestamp_keeps_its_resolution() -> None:
    inputs = (1.7e9 + 1000 * torch.randn(2000, 1, generator=generator(), dtype=torch.float64)).float()
    assert fitted(inputs)(inputs).std() == pytest.approx(1, abs=0.1)


def test_images_are_scaled_by_one_mean_and_deviation() -> None:
    inputs = torch.randint(256, (500, 3, 6, 5), generator=generator(), dtype=torch.uint8)
    inputs[:, 0, 0, 0] = 7  # a pixel that never varied is not blown up when it does
    scaling = fitted(inputs)
    assert scaling.mean.shape == (1, 1, 1)
    varied = inputs.clone()
    varied[:, 0, 0, 0] = 255
    assert scaling(varied).abs().max() < 2


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_a_constant_column_is_safe(value: float) -> None:
    inputs = torch.full((1197, 2), value)
    scaling = fitted(inputs)
    assert torch.allclose(scaling(inputs), torch.zeros(1), atol=1e-2)
    assert scaling(torch.full((1, 2), 3e38)).isfinite().all()


def test_a_value_far_outside_grows_only_as_its_logarithm() -> None:
    scaling = fitted(torch.randn(1000, 1, generator=generator()))
    steps = torch.linspace(-50, 50, 2001).unsqueeze(1)
    scaled = scaling(steps).squeeze()
    assert (scaled.diff() > 0).all()  # nothing is cut off
    assert scaled.diff().max() < 0.06  # and there is no jump at the knee
    assert scaling(torch.tensor([[1e20], [3e38], [-3e38]])).abs().max() < 100


def test_the_scaling_is_learnt_in_chunks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(1000, 3, generator=generator())
    whole = fitted(inputs)
    monkeypatch.setattr(networks, "CHUNK_VALUES", 10)
    chunked = fitted(inputs)
    assert torch.allclose(chunked.mean, whole.mean)
    assert torch.allclose(chunked.scale, whole.scale)


def test_a_head_keeps_its_rows_when_it_grows() -> None:
    head = GrowingHead(6)
    assert head(torch.zeros(2, 6)).shape == (2, 0)
    head.grow(2, generator())
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    head.grow(5, generator())
    assert head.rows == 5
    assert torch.equal(head.weight[:2], weight)
    assert torch.equal(head.bias[:2], bias)
    head.grow(3, generator())
    assert head.rows == 5


def test_a_saved_head_loads_into_one_with_fewer_rows() -> None:
    grown, fresh = perceptron((2, 3), (8,)), perceptron((2, 3), (8,))
    grown.head.grow(4, generator())
    fresh.load_state_dict(grown.state_dict())
    inputs = torch.randn(5, 2, 3, generator=generator())
    assert torch.equal(fresh(inputs), grown(inputs))


def test_a_head_that_is_not_trained_stays_so_when_it_grows() -> None:
    network = perceptron((4,), (8,)).requires_grad_(False)
    network.head.grow(3, generator())
    grown = network.state_dict()
    fresh = perceptron((4,), (8,)).requires_grad_(False)
    fresh.load_state_dict(grown)
    for some in (network, fresh):
        assert not any(parameter.requires_grad for parameter in some.parameters())


def test_a_readout_answers_where_the_head_is_trained() -> None:
    network = perceptron((4,), (8,))
    network.head.grow(3, generator())
    network.readout = Readout(8, normalize=True)
    inputs = torch.randn(5, 4, generator=generator())
    assert network(inputs).shape == (5, 0)
    weight = torch.randn(3, 8, generator=generator(), dtype=torch.float64)
    network.readout.become(weight, torch.arange(3))
    features = network.features(network.prepare(inputs))
    expected = features / features.norm(dim=1, keepdim=True) @ weight.float().T + torch.arange(3)
    assert torch.allclose(network(inputs), expected, atol=1e-5)
    assert torch.equal(network.answer(network.prepare(inputs)), network.head(features))
    assert "readout.weight" not in dict(network.named_parameters())


def test_a_saved_readout_loads_into_one_with_other_rows() -> None:
    saved = perceptron((4,), (8,))
    saved.readout = Readout(8, normalize=False)
    saved.readout.become(torch.randn(3, 8, generator=generator()), torch.ones(3))
    fresh = perceptron((4,), (8,))
    fresh.readout = Readout(8, normalize=False)
    fresh.load_state_dict(saved.state_dict())
    inputs = torch.randn(5, 4, generator=generator())
    assert torch.equal(fresh(inputs), saved(inputs))


@pytest.mark.parametrize(("shape", "hidden"), [((7,), ()), ((4, 4), (16,)), ((3, 5, 2), (8, 8, 8))])
def test_any_shape_and_depth(shape: tuple[int, ...], hidden: tuple[int, ...]) -> None:
    network = perceptron(shape, hidden)
    network.head.grow(3, generator())
    assert network(torch.zeros(2, *shape)).shape == (2, 3)


def test_the_served_network_puts_each_row_at_its_class() -> None:
    network = perceptron((4,), (8,))
    network.head.grow(2, generator())
    served = ServedNetwork(network, classes_by_row=[3, 1], n_classes=5).detached()
    inputs = torch.randn(6, 4, generator=generator())
    answers = served(inputs)
    expected = torch.softmax(network(inputs), 1)
    assert torch.equal(answers[:, 3], expected[:, 0])
    assert torch.equal(answers[:, 1], expected[:, 1])
    assert np.array_equal(answers[:, [0, 2, 4]].numpy(), np.zeros((6, 3)))
    assert not any(parameter.requires_grad for parameter in served.parameters())


def test_the_served_network_takes_uint8() -> None:
    network = perceptron((4,), (8,))
    network.head.grow(2, generator())
    served = ServedNetwork(network, classes_by_row=[0, 1], n_classes=2).detached()
    inputs = torch.randint(256, (3, 4), generator=generator(), dtype=torch.uint8)
    assert torch.equal(served(inputs), served(inputs.float()))
