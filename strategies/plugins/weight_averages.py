"""Plugins that end an experience with averaged weights instead of the last ones."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from strategies.learning.record_gradients import trained
from strategies.learning.training_plugins import PassingPlugin


def moved(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that an experience changes: trained weights, and batch-normalisation statistics."""
    statistics = {
        name: tensor
        for module_name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, tensor in _named(module_name, module.named_buffers(recurse=False))
        if tensor.is_floating_point()
    }
    return {name: weight.detach() for name, weight in trained(network).items()} | statistics


def _named(module: str, tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    return [(f"{module}.{name}", tensor) for name, tensor in tensors]


class ChampionAverage(PassingPlugin):
    """The mean of the weights before an experience and after it. Rows new to the head stay as learnt."""

    def __init__(self, *, share: float) -> None:
        """`share`: weight of the weights after the experience in the mean."""
        super().__init__()
        self.share = share
        self._before: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        self._before = {}
        if strategy.clock.train_exp_counter:
            self._before = {name: tensor.clone() for name, tensor in moved(strategy.model).items()}
            # Rows that the head has just gained were never anybody's.
            for name in ("head.weight", "head.bias"):
                self._before[name] = self._before[name][: strategy.rows_before]

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        now = moved(strategy.model)
        for name, before in self._before.items():
            old = now[name][: len(before)] if name.startswith("head.") else now[name]
            old.lerp_(before, 1 - self.share)
        self._before = {}


class MovingAverage(PassingPlugin):
    """The exponential moving average of the weights over the steps of an experience."""

    def __init__(self, *, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._now: list[Tensor] = []
        self._mean: list[Tensor] = []

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        self._now = list(moved(strategy.model).values())
        self._mean = [tensor.clone() for tensor in self._now]

    @torch.no_grad()
    def after_update(self, strategy: Any, **_: Any) -> None:
        torch._foreach_lerp_(self._mean, self._now, 1 - self.decay)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        torch._foreach_copy_(self._now, self._mean)
        self._now, self._mean = [], []
