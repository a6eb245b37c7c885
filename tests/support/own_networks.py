"""Networks of an installation's own, good and bad, as HOLDFAST_NETWORKS would name them."""

import os
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Shape = tuple[int, ...]


class Body(nn.Module):
    """Two linear layers, put together by a function."""

    def __init__(self, shape: Shape, act: "Callable[[Body, Tensor], Any]", *, width: int = 6) -> None:
        super().__init__()
        self.second = nn.Linear(width, width)  # in another order than they are used
        self.first = nn.Linear(prod(shape), width)
        self.act = act

    def forward(self, records: Tensor) -> Any:
        return self.act(self, records)


def plain(shape: Shape) -> nn.Module:
    return Body(shape, lambda body, x: body.second(body.first(x.flatten(1)).tanh()).tanh())


def normalised(shape: Shape) -> nn.Module:
    """With all that has a mode, and with weights that nothing uses."""
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(prod(shape), 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)
    )
    layers.register_module("spare", nn.Linear(2, 2))
    layers.forward = lambda x: nn.Sequential(*list(layers)[:-1])(x)  # type: ignore[method-assign]
    return layers


class Waiting(nn.Module):
    """Waits in every training step while the file `hold` is in HOLDFAST_HOME."""

    def forward(self, records: Tensor) -> Tensor:
        if self.training and Path(os.environ.get("HOLDFAST_HOME", "."), "hold").exists():
            time.sleep(0.05)
        return records


def slowed(shape: Shape) -> nn.Module:
    """Learns slowly, at little cost, for as long as a test wants to catch it in the middle."""
    return nn.Sequential(nn.Flatten(), Waiting(), nn.Linear(prod(shape), 128), nn.ReLU())


def used_twice(shape: Shape) -> nn.Module:
    return Body(shape, lambda body, x: body.second(body.second(body.first(x.flatten(1)).tanh()).tanh()))


def on_sequences(shape: Shape) -> nn.Module:
    return Body(shape, lambda body, x: body.second(body.first(x.flatten(1)).view(len(x), 1, 6)).mean(1))


def borrowed(shape: Shape) -> nn.Module:
    """The weights of a layer act outside of it too."""

    def act(body: Body, x: Tensor) -> Tensor:
        hidden: Tensor = body.second(body.first(x.flatten(1)).tanh())
        return linear(hidden, body.second.weight)

    return Body(shape, act)


def only_borrowed(shape: Shape) -> nn.Module:
    """A layer is never called, and its weights act."""
    return Body(shape, lambda body, x: linear(body.first(x.flatten(1)).tanh(), body.second.weight))


def written_over(shape: Shape) -> nn.Module:
    return Body(shape, lambda body, x: body.second(body.first(x.flatten(1)).relu_()).relu_())


def branching(shape: Shape) -> nn.Module:
    """What it does depends on what it sees, which torch.func cannot follow."""

    def act(body: Body, x: Tensor) -> Tensor:
        hidden: Tensor = body.first(x.flatten(1)).tanh()
        again: Tensor = body.second(hidden)
        return again if bool((x.abs() < torch.inf).all()) else hidden

    return Body(shape, act)


def one_number(shape: Shape) -> nn.Module:
    return Body(shape, lambda body, x: x.sum())


def another_count(shape: Shape) -> nn.Module:
    return Body(shape, lambda body, x: body.first(x.flatten(1))[:1])


def pair(shape: Shape) -> nn.Module:
    return Body(shape, lambda body, x: (x, x))


def whole_numbers(shape: Shape) -> nn.Module:
    return Body(shape, lambda body, x: x.flatten(1).long())


def picky(shape: Shape) -> nn.Module:
    def act(body: Body, x: Tensor) -> Tensor:
        raise LookupError("I take no such records")

    return Body(shape, act)


def tiring(shape: Shape) -> nn.Module:
    """Works while it is looked at, and fails when it is trained."""

    def act(body: Body, x: Tensor) -> Tensor:
        if body.training:
            raise LookupError("I am tired")
        hidden: Tensor = body.first(x.flatten(1))
        return hidden

    return Body(shape, act)


def unwilling(shape: Shape) -> nn.Module:
    raise KeyError("no")


def nothing(shape: Shape) -> None:
    return None
