"""Gradients of single records, summed over many: what importances are made of."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from strategies.networks import GrowingHead, Network

Objective = Callable[[Tensor, Tensor], Tensor]
"""(n, rows) logits and (n,) dense labels -> (n,) a value of each record."""
Size = Callable[[Tensor], Tensor]
"""What of a gradient counts, value by value; the size of a product must be the product of the sizes."""

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
    layers = _linear_layers(network)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    per_record = 1 if layers else sum(weight.numel() for weight in weights.values())
    step = max(1, min(PASS_RECORDS, PASS_VALUES // max(1, per_record)))
    with at_rest(network):
        for given, wanted in zip(torch.split(inputs, step), torch.split(rows, step), strict=True):
            given, wanted = given.to(device), wanted.to(device)
            found = _by_layers(network, layers, given, wanted, objective, size)
            if found is None:
                found = _by_records(network, given, wanted, objective, size)
            for name, value in found.items():
                total[name] += value
    return {name: value / len(inputs) for name, value in total.items()}


def _linear_layers(network: Network) -> dict[str, nn.Module]:
    """The linear layers by their names, if all that is trained is theirs; else none."""
    layers: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if not any(p.requires_grad for p in module.parameters(recurse=False)):
            continue
        if not isinstance(module, nn.Linear | GrowingHead):
            return {}
        layers[name] = module
    return layers


def _by_layers(
    network: Network,
    layers: dict[str, nn.Module],
    inputs: Tensor,
    rows: Tensor,
    objective: Objective,
    size: Size,
) -> dict[str, Tensor] | None:
    """None where a gradient is no outer product: a layer is used twice, or on more than a vector a record."""
    seen: list[Tensor] = []
    made: list[Tensor] = []

    def note(_module: nn.Module, given: Sequence[Any], output: Tensor) -> None:
        seen.append(given[0].detach())
        made.append(output)

    hooks = [layer.register_forward_hook(note) for layer in layers.values()]
    try:
        logits = network.answer(network.prepare(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    if not layers or len(seen) != len(layers) or any(given.dim() != 2 for given in seen):
        return None
    pulls = torch.autograd.grad(objective(logits, rows).sum(), made)
    found: dict[str, Tensor] = {}
    for name, given, pull in zip(layers, seen, pulls, strict=True):
        found[f"{name}.weight"] = size(pull).T @ size(given)
        found[f"{name}.bias"] = size(pull).sum(0)
    return found


def _by_records(
    network: Network, inputs: Tensor, rows: Tensor, objective: Objective, size: Size
) -> dict[str, Tensor]:
    weights = {name: weight.detach() for name, weight in trained(network).items()}
    rest: dict[str, Tensor] = dict(network.named_buffers())
    rest |= {name: tensor for name, tensor in network.named_parameters() if name not in weights}

    def value(given: dict[str, Tensor], record: Tensor, row: Tensor) -> Tensor:
        logits = functional_call(network, {**given, **rest}, (record.unsqueeze(0),))
        return objective(logits, row.unsqueeze(0)).squeeze(0)

    gradients = vmap(grad(value), in_dims=(None, 0, 0))(weights, inputs, rows)
    return {name: size(gradient).sum(0) for name, gradient in gradients.items()}
