"""Protocols of plugins beyond Avalanche's hooks: saving their state, setting the loss, setting the logits."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from pydantic import JsonValue
from torch import Tensor, nn


@runtime_checkable
class StatefulPlugin(Protocol):
    """A plugin whose state can be saved. A strategy's plugin must be one, or saving is refused."""

    name: str
    """Unique among the plugins of a learner; part of the saved names."""
    known: frozenset[str]
    """Every attribute an instance has; one more is state that saving would drop, and is refused."""

    def tensors(self) -> dict[str, Tensor]: ...

    def facts(self) -> dict[str, JsonValue]: ...

    def restore(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module
    ) -> None: ...


@runtime_checkable
class LossPlugin(Protocol):
    """A plugin that sets the loss of a step, instead of the loss on all its labels."""

    def criterion(self, strategy: Any) -> Tensor: ...


@runtime_checkable
class ForwardPlugin(Protocol):
    """A plugin that computes the output for a batch, instead of the head's logits."""

    def forward(self, strategy: Any) -> Tensor: ...
