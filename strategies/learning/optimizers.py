"""The optimizers of a config, and their state by parameter name."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from strategies.base import StateError, StrategyConfig


def make_optimizer(config: StrategyConfig, network: nn.Module) -> torch.optim.Optimizer:
    """A fresh optimizer over all parameters of `network`."""
    rate, decay, weights = config.learning_rate, config.weight_decay, network.parameters()
    # Fused: one pass over each weight, on the CPU as on a GPU.
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rate, momentum=config.momentum, weight_decay=decay, fused=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(weights, lr=rate, weight_decay=decay, fused=True)


def parameter_names(optimizer: torch.optim.Optimizer, network: nn.Module) -> list[list[str]]:
    """The names of the parameters of each group, in the optimizer's order.

    Raises:
        StateError: the optimizer holds a parameter that is not the network's.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    try:
        return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    except KeyError:
        raise StateError(
            "the optimizer holds a parameter that is not the network's; it cannot be saved"
        ) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Moments and counters, as `<parameter>/<key>`.

    Raises:
        StateError: the optimizer keeps something that is not a tensor.
    """
    found: dict[str, Tensor] = {}
    for group, names in zip(optimizer.param_groups, parameter_names(optimizer, network), strict=True):
        for parameter, name in zip(group["params"], names, strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, Tensor):
                    raise StateError(
                        f"the optimizer keeps {key!r} of {name!r} as no tensor; it cannot be saved"
                    )
                found[f"{name}/{key}"] = value
    return found


def optimizer_facts(optimizer: torch.optim.Optimizer, network: nn.Module) -> list[dict[str, JsonValue]]:
    """The settings of each group, with its parameters replaced by their names."""
    names = parameter_names(optimizer, network)
    return [
        {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}
        | {"params": list(group_names)}
        for group, group_names in zip(optimizer.param_groups, names, strict=True)
    ]


def restore_optimizer(
    config: StrategyConfig,
    network: nn.Module,
    *,
    tensors: Mapping[str, Tensor],
    groups: list[dict[str, Any]],
) -> torch.optim.Optimizer:
    """The optimizer whose tensors and facts these are, bound to `network`."""
    optimizer = make_optimizer(config, network)
    names = [name for group in groups for name in group["params"]]
    indices = {name: index for index, name in enumerate(names)}
    kept: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        kept.setdefault(indices[parameter], {})[key] = value
    parameters = dict(network.named_parameters())
    optimizer.param_groups.clear()
    numbered = []
    for group in groups:
        optimizer.add_param_group({"params": [parameters[name] for name in group["params"]]})
        settings = {key: tuple(v) if isinstance(v, list) else v for key, v in group.items()}
        numbered.append({**settings, "params": [indices[name] for name in group["params"]]})
    optimizer.load_state_dict({"state": kept, "param_groups": numbered})
    for weight, moments in optimizer.state.items():
        for key, value in moments.items():
            # Fused steps walk memory: a moment must lie in it as its weight does (channels last).
            if value.shape == weight.shape and value.stride() != weight.stride():
                moments[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value).detach()
    return optimizer
