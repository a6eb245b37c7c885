"""Optimizers: state by parameter name, restored so that the next step is the same."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from strategies.base import StateError
from strategies.learning.networks import Network
from strategies.learning.optimizers import (
    make_optimizer,
    optimizer_facts,
    optimizer_tensors,
    parameter_names,
    restore_optimizer,
)
from strategies.naive import NaiveConfig

KINDS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam": {"optimizer": "adam"},
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
}


def network() -> Network:
    made = Network(NaiveConfig(hidden=(4,)), (3,))
    made.head.grow(2, torch.Generator().manual_seed(0))
    return made


def step(one: Network, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    one(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_restored_optimizer_takes_the_same_next_step(kind: str) -> None:
    config = NaiveConfig.model_validate({"learning_rate": 0.05, **KINDS[kind]})
    first = network()
    optimizer = make_optimizer(config, first)
    step(first, optimizer)
    second = deepcopy(first)
    tensors = {name: value.clone() for name, value in optimizer_tensors(optimizer, first).items()}
    restored = restore_optimizer(config, second, tensors=tensors, groups=optimizer_facts(optimizer, first))
    assert parameter_names(restored, second) == parameter_names(optimizer, first)
    before = [weight.detach().clone() for weight in first.parameters()]
    step(first, optimizer)
    step(second, restored)
    for one, other, old in zip(first.parameters(), second.parameters(), before, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, old)


def test_a_parameter_of_another_network_cannot_be_saved() -> None:
    with pytest.raises(StateError, match="not the network's"):
        optimizer_tensors(make_optimizer(NaiveConfig(), network()), network())
