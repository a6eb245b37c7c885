"""Gradients of single records, summed over many: the basis of importances."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from strategies.base import StrategyError
from strategies.learning.networks import GrowingHead, Network

Objective = Callable[[Tensor, Tensor], Tensor]
"""(n, rows) logits and (n,) dense labels -> (n,) a value of each record."""
Size = Callable[[Tensor], Tensor]
"""Function of a gradient, value by value; the size of a product must be the product of the sizes."""

PASS_VALUES = 2**24
"""Gradient values of single records that are in memory at a time, about."""
PASS_RECORDS = 1024


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in evaluation mode; outside, each module is in its own."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def mean_over_records(
    network: Network, inputs: Tensor, rows: Tensor, *, objective: Objective, size: Size
) -> dict[str, Tensor]:
    """For each weight, the mean over records of the size of its gradient of `objective`.

    In evaluation mode. Exact for every network: where all weights are those of linear layers, from one pass
    over batches, as a record's gradient is an outer product there; elsewhere by torch.func, record by record.

    Args:
        inputs: (n, *shape) raw features, on any device.
        rows: (n,) dense labels.
    """
    weights = trained(network)
    device = next(iter(weights.values())).device
    layers = _linear_layers(network, weights)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    start = 0
    with at_rest(network):
        while start < len(inputs):
            per_record = 1 if layers else sum(weight.numel() for weight in weights.values())
            most = min(PASS_RECORDS, network.records_at_once)
            taken = slice(start, start + max(1, min(most, PASS_VALUES // max(1, per_record))))
            given, wanted = inputs[taken].to(device), rows[taken].to(device)
            if layers:
                found = _by_layers(network, layers, given, wanted, objective, size, check=start == 0)
                if found is None:
                    layers = {}
                    continue
            else:
                found = _by_records(network, given, wanted, objective, size)
            for name, value in found.items():
                total[name] += value
            start += len(given)
    return {name: value / len(inputs) for name, value in total.items()}


def _linear_layers(network: Network, weights: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The linear layers by their names, if all that is trained is theirs; else none."""
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | GrowingHead)
        and any(weight.requires_grad for weight in module.parameters())
    }
    theirs = {f"{name}.{own}" for name, layer in layers.items() for own, _ in layer.named_parameters()}
    return layers if theirs >= set(weights) else {}


def _by_layers(
    network: Network,
    layers: Mapping[str, nn.Module],
    inputs: Tensor,
    rows: Tensor,
    objective: Objective,
    size: Size,
    *,
    check: bool,
) -> dict[str, Tensor] | None:
    """None where a gradient is no outer product: a layer is used twice, or on more than a vector a record.

    With `check`, also where the outer products do not add up to the gradient of the sum: then a weight does
    more than its layer does, or a later layer wrote over what this one made.
    """
    weights = trained(network)
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers.values()}

    def note(layer: nn.Module, given: Sequence[Any], output: Tensor) -> None:
        seen[layer].append((given[0].detach(), output))

    hooks = [layer.register_forward_hook(note) for layer in layers.values()]
    try:
        value = objective(network.answer(network.prepare(inputs)), rows).sum()
    finally:
        for hook in hooks:
            hook.remove()
    used = {name: seen[layer] for name, layer in layers.items() if seen[layer]}
    if any(
        len(uses) > 1 or uses[0][0].dim() != 2 or len(uses[0][0]) != len(inputs) for uses in used.values()
    ):
        return None
    outputs = [uses[0][1] for uses in used.values()]
    whole = list(weights.values()) if check else []
    pulls = torch.autograd.grad(value, [*outputs, *whole], materialize_grads=True)
    sums = dict(zip(weights, pulls[len(outputs) :], strict=False))
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for (name, uses), pull in zip(used.items(), pulls, strict=False):
        given = uses[0][0]
        if f"{name}.weight" in found:
            if check and not _adds_up(sums[f"{name}.weight"], pull, given):
                return None
            found[f"{name}.weight"] = size(pull).T @ size(given)
        if f"{name}.bias" in found:
            found[f"{name}.bias"] = size(pull).sum(0)
    unused = {f"{name}.{own}" for name in set(layers) - set(used) for own in ("weight", "bias")}
    return None if any(sums[name].any() for name in unused & set(sums)) else found


def _adds_up(whole: Tensor, pull: Tensor, given: Tensor) -> bool:
    apart = (whole - pull.T @ given).norm()
    return bool(apart <= 1e-4 * pull.norm() * given.norm() + torch.finfo(whole.dtype).tiny)


def _by_records(
    network: Network, inputs: Tensor, rows: Tensor, objective: Objective, size: Size
) -> dict[str, Tensor]:
    weights = {name: weight.detach() for name, weight in trained(network).items()}
    rest: dict[str, Tensor] = dict(network.named_buffers())
    rest |= {name: tensor for name, tensor in network.named_parameters() if name not in weights}

    def value(given: dict[str, Tensor], record: Tensor, row: Tensor) -> Tensor:
        logits = functional_call(network, {**given, **rest}, (record.unsqueeze(0),))
        return objective(logits, row.unsqueeze(0)).squeeze(0)

    try:
        gradients = vmap(grad(value), in_dims=(None, 0, 0))(weights, inputs, rows)
    except (RuntimeError, StrategyError):
        # What torch.func cannot follow, such as a branch on values, or a layer without a batching rule.
        return _one_by_one(network, inputs, rows, objective, size)
    return {name: size(gradient).sum(0) for name, gradient in gradients.items()}


def _one_by_one(
    network: Network, inputs: Tensor, rows: Tensor, objective: Objective, size: Size
) -> dict[str, Tensor]:
    weights = trained(network)
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for record, row in zip(torch.split(inputs, 1), torch.split(rows, 1), strict=True):
        value = objective(network(record), row).sum()
        gradients = torch.autograd.grad(value, list(weights.values()), materialize_grads=True)
        for name, gradient in zip(weights, gradients, strict=True):
            found[name] += size(gradient)
    return found
