"""The bodies of the built-in networks: scaled features (n, *shape) -> features (n, width)."""

from collections.abc import Callable, Mapping, Sequence
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
    installed,
)

GROUPS = 8
"""Most groups of a group normalisation."""
GROUP_CHANNELS = 4
"""Fewest channels of a group: a group of a single value would be normalised to zero."""
NAMES_SHOWN = 3
"""Most names of tensors in a message about a weight file."""


def make_body(config: StrategyConfig, shape: Sequence[int], dtype: str) -> nn.Module:
    """A freshly drawn body, by torch's global random state.

    Raises:
        StrategyError: the network does not take such records, or cannot be made here.
    """
    choice = config.network
    problem = choice.problem(shape, dtype) or choice.installation_problem(installed())
    if problem:
        raise StrategyError(problem)
    channels = shape[0] if len(shape) == 3 else 1
    match choice:
        case MlpChoice():
            return perceptron(shape, config.hidden, dropout=choice.dropout, layer_norm=choice.norm == "layer")
        case CnnChoice():
            return _of_images(cnn(channels, choice.channels, norm=choice.norm), shape)
        case Resnet18Choice():
            return _of_images(resnet18(channels), shape)
        case BackboneChoice():
            return _of_images(backbone(choice), shape)
        case OwnChoice():
            return OwnBody(choice.of, shape)
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


def _of_images(body: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Records (height, width) are images of one channel."""
    return nn.Sequential(nn.Unflatten(1, (1, shape[0])), body) if len(shape) == 2 else body


def cnn(channels: int, widths: Sequence[int], *, norm: str) -> nn.Sequential:
    """Blocks of two 3x3 convolutions; each block but the first works on half the height and width."""
    layers: list[nn.Module] = []
    for block, (inside, outside) in enumerate(pairwise((channels, *widths))):
        if block:
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
    most = max(1, min(GROUPS, channels // GROUP_CHANNELS))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


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
            # Antialiased on every device: a network taught on a GPU is served on a CPU.
            images = nn.functional.interpolate(
                images, (self.size, self.size), mode="bilinear", antialias=True
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
    if getattr(model, "aux_logits", False) and not choice.frozen:
        raise StrategyError(
            f"{choice.constructor} answers otherwise while it is trained; freeze it, or choose another one"
        )
    last = _last_layer(model)
    if choice.weights is not None:
        _load_weights(model, choice.weights, may_lack=f"{last}.")
    parent, _, name = last.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    return Backbone(model, choice)


def _last_layer(model: nn.Module) -> str:
    """Where the classifier's last linear layer is; what stands before it in the classifier stays."""
    for name in ("fc", "classifier", "heads", "head"):
        layer = getattr(model, name, None)
        if isinstance(layer, nn.Linear):
            return name
        if isinstance(layer, nn.Sequential) and isinstance(layer[-1], nn.Linear):
            return f"{name}.{list(dict(layer.named_children()))[-1]}"
    raise StrategyError("this torchvision model has no last linear layer to leave out; choose another one")


def _load_weights(model: nn.Module, name: str, *, may_lack: str) -> None:
    """Load the file of that name; what begins with `may_lack` is left out of the network anyway.

    Raises:
        StrategyError: there is no such file, it is broken, or it is not this model's.
    """
    try:
        path = installed().weights_file(name)
    except ValueError as error:
        raise StrategyError(str(error)) from None
    found = _read_weights(path)
    wanted = model.state_dict()
    # Counters of batch normalisation: files of old torch versions lack them, and nothing here reads them.
    needed = {key for key in wanted if not key.startswith(may_lack) and not key.endswith("batches_tracked")}
    for what, keys in (
        ("lack", needed - set(found)),
        ("have and the model does not", set(found) - set(wanted)),
        ("have in another size", {k for k in set(found) & set(wanted) if found[k].shape != wanted[k].shape}),
    ):
        if keys:
            some = ", ".join(sorted(keys)[:NAMES_SHOWN])
            rest = f" and {len(keys) - NAMES_SHOWN} more" if len(keys) > NAMES_SHOWN else ""
            raise StrategyError(
                f"the weights {name!r} are not those of this model: what they {what}: {some}{rest}. Name the "
                "model that they belong to; a classifier of other classes is to be left out of the file"
            )
    model.load_state_dict(found, strict=False)


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a weight file may be broken in any way
        kind = type(error).__name__
        raise StrategyError(f"the weights {path.name!r} cannot be read ({kind})") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise StrategyError(f"the weights {path.name!r} are no state_dict: save `model.state_dict()`")
    return found


class OwnBody(nn.Module):
    """A network of this installation's own; every error it raises becomes one sentence."""

    def __init__(self, name: str, shape: Sequence[int]) -> None:
        """Raises StrategyError: it cannot be imported, or made, or is no network."""
        super().__init__()
        self._name = name
        where = installed().function(name)
        module, function = where.split(":")
        try:
            make: Callable[[tuple[int, ...]], nn.Module] = getattr(import_module(module), function)
            made = make(tuple(shape))
        except Exception as error:  # it is anybody's code
            raise self._failed(f"cannot be made by {where}", error) from error
        if not isinstance(made, nn.Module):
            raise StrategyError(f"network {name!r}: {where} gave a {type(made).__name__}, no torch module")
        self.made = made

    def forward(self, records: Tensor) -> Tensor:
        """(n, *shape) scaled -> (n, width)."""
        try:
            features = self.made(records)
        except Exception as error:  # as above
            raise self._failed("failed", error) from error
        # By shape and not by length, which an export would take for a constant.
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[0] != records.shape[0]:
            found = list(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise StrategyError(
                f"network {self._name!r} makes {found} of {len(records)} records; it must give (n, width)"
            )
        return features

    def _failed(self, what: str, error: Exception) -> StrategyError:
        # Its words may be anybody's: a path, a password. The log has them, with the traceback.
        return StrategyError(f"network {self._name!r} {what}: {type(error).__name__}, see the dispatch log")
