"""The bodies of the built-in networks: scaled features (n, *shape) -> features (n, width)."""

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import assert_never

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from strategies.base import StrategyConfig, StrategyError
from strategies.network_choice import (
    BackboneChoice,
    CnnChoice,
    MlpChoice,
    OwnChoice,
    Resnet18Choice,
    own,
)

WEIGHTS_FOLDER = "HOLDFAST_WEIGHTS"
"""Environment variable: the folder of weight files that pipelines may name."""
GROUPS = 8
"""Of a group normalisation, at most."""


def make_body(config: StrategyConfig, shape: Sequence[int]) -> nn.Module:
    """A freshly drawn body, by torch's global random state.

    Raises:
        StrategyError: the network does not take such records, or cannot be made here.
    """
    choice = config.network
    problem = choice.misfit(shape, "")
    if problem:
        raise StrategyError(problem)
    match choice:
        case MlpChoice():
            return perceptron(shape, config.hidden, dropout=choice.dropout, layer_norm=choice.norm == "layer")
        case CnnChoice():
            return cnn(shape[0], choice.channels, norm=choice.norm)
        case Resnet18Choice():
            return resnet18(shape[0])
        case BackboneChoice():
            return backbone(choice)
        case OwnChoice():
            return _own_body(choice.of, shape)
        case _ as never:
            assert_never(never)


def perceptron(
    shape: Sequence[int], hidden: Sequence[int], *, dropout: float = 0.0, layer_norm: bool = False
) -> nn.Sequential:
    """Hidden layers with ReLU; any shape is flattened."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inside, outside in pairwise((prod(shape), *hidden)):
        layers.append(nn.Linear(inside, outside))
        if layer_norm:
            layers.append(nn.LayerNorm(outside))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def cnn(channels: int, widths: Sequence[int], *, norm: str) -> nn.Sequential:
    """Blocks of two 3x3 convolutions; each block but the first sees half the height and width."""
    layers: list[nn.Module] = []
    for place, (inside, outside) in enumerate(pairwise((channels, *widths))):
        if place:
            layers.append(nn.MaxPool2d(2))
        for wide in (inside, outside):
            layers.append(nn.Conv2d(wide, outside, 3, padding=1, bias=norm == "none"))
            if norm == "group":
                layers.append(nn.GroupNorm(_groups(outside), outside))
            elif norm == "batch":
                layers.append(nn.BatchNorm2d(outside))
            layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _groups(channels: int) -> int:
    return next(groups for groups in range(min(GROUPS, channels), 0, -1) if channels % groups == 0)


def resnet18(channels: int) -> nn.Module:
    """torchvision's ResNet-18 with the stem of small images, and no last layer."""
    from torchvision.models import resnet18 as make

    network: nn.Module = make(weights=None)
    network.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


class Backbone(nn.Module):
    """Images in 0 to 255 or 0 to 1, as they were stored -> features of a torchvision model."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, choice: BackboneChoice) -> None:
        super().__init__()
        self.model = model
        self.size = choice.size
        self.register_buffer("mean", torch.tensor(choice.mean).reshape(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(choice.deviation).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 1 or 3, height, width) in 0 to 1 -> (n, width)."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.size is not None:
            images = nn.functional.interpolate(
                images, (self.size, self.size), mode="bilinear", antialias=images.device.type == "cpu"
            )
        features: Tensor = self.model((images - self.mean) / self.deviation)
        return features.flatten(1)


def backbone(choice: BackboneChoice) -> Backbone:
    """A torchvision model without its last layer.

    Raises:
        StrategyError: torchvision has no such model, or the weights are missing or another model's.
    """
    from torchvision import models

    if choice.constructor not in models.list_models(module=models):
        raise StrategyError(
            f"torchvision has no classification model {choice.constructor!r}; its documentation lists them"
        )
    model: nn.Module = models.get_model(choice.constructor, weights=None)
    if choice.weights is not None:
        _load_weights(model, choice.weights)
    _drop_last_layer(model)
    return Backbone(model, choice)


def _load_weights(model: nn.Module, name: str) -> None:
    folder = os.environ.get(WEIGHTS_FOLDER)
    if not folder:
        raise StrategyError(
            f"the weights {name!r} are to come from a folder that nobody named; set {WEIGHTS_FOLDER}"
        )
    path = Path(folder) / name
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(found)
    except FileNotFoundError:
        raise StrategyError(
            f"there are no weights {name!r} in the folder that {WEIGHTS_FOLDER} names"
        ) from None
    except Exception as error:  # a weight file may be broken in any way
        raise StrategyError(f"the weights {name!r} are not those of this model: {error}") from error


def _drop_last_layer(model: nn.Module) -> None:
    """The classifier's last linear layer becomes the identity; what stands before it stays."""
    for name in ("fc", "classifier", "heads", "head"):
        layer = getattr(model, name, None)
        if isinstance(layer, nn.Linear):
            setattr(model, name, nn.Identity())
            return
        if isinstance(layer, nn.Sequential) and isinstance(layer[-1], nn.Linear):
            layer[-1] = nn.Identity()
            return
    raise StrategyError("this torchvision model has no last linear layer to leave out; choose another one")


def _own_body(name: str, shape: Sequence[int]) -> nn.Module:
    module, function = own(name).split(":")
    try:
        make: Callable[[tuple[int, ...]], nn.Module] = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise StrategyError(f"network {name!r} cannot be made: {error}; see HOLDFAST_NETWORKS") from error
    body = make(tuple(shape))
    if not isinstance(body, nn.Module):
        raise StrategyError(f"network {name!r}: {module}:{function} gave a {type(body).__name__}, no module")
    return body
