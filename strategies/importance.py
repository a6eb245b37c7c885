"""Plugins that hold weights near where they were, the firmer the more they matter."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from strategies.avalanche_parts import SupervisedPlugin

PASS_VALUES = 2**24
"""Gradient values of single records that are in memory at a time, about."""


class HeldWeights(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """A quadratic penalty: strength times the sum of importance times the squared way from the anchor.

    One importance and one anchor a weight, for ever. The gradient of the penalty is added to that of the
    loss, which needs no graph; the loss that is reported is the one on the labels.
    """

    name = "held"
    known = frozenset({"strength", "importances", "anchors"})

    def __init__(self, *, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.importances: dict[str, Tensor] = {}
        self.anchors: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Fit what is held to a head that has grown: new rows matter nothing yet."""
        for name, parameter in strategy.model.named_parameters():
            for held in (self.importances, self.anchors):
                old = held.get(name)
                if old is not None and len(old) < len(parameter):
                    held[name] = torch.cat((old, old.new_zeros(len(parameter) - len(old), *old.shape[1:])))

    @torch.no_grad()
    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Pull every weight towards its anchor."""
        if not self.importances or not self.strength:
            return
        named = [(name, p) for name, p in strategy.model.named_parameters() if p.grad is not None]
        ways = torch._foreach_sub([p for _, p in named], [self.anchors[name] for name, _ in named])
        torch._foreach_mul_(ways, [self.importances[name] for name, _ in named])
        torch._foreach_add_([p.grad for _, p in named], ways, alpha=2 * self.strength)

    def hold(self, network: nn.Module, importances: Mapping[str, Tensor], *, decay: float = 1.0) -> None:
        """Add importances of one experience, and hold the weights where they are now."""
        for name, parameter in network.named_parameters():
            before = self.importances.get(name)
            found = importances[name]
            self.importances[name] = found if before is None else before * decay + found
            self.anchors[name] = parameter.detach().clone()

    def tensors(self) -> dict[str, Tensor]:
        found = {f"importance.{name}": tensor for name, tensor in self.importances.items()}
        return found | {f"anchor.{name}": tensor for name, tensor in self.anchors.items()}

    def facts(self) -> dict[str, JsonValue]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        if not tensors:
            return
        for kind, held in (("importance", self.importances), ("anchor", self.anchors)):
            for name, parameter in network.named_parameters():
                held[name] = tensors[f"{kind}.{name}"].to(parameter.device)


class PathIntegral(HeldWeights):
    """Synaptic intelligence: what each weight did for the loss on its way, over the square of that way."""

    name = "si"
    known = HeldWeights.known | {"damping", "_done", "_start", "_before", "_pull"}

    def __init__(self, *, strength: float, damping: float) -> None:
        super().__init__(strength=strength)
        self.damping = damping
        self._forget_way()

    def _forget_way(self) -> None:
        self._done: list[Tensor] = []
        self._start: list[Tensor] = []
        self._before: list[Tensor] = []
        self._pull: list[Tensor] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        weights = [parameter.detach() for parameter in strategy.model.parameters()]
        self._start = [weight.clone() for weight in weights]
        self._before = [weight.clone() for weight in weights]
        self._done = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Note the gradient of the loss on the labels, before the penalty joins it."""
        parameters = list(strategy.model.parameters())
        self._pull = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        super().after_backward(strategy, **kwargs)

    @torch.no_grad()
    def after_update(self, strategy: Any, **_: Any) -> None:
        weights = [parameter.detach() for parameter in strategy.model.parameters()]
        steps = torch._foreach_sub(self._before, weights)
        torch._foreach_mul_(steps, self._pull)
        torch._foreach_add_(self._done, steps)
        torch._foreach_copy_(self._before, weights)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        named = list(strategy.model.named_parameters())
        found = {
            name: done.clamp(min=0) / ((parameter - start).square() + self.damping)
            for (name, parameter), done, start in zip(named, self._done, self._start, strict=True)
        }
        self._forget_way()
        self.hold(strategy.model, found)


class AnswerSensitivity(HeldWeights):
    """Memory aware synapses: how much each answer moves with each weight."""

    name = "mas"
    known = HeldWeights.known | {"decay", "records"}

    def __init__(self, *, strength: float, decay: float, records: int) -> None:
        super().__init__(strength=strength)
        self.decay = decay
        self.records = records

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        network, part = strategy.model, strategy.experience.dataset.spread(self.records)
        modes = {module: module.training for module in network.modules()}
        network.eval()
        try:
            found = sensitivity(network, part.inputs.to(strategy.device))
        finally:
            for module, mode in modes.items():
                module.training = mode
        self.hold(network, found, decay=self.decay)


def sensitivity(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """For each weight, the mean over records (n, *shape) of the size of the gradient of |logits|^2."""
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def squared_length(given: dict[str, Tensor], record: Tensor) -> Tensor:
        logits = functional_call(network, (given, buffers), (record.unsqueeze(0),))
        length: Tensor = logits.square().sum()
        return length

    of_each = vmap(grad(squared_length), in_dims=(None, 0))
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    step = max(1, PASS_VALUES // max(1, sum(weight.numel() for weight in weights.values())))
    for chunk in torch.split(inputs, step):
        for name, gradients in of_each(weights, chunk).items():
            total[name] += gradients.abs().sum(0)
    return {name: value / len(inputs) for name, value in total.items()}
