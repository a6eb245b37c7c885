"""An experience as Avalanche reads it: whole tensors instead of a dataset of single records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Column:
    """The part of a data attribute that Avalanche's plugins read."""

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
    """The part of an experience that Avalanche reads while it trains."""

    dataset: TensorDataset
    current_experience: int
    head_rows: int
    """Rows the head must have to learn this."""
    classes_in_this_experience: Sequence[int]

    def logging(self) -> "BridgedExperience":
        return self
