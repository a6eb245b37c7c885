"""Plugins of EWC, SI and MAS: quadratic penalties on changes of important weights."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from strategies.learning.avalanche import SupervisedPlugin
from strategies.learning.networks import Network
from strategies.learning.record_gradients import at_rest, mean_over_records, trained


class HeldWeights(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """A quadratic penalty: strength times the sum of importance times the squared distance from the anchor.

    Each weight has one importance and one anchor, so memory is bounded. The gradient of the penalty is added
    to that of the loss, which needs no graph; the loss that is reported is the one on the labels.
    """

    name = "held"
    known = frozenset({"strength", "importances", "anchors", "_held"})

    def __init__(self, *, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.importances: dict[str, Tensor] = {}
        self.anchors: dict[str, Tensor] = {}
        self._held: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Extend importances and anchors to a head that has grown; new rows have importance 0."""
        weights = trained(strategy.model)
        for name, parameter in weights.items():
            for held in (self.importances, self.anchors):
                old = held.get(name)
                if old is not None and old.dim() and len(old) < len(parameter):
                    held[name] = torch.cat((old, old.new_zeros(len(parameter) - len(old), *old.shape[1:])))
        if self.importances and self.strength:
            names = list(weights)
            self._held = (
                list(weights.values()),
                [self.anchors[name] for name in names],
                [self.importances[name] for name in names],
            )

    @torch.no_grad()
    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Add the gradient of the penalty."""
        weights, anchors, importances = self._held
        if weights:
            ways = torch._foreach_sub(weights, anchors)
            torch._foreach_addcmul_(gradients(weights), ways, importances, 2 * self.strength)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        self._held = ([], [], [])

    def hold(
        self,
        network: nn.Module,
        importances: Mapping[str, Tensor],
        *,
        decay: float = 1.0,
        each: bool = False,
    ) -> None:
        """Add the importances of one experience, with the current weights as anchors.

        With `each`, every experience has its own penalty with its own anchor. These add up to one penalty;
        its importance is the sum, its anchor the mean of all, weighted by importance.
        """
        for name, parameter in trained(network).items():
            before, found, here = self.importances.get(name), importances[name], parameter.detach()
            if before is None:
                self.importances[name], self.anchors[name] = found, here.clone()
                continue
            total = before * decay + found
            self.importances[name] = total
            if each:
                share = torch.where(total > 0, found / total, 1.0)
                self.anchors[name] = torch.lerp(self.anchors[name], here, share)
            else:
                self.anchors[name] = here.clone()

    def tensors(self) -> dict[str, Tensor]:
        found = {f"importance.{name}": tensor for name, tensor in self.importances.items()}
        return found | {f"anchor.{name}": tensor for name, tensor in self.anchors.items()}

    def facts(self) -> dict[str, JsonValue]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        if not tensors:
            return
        for kind, held in (("importance", self.importances), ("anchor", self.anchors)):
            for name, parameter in trained(network).items():
                held[name] = tensors[f"{kind}.{name}"].to(parameter.device)


def gradients(weights: list[Tensor]) -> list[Tensor]:
    """The gradient of each weight; zeros where the loss does not depend on it."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    return [weight.grad for weight in weights if weight.grad is not None]


class FisherInformation(HeldWeights):
    """EWC: the importance of a weight is its Fisher information."""

    name = "ewc"
    known = HeldWeights.known | {"mode", "decay", "fisher", "records"}

    def __init__(
        self,
        *,
        strength: float,
        mode: Literal["online", "separate"],
        decay: float,
        fisher: Literal["records", "batches"],
        records: int,
    ) -> None:
        super().__init__(strength=strength)
        self.mode = mode
        self.decay = decay
        self.fisher = fisher
        self.records = records

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        network, part = strategy.model, strategy.experience.dataset.spread(self.records)
        if self.fisher == "records":
            found = mean_over_records(
                network, part.inputs, part.rows, objective=_loss_of_each, size=torch.square
            )
        else:
            found = fisher_of_batches(network, part.inputs, part.rows, batch_size=strategy.train_mb_size)
        self.hold(network, found, decay=self.decay, each=self.mode == "separate")


def _loss_of_each(logits: Tensor, rows: Tensor) -> Tensor:
    return cross_entropy(logits, rows, reduction="none")


def fisher_of_batches(
    network: Network, inputs: Tensor, rows: Tensor, *, batch_size: int
) -> dict[str, Tensor]:
    """Avalanche's estimate: the mean over batches of the squared gradient of a batch's mean loss."""
    weights = trained(network)
    device = next(iter(weights.values())).device
    batches = list(zip(torch.split(inputs, batch_size), torch.split(rows, batch_size), strict=True))
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with at_rest(network):
        for given, wanted in batches:
            loss = cross_entropy(network(given.to(device)), wanted.to(device))
            pulls = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
            for name, gradient in zip(weights, pulls, strict=True):
                total[name] += gradient.square()
    return {name: value / len(batches) for name, value in total.items()}


class PathIntegral(HeldWeights):
    """SI: the importance of a weight is its reduction of the loss, over the square of its total movement."""

    name = "si"
    known = HeldWeights.known | {"damping", "_weights", "_done", "_start", "_before", "_pulls"}

    def __init__(self, *, strength: float, damping: float) -> None:
        super().__init__(strength=strength)
        self.damping = damping
        self._reset_path()

    def _reset_path(self) -> None:
        self._weights: list[Tensor] = []
        self._done: list[Tensor] = []
        self._start: list[Tensor] = []
        self._before: list[Tensor] = []
        self._pulls: list[Tensor] = []

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        self._weights = list(trained(strategy.model).values())
        self._start = [weight.clone() for weight in self._weights]
        self._before = [weight.clone() for weight in self._weights]
        self._done = [torch.zeros_like(weight) for weight in self._weights]

    @torch.no_grad()
    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Store the gradient of the loss on the labels, before the penalty is added."""
        # Not those that the optimizer gets: what clips a gradient later does so in place.
        self._pulls = gradients(self._weights)
        _, anchors, importances = self._held
        if anchors:
            ways = torch._foreach_sub(self._before, anchors)
            stepped = list(torch._foreach_addcmul(self._pulls, ways, importances, 2 * self.strength))
        else:
            stepped = [gradient.clone() for gradient in self._pulls]
        for weight, gradient in zip(self._weights, stepped, strict=True):
            weight.grad = gradient

    @torch.no_grad()
    def after_update(self, strategy: Any, **_: Any) -> None:
        torch._foreach_sub_(self._before, self._weights)
        torch._foreach_addcmul_(self._done, self._before, self._pulls)
        torch._foreach_copy_(self._before, self._weights)
        self._pulls = []

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        found = {
            name: done.clamp(min=0) / ((parameter - start).square() + self.damping)
            for (name, parameter), done, start in zip(
                trained(strategy.model).items(), self._done, self._start, strict=True
            )
        }
        self._reset_path()
        self.hold(strategy.model, found)


class AnswerSensitivity(HeldWeights):
    """MAS: the importance of a weight is the sensitivity of the outputs to it."""

    name = "mas"
    known = HeldWeights.known | {"decay", "records"}

    def __init__(self, *, strength: float, decay: float, records: int) -> None:
        super().__init__(strength=strength)
        self.decay = decay
        self.records = records

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        network, part = strategy.model, strategy.experience.dataset.spread(self.records)
        found = mean_over_records(network, part.inputs, part.rows, objective=_squared_length, size=torch.abs)
        self.hold(network, found, decay=self.decay)


def _squared_length(logits: Tensor, _rows: Tensor) -> Tensor:
    return logits.square().sum(1)
