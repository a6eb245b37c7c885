"""The only translation to Avalanche: a dataset, an experience, a training loop with fast loading, plugins.

Avalanche's loop and its plugins do the learning, one experience at a time. What is ours: data as whole
tensors, a head that grows by rows, and plugins whose state can be saved.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from strategies.avalanche_parts import SupervisedPlugin, SupervisedTemplate
from strategies.base import LearningDivergedError, Progress, silent
from strategies.batches import TensorBatches
from strategies.networks import Perceptron


@runtime_checkable
class StatefulPlugin(Protocol):
    """A plugin whose state can be saved. A strategy's plugin must be one, or saving is refused."""

    name: str
    """Unique among the plugins of a learner; part of the saved names."""
    known: frozenset[str]
    """Every attribute an instance has; one more is state that saving would drop, and is refused."""

    def tensors(self) -> dict[str, Tensor]: ...

    def facts(self) -> dict[str, JsonValue]: ...

    def restore(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module
    ) -> None: ...


@dataclass(frozen=True)
class Column:
    """What Avalanche's plugins read of a data attribute."""

    uniques: frozenset[int]


@dataclass(frozen=True)
class TensorDataset:
    """The records of one experience as Avalanche wants a dataset, whole and on the CPU.

    One constant task label 0 stands in the dataset; the experience carries none, or Avalanche would switch
    to its task-balanced loader.
    """

    inputs: Tensor
    """(n, *shape) an owned copy, as stored in the stream."""
    rows: Tensor
    """(n,) dense labels: rows of the head."""
    targets_task_labels: ClassVar[Column] = Column(frozenset({0}))

    @property
    def targets(self) -> Column:
        return Column(frozenset(torch.unique(self.rows).tolist()))

    @property
    def task_set(self) -> dict[int, "TensorDataset"]:
        return {0: self}

    def train(self) -> "TensorDataset":
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, chosen: list[int]) -> list[Tensor]:
        """A whole batch at once: torch's loader asks for it where a dataset has this method."""
        rows = self.rows[chosen]
        return [self.inputs[chosen], rows, torch.zeros_like(rows)]

    @staticmethod
    def collate_fn(batch: list[Tensor]) -> list[Tensor]:
        return batch

    def spread(self, limit: int) -> "TensorDataset":
        """At most `limit` records, evenly spaced."""
        if len(self) <= limit:
            return self
        chosen = torch.arange(limit) * len(self) // limit
        return TensorDataset(self.inputs[chosen], self.rows[chosen])


@dataclass(frozen=True)
class BridgedExperience:
    """What Avalanche reads of an experience while it trains."""

    dataset: TensorDataset
    current_experience: int
    head_rows: int
    """Rows the head must have to learn this."""
    classes_in_this_experience: Sequence[int]

    def logging(self) -> "BridgedExperience":
        return self


class Recorder(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Records the loss of each epoch, reports progress, and stops a learner that diverged.

    The loss stays on the device and is read about once a second and at the end of each epoch. Stands in for
    Avalanche's evaluator too, so that nothing is measured, logged or printed.
    """

    INTERVAL_SECONDS = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.progress: Progress = silent
        self.losses: list[float] = []

    def get_last_metrics(self) -> dict[str, float]:
        return {}

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        self.losses = []
        self._total_steps = strategy.train_epochs * len(strategy.dataloader)
        self._due = time.monotonic() + self.INTERVAL_SECONDS

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        self._sum = torch.zeros((), dtype=torch.float64, device=strategy.device)
        self._records = 0

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        records = len(strategy.mb_y)
        self._sum += strategy.loss.detach().squeeze() * records
        self._records += records
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self.INTERVAL_SECONDS
            # The clock counts this step after its plugins were called.
            self._report(strategy, strategy.clock.train_exp_iterations + 1)

    def after_training_epoch(self, strategy: Any, **_: Any) -> None:
        self.losses.append(self._mean_loss())

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        # The last step's loss was taken before that step: the weights tell whether it broke them.
        if not all(bool(p.isfinite().all()) for p in strategy.model.parameters()):
            raise LearningDivergedError(_diverged("a weight"))
        self._report(strategy, self._total_steps)

    def _mean_loss(self) -> float:
        mean = float(self._sum) / self._records
        if not np.isfinite(mean):
            raise LearningDivergedError(_diverged("the loss"))
        return mean

    def _report(self, strategy: Any, step: int) -> None:
        self.progress(step=step, total_steps=self._total_steps, loss=self._mean_loss())


def _diverged(what: str) -> str:
    return (
        f"{what} became NaN or infinite; throw this learner away, "
        "load the last saved state and lower learning_rate, or the weight of the strategy's penalty"
    )


class Template(SupervisedTemplate):  # type: ignore[misc]  # Avalanche ships no types
    """Avalanche's training loop over whole tensors and over a head that grows by rows."""

    generator: torch.Generator
    """On the CPU; replaced before every experience."""

    def make_train_dataloader(self, **_: Any) -> None:
        data = self.adapted_dataset
        self.dataloader = TensorBatches(
            data.inputs.to(self.device),
            data.rows.to(self.device),
            batch_size=self.train_mb_size,
            generator=self.generator,
        )

    def model_adaptation(self, model: Perceptron | None = None) -> nn.Module:
        network: Perceptron = self.model if model is None else model
        network.head.grow(self.experience.head_rows, self.generator)
        return network.to(self.device)
