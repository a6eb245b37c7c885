"""The contracts of the learning side: strategy, config and learner. Imports neither torch nor Avalanche."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from strategies.augment_choice import AugmentChoice
from strategies.errors import ExperienceUnfitError as ExperienceUnfitError
from strategies.errors import LearningDivergedError as LearningDivergedError
from strategies.errors import StateError as StateError
from strategies.errors import StrategyError as StrategyError
from strategies.errors import StrategyUnknownError as StrategyUnknownError
from strategies.network_choice import MlpChoice, NetworkChoice
from strategies.state_document import read_document
from strategies.stream_info import StreamInfo as StreamInfo
from streams.base import Experience

if TYPE_CHECKING:
    from torch import nn


SEEDS = 2**31
"""Seeds are from 0 to SEEDS - 1."""


@dataclass(frozen=True)
class LearningEnvironment:
    """The machine and libraries, on which learning depends besides records, settings and seed."""

    device: str
    """"cpu", or the name of the GPU."""
    threads: int
    """Threads among which torch divides one operation."""
    machine: str
    """Architecture, and the vector instructions that torch uses."""
    packages: Mapping[str, str]
    """Library -> version; those that are not installed are left out."""


class StrategyConfig(BaseModel):
    """The settings that every strategy has. A strategy adds its own in a subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refused: ClassVar[Mapping[str, str]] = {}
    """Field -> why it must keep its default: it would have no effect, or do harm."""

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
        """The `refused` fields, with those of the parts of a combination."""
        return self.refused

    def problem(self, shape: Sequence[int], dtype: str, *, classes: int = 0) -> tuple[str, str] | None:
        """The field that makes such records, or so many classes, impossible to learn, and why.

        None: they can be learnt.
        """
        choices = (("network", self.network), *(("augment", choice) for choice in self.augment))
        problems = ((field, choice.problem(shape, dtype)) for field, choice in choices)
        return next(((field, problem) for field, problem in problems if problem), None)


class Progress(Protocol):
    """Called about twice a second while a learner learns, between two batches.

    One that raises ends the learning: the error goes on, and the learner must be thrown away.
    """

    def __call__(self, *, step: int, total_steps: int, loss: float) -> None: ...


def silent(*, step: int, total_steps: int, loss: float) -> None:
    """A progress callback that does nothing."""


@dataclass(frozen=True)
class LearnReport:
    """The result of one call of `Learner.learn`."""

    experience: int
    records: int
    """Records of the new experience."""
    steps: int
    """Batches learnt, each by one optimizer step where the strategy takes steps."""
    seconds: float
    losses: tuple[float, ...]
    """Mean training loss of each epoch."""


class Learner(Protocol):
    """A model that learns one experience after another; built by `StrategySpec.build`."""

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
        """Features below the head (n, width). As pure as `predict`."""
        ...

    def reseed(self, seed: int) -> None:
        """Use another seed in what is learnt from now on."""
        ...

    def widen(self, classes: Sequence[str]) -> None:
        """Add classes that were declared since; the class ids of known classes stay the same.

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


@runtime_checkable
class LoadableLearner(Learner, Protocol):
    """A learner that can take over a saved state."""

    def load_state(self, directory: Path) -> None:
        """Become the learner that was saved in `directory`; called once, on a freshly built learner.

        Raises:
            StateError: missing, damaged, or not of this learner's strategy and config.
        """
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
        """Load the learner that was saved in `directory`.

        Raises:
            StateError: missing, damaged, of an unknown version, or another strategy's.
        """
        saved = read_document(directory)
        if saved.strategy != self.name:
            raise StateError(
                f"{directory} holds a learner of strategy {saved.strategy!r}, not {self.name!r}; "
                f"load it as {saved.strategy!r}"
            )
        try:
            config = self.config.model_validate(saved.config)
        except ValidationError as error:
            raise StateError(
                f"{directory}: the saved config is no longer valid for {self.name!r}: {error}"
            ) from error
        learner = self.build(config, saved.stream_info)
        if not isinstance(learner, LoadableLearner):
            raise StateError(f"the learner of strategy {self.name!r} cannot load a saved state")
        learner.load_state(directory)
        return learner
