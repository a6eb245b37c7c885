"""What a strategy and a learner are; the errors of the learning side. Imports neither torch nor Avalanche.

StrategyError
├── StrategyUnknownError   no strategy of that name in the catalog
├── ExperienceUnfitError   the experience does not fit what this learner learns
├── LearningDivergedError  the loss became NaN or infinite
└── StateError             a saved state is missing, damaged, or of an unknown version
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from strategies.augment_choice import AugmentChoice
from strategies.network_choice import MlpChoice, NetworkChoice
from streams.base import Experience

if TYPE_CHECKING:
    from torch import nn


SEEDS = 2**31
"""Seeds are from 0 to one less."""


class StrategyError(Exception):
    """Any failure of the learning side. The message says what is wrong and what to do about it."""


class StrategyUnknownError(StrategyError):
    """No strategy of that name in the catalog."""


class ExperienceUnfitError(StrategyError):
    """The experience does not fit what this learner learns."""


class LearningDivergedError(StrategyError):
    """The loss became NaN or infinite."""


class StateError(StrategyError):
    """A saved state is missing, damaged, or of an unknown version."""


@dataclass(frozen=True)
class StreamInfo:
    """What a learner must know of its stream before the first experience."""

    shape: tuple[int, ...]
    """Shape of one record's features."""
    classes: tuple[str, ...]
    """Class names; a label's dense class id is its place here."""
    dtype: Literal["float32", "uint8"] = "float32"


@dataclass(frozen=True)
class Surroundings:
    """What learning depends on besides records, settings and seed."""

    device: str
    """"cpu", or the name of the GPU."""
    threads: int
    """That torch shares one operation out to."""
    machine: str
    """Architecture, and the vector instructions that torch uses."""
    packages: Mapping[str, str]
    """Library -> version; those that are not installed are left out."""


class StrategyConfig(BaseModel):
    """The knobs every strategy has. A strategy adds its own in a subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refused: ClassVar[Mapping[str, str]] = {}
    """Fields that must keep their defaults, and why: they would do nothing, or harm."""

    name: str
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        (128, 128), max_length=64, description="Widths of the hidden layers of the network mlp."
    )
    network: NetworkChoice = Field(
        MlpChoice(), description="What is trained: mlp, cnn, resnet18, backbone or own, with its settings."
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field(
        "adamw", description="What turns gradients into steps: adamw, adam or sgd."
    )
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Size of a step.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of sgd; adamw has its own.")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="Pull of weights towards zero.")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="How the learning rate goes within an experience; cosine and linear end at 0."
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="Share of an experience's steps over which the rate rises from 0."
    )
    clip_gradient: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Norm that a step's gradient is shortened to; unset leaves it."
    )
    epochs: int = Field(10, ge=1, le=10_000, description="Passes over an experience.")
    batch_size: int = Field(64, ge=1, le=65536, description="Records of the new experience a step.")
    early_stop: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Ends an experience after so many epochs without a better answer to records of it that "
        "are put aside, with the best weights; unset learns all epochs.",
    )
    validation_share: float = Field(
        0.1, gt=0, lt=1, description="Share of an experience put aside for early_stop."
    )
    augment: tuple[AugmentChoice, ...] = Field(
        (),
        max_length=8,
        description="How records are varied in each step: flip, crop, rotate, erase, color, noise.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: the forward pass by autocast; faster on GPUs that have it."
    )
    channels_last: bool = Field(
        False, description="Images and convolutions with channels last in memory; faster on most GPUs."
    )
    compile: bool | Literal["graphs"] = Field(
        False,
        description="torch.compile of the network below the head, for full steps: up to a minute in each "
        "process. graphs: on a GPU also replays a step's kernels as CUDA graphs, faster where launching them "
        "bounds the step.",
    )
    seed: int = Field(0, ge=0, lt=SEEDS, description="Same seed, same data, same learner: bit-equal on CPU.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one.")

    @model_validator(mode="after")
    def _nothing_refused(self) -> Self:
        for field, why in self.not_taken().items():
            if getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} cannot be set with {self.name}: {why}")
        return self

    def not_taken(self) -> Mapping[str, str]:
        """Fields that this strategy refuses, and why."""
        return self.refused

    def room_for(self, classes: int) -> str | None:
        """Why so many classes cannot be learnt; None where they can."""
        return None

    def misfit(self, shape: Sequence[int], dtype: str) -> tuple[str, str] | None:
        """The field by which such records cannot be learnt, and why; None where they can."""
        choices = (("network", self.network), *(("augment", choice) for choice in self.augment))
        problems = ((field, choice.misfit(shape, dtype)) for field, choice in choices)
        return next(((field, problem) for field, problem in problems if problem), None)


class Progress(Protocol):
    """Called about twice a second while a learner learns, between two batches.

    One that raises ends the learning: the error goes on, and the learner must be thrown away.
    """

    def __call__(self, *, step: int, total_steps: int, loss: float) -> None: ...


def silent(*, step: int, total_steps: int, loss: float) -> None:
    """The progress callback that tells nobody."""


@dataclass(frozen=True)
class LearnReport:
    """What one call of `Learner.learn` did."""

    experience: int
    records: int
    """Records of the new experience."""
    steps: int
    """Batches learnt, each by one optimizer step where the strategy takes steps."""
    seconds: float
    losses: tuple[float, ...]
    """Mean training loss of each epoch."""


class Learner(Protocol):
    """The live object that a strategy builds."""

    def learn(self, experience: Experience, progress: Progress = silent) -> LearnReport:
        """Learn one experience.

        Raises:
            ExperienceUnfitError: empty, of another shape, or with a label outside the declared classes.
            LearningDivergedError: the loss became NaN or infinite; the learner must be thrown away.
        """
        ...

    def predict(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities (n, n_classes), column j for class id j; a class never learnt has exactly 0.

        Changes nothing in the learner, nor in any random state.
        """
        ...

    def embed(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Features below the head (n, width): what the network decides by. As pure as `predict`."""
        ...

    def reseed(self, seed: int) -> None:
        """Draw by another seed in what is learnt from now on."""
        ...

    def widen(self, classes: Sequence[str]) -> None:
        """Know of classes that came to the stream since; those known before stay in their places.

        Raises:
            ExperienceUnfitError: the classes do not begin with those known before.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write the whole state into `directory`, atomically: it exists complete, or not at all."""
        ...

    def served_network(self) -> "nn.Module":
        """A copy in evaluation mode for serving: raw features (n, *shape) in, probabilities out."""
        ...


@dataclass(frozen=True)
class StrategySpec:
    """One line of the catalog. Reading it, and validating a config, needs no torch."""

    name: str
    config: type[StrategyConfig]
    builder: str
    """module:function, called with (config, stream_info); imported only when a learner is built."""
    summary: str
    paper: str

    def build(self, config: StrategyConfig, stream_info: StreamInfo) -> Learner:
        """A fresh learner.

        Raises:
            StrategyError: the config is another strategy's.
        """
        if not isinstance(config, self.config):
            raise StrategyError(
                f"strategy {self.name!r} takes a {self.config.__name__}, not a {type(config).__name__}"
            )
        module, function = self.builder.split(":")
        learner: Learner = getattr(import_module(module), function)(config, stream_info)
        return learner

    def load(self, directory: Path) -> Learner:
        """The learner that was saved in `directory`.

        Raises:
            StateError: missing, damaged, of an unknown version, or another strategy's.
        """
        load = import_module("strategies.learning.state").load
        learner: Learner = load(self, directory)
        return learner
