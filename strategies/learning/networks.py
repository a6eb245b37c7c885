"""The network that learns: scaling of raw features, body, growing head; and the network that is served.

A network maps raw features (n, *shape), float32 or uint8, to logits (n, rows); a row is the
index of a class in order of first appearance. `ServedNetwork` turns rows into the declared classes.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from strategies.base import ExperienceUnfitError, StrategyConfig, StrategyError
from strategies.learning.bodies import make_body
from strategies.network_choice import BackboneChoice

CHUNK_VALUES = 2**22
"""Feature values that are converted to float64 at a time while the scaling is learnt."""
PASS_VALUES = 2**24
"""Values that one layer makes of all records that pass at a time without being trained on, at most."""


class FeatureScaling(nn.Module):
    """Centres and scales raw features by what the first experience held.

    Tabular records (one dimension) are scaled per feature, as columns have units of their own; images and
    the like (more dimensions) by one mean and one deviation, because a pixel that hardly varied yet must not
    be blown up when it starts to. A constant feature is only centred.

    Beyond `KNEE` deviations the scale turns logarithmic (continuous, with a continuous slope): a feature
    that was almost constant in the first experience, or one absurd value, cannot blow the network up, and
    no information is cut off.
    """

    KNEE = 5.0
    FINEST = 1e-30
    """A deviation at or below counts as none, and 1 / FINEST deviations as no end: float32 would overflow."""

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        size = tuple(shape) if len(shape) == 1 else (1,) * len(shape)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def fit(self, inputs: Tensor) -> None:
        """Learn mean and scale from `inputs` (n, *shape), n >= 1, in float64 and in bounded memory."""
        over = 0 if self.mean.dim() == 1 else tuple(range(inputs.dim()))
        chunks = torch.split(inputs, max(1, CHUNK_VALUES // max(1, inputs[0].numel())))
        count = inputs.numel() // self.mean.numel()
        mean = sum((chunk.double().sum(over) for chunk in chunks), start=torch.zeros(())) / count
        squares = sum(((c.double() - mean).square().sum(over) for c in chunks), start=torch.zeros(()))
        deviation = (squares / count).sqrt()
        # A column of equal values may show a deviation of rounding size instead of zero.
        constant = deviation <= 1e-10 * mean.abs() + self.FINEST
        scale = torch.where(constant, 1.0, 1.0 / deviation.clamp(min=self.FINEST))
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.scale.copy_(scale.reshape(self.scale.shape))

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = ((inputs.to(torch.float32) - self.mean) * self.scale).contiguous()
        plain = scaled.device.type == "cpu" and not torch.is_grad_enabled()
        if plain and not torch.compiler.is_compiling():
            # Few lie beyond. Only here: torch.func and export follow no choice by values, a GPU would wait.
            beyond = (scaled.abs() > self.KNEE).flatten().nonzero().squeeze(1)
            flat = scaled.view(-1)
            flat[beyond] = self._bent(flat[beyond])
            return scaled
        return self._bent(scaled)

    def _bent(self, scaled: Tensor) -> Tensor:
        core = scaled.clamp(-self.KNEE, self.KNEE)
        beyond = scaled - core
        return core + beyond.sign() * beyond.abs().clamp(max=1 / self.FINEST).log1p()


class GrowingHead(nn.Module):
    """A linear layer whose rows are added as classes appear; it starts with none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(0, width))
        self.bias = nn.Parameter(torch.empty(0))

    @property
    def rows(self) -> int:
        """Number of classes that the head has a row for."""
        return self.weight.shape[0]

    def grow(self, rows: int, generator: torch.Generator) -> None:
        """Add rows up to `rows`, drawn as torch draws a linear layer; rows that exist keep their values.

        The parameters are replaced: an optimizer must be bound to them again. `generator` is on the CPU.
        """
        new = rows - self.rows
        if new <= 0:
            return
        bound = 1.0 / math.sqrt(self.width)
        weight = torch.empty(new, self.width).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(new).uniform_(-bound, bound, generator=generator)
        device = self.weight.device
        trained = self.weight.requires_grad
        self.weight = nn.Parameter(torch.cat((self.weight.detach(), weight.to(device))), trained)
        self.bias = nn.Parameter(torch.cat((self.bias.detach(), bias.to(device))), trained)

    @torch.no_grad()
    def forget(self, generator: torch.Generator) -> None:
        """Draw new values for all rows, in place."""
        _draw(self.weight, self.bias, self.width, generator)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features, self.weight, self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A saved head may have more rows than this one; torch would refuse the shape.
        saved = state_dict.get(prefix + "weight")
        if saved is not None and saved.shape[0] != self.rows:
            trained = self.weight.requires_grad
            self.weight = nn.Parameter(self.weight.new_empty(saved.shape[0], self.width), trained)
            self.bias = nn.Parameter(self.bias.new_empty(saved.shape[0]), trained)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _draw(weight: Tensor, bias: Tensor, width: int, generator: torch.Generator) -> None:
    """Initialise as torch does a linear layer of that many inputs."""
    bound = 1.0 / math.sqrt(width)
    for values in (weight, bias):
        values.copy_(torch.empty(values.shape).uniform_(-bound, bound, generator=generator))


class Readout(nn.Module):
    """Answers that are worked out and not trained: linear in features, a row a class; it starts with none.

    Stands for the head where a network is asked, and leaves training to the head.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, *, normalize: bool) -> None:
        """`normalize`: features are brought to length 1 first."""
        super().__init__()
        self.width = width
        self.normalize = normalize
        self.register_buffer("weight", torch.empty(0, width))
        self.register_buffer("bias", torch.empty(0))

    def become(self, weight: Tensor, bias: Tensor) -> None:
        """Answer by these from now on: (rows, width) and (rows,), of any float type and on any device."""
        self.weight, self.bias = weight.to(self.weight), bias.to(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        if self.normalize:
            features = nn.functional.normalize(features, dim=1)
        return nn.functional.linear(features, self.weight, self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # As with the head, a saved one may have more rows than this one.
        saved = state_dict.get(prefix + "weight")
        if saved is not None and saved.shape[0] != self.weight.shape[0]:
            self.weight = self.weight.new_empty(saved.shape[0], self.width)
            self.bias = self.bias.new_empty(saved.shape[0])
        super()._load_from_state_dict(state_dict, prefix, *args)


class ImageScaling(nn.Module):
    """Images as a stream of that type stores them (uint8: 0 to 255; float32: 0 to 1) -> 0 to 1.

    Nothing is learnt from the stream: a pretrained backbone wants the scaling that it was trained with. The
    type is the stream's and not that of what is asked: a served network is given uint8 records as float32.
    """

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.largest = 255.0 if dtype == "uint8" else 1.0

    def fit(self, inputs: Tensor) -> None:
        """Refuse images of another range.

        Raises:
            ExperienceUnfitError: a value is below 0 or above the largest.
        """
        low, high = float(inputs.min()), float(inputs.max())
        if low < 0 or high > self.largest:
            raise ExperienceUnfitError(
                f"network backbone takes uint8 images, or float32 ones in 0 to 1; these records hold {low:g} "
                f"to {high:g}. Send them so, and let the schema's minimum and maximum refuse what is not"
            )

    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32) / self.largest


class Network(nn.Module):
    """Scaling, body, growing head: raw features (n, *shape) -> logits (n, rows).

    Its two stages can be used alone: `prepare` has no weights that training moves, so it can
    be done once for all records of an experience; `answer` is what is trained. A strategy may give it a
    `readout`, which then answers instead of the head, and a `projection` of features that is trained with it.
    """

    readout: Readout | None
    projection: nn.Module | None

    def __init__(self, config: StrategyConfig, shape: Sequence[int], dtype: str = "float32") -> None:
        """A freshly drawn network for records of that shape and type, by torch's global random state.

        Raises:
            StrategyError: the network that `config` names does not take such records.
        """
        super().__init__()
        self._config = config
        self._shape = tuple(shape)
        self._dtype = dtype
        pretrained = isinstance(config.network, BackboneChoice)
        self.frozen = isinstance(config.network, BackboneChoice) and config.network.frozen
        self.scaling = ImageScaling(dtype) if pretrained else FeatureScaling(shape)
        self.body = make_body(config, shape, dtype)
        if self.frozen:
            self.body.requires_grad_(False)
        width, widest = _measure(self.body, shape)
        self.head = GrowingHead(width)
        self.register_module("readout", None)
        self.register_module("projection", None)
        self.records_at_once = max(1, PASS_VALUES // widest)
        """How many records may pass at a time where nothing is learnt from them: memory stays bounded."""
        trained = () if self.frozen else self.body.modules()
        self._batch_norms = tuple(module for module in trained if isinstance(module, _BatchNorm))
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    @torch.no_grad()
    def forget(self, generator: torch.Generator) -> None:
        """Draw new values for all weights, in place; the scaling of features, and a frozen body, stay.

        The body is drawn by torch's global random state, the head by `generator` on the CPU.
        """
        if not self.frozen:
            self.body.load_state_dict(make_body(self._config, self._shape, self._dtype).state_dict())
        self.head.forget(generator)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Raw features (n, *shape) -> what `answer` takes, float32; the same for a record in any batch."""
        scaled: Tensor = self.scaling(inputs)
        return self.body(scaled) if self.frozen else scaled

    def features(self, prepared: Tensor) -> Tensor:
        """(n, width): what the head decides by."""
        if self.frozen:
            return prepared
        if self.training and self._batch_norms and len(prepared) == 1:
            return self._features_of_one(prepared)
        features: Tensor = self.body(prepared)
        return features

    def _features_of_one(self, prepared: Tensor) -> Tensor:
        """A single record has no statistics of a batch: it is normalised by those so far, and moves none."""
        modes = [norm.training for norm in self._batch_norms]
        for norm in self._batch_norms:
            norm.eval()
        try:
            features: Tensor = self.body(prepared)
        finally:
            for norm, mode in zip(self._batch_norms, modes, strict=True):
                norm.train(mode)
        return features

    def answer(self, prepared: Tensor) -> Tensor:
        """(n, rows) logits."""
        logits: Tensor = self.head(self.features(prepared))
        return logits

    def forward(self, inputs: Tensor) -> Tensor:
        prepared = self.prepare(inputs)
        if self.readout is None:
            return self.answer(prepared)
        answers: Tensor = self.readout(self.features(prepared))
        return answers


@torch.no_grad()
def _measure(body: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """How many features a body makes of a record, and how many values the widest of its layers does.

    Raises:
        StrategyError: it does not take such records, or makes no vector of each.
    """
    widest = math.prod(shape)

    def note(_module: nn.Module, _given: Any, output: Any) -> None:
        nonlocal widest
        if isinstance(output, Tensor):
            widest = max(widest, output.numel() // 2)

    body.eval()
    hooks = [module.register_forward_hook(note) for module in body.modules()]
    try:
        features = body(torch.zeros(2, *shape))
    except StrategyError:
        raise
    except Exception as error:  # torchvision's models refuse sizes in many ways
        kind = type(error).__name__
        raise StrategyError(f"the network does not take records of shape {list(shape)} ({kind})") from error
    finally:
        for hook in hooks:
            hook.remove()
    if features.dim() != 2 or len(features) != 2 or not features.shape[1]:
        raise StrategyError(
            f"the network makes {list(features.shape)} of 2 records; its body must give (n, width)"
        )
    if not features.is_floating_point():
        raise StrategyError(f"the network makes {features.dtype} features; they must be floating-point")
    return int(features.shape[1]), widest


class ServedNetwork(nn.Module):
    """Raw features (n, *shape), float32 or uint8 -> probabilities (n, n_classes), float32.

    Column j answers for class id j; a class never learnt has exactly 0. Free of side effects, and exportable
    by `torch.export` with a dynamic number of records.
    """

    columns: Tensor

    def __init__(self, network: nn.Module, *, classes_by_row: Sequence[int], n_classes: int) -> None:
        super().__init__()
        self.network = network
        # Classes never learnt point one past the last row, at a column of zeros.
        columns = torch.full((n_classes,), len(classes_by_row))
        columns[list(classes_by_row)] = torch.arange(len(classes_by_row))
        self.register_buffer("columns", columns)

    def forward(self, inputs: Tensor) -> Tensor:
        probabilities = torch.softmax(self.network(inputs), dim=1)
        return nn.functional.pad(probabilities, (0, 1)).index_select(1, self.columns)

    def detached(self) -> "ServedNetwork":
        """A copy on the CPU, in evaluation mode, without gradients, that shares nothing with this one."""
        return copy.deepcopy(self).cpu().eval().requires_grad_(False)
