"""Plugin of SLDA: classifies by a Gaussian of each class, with one covariance for all."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from strategies.base import LearningDivergedError
from strategies.learning.avalanche import SupervisedPlugin
from strategies.learning.batches import Records
from strategies.learning.networks import Network, Readout
from strategies.learning.record_gradients import at_rest

PASS_VALUES = 2**22
"""Feature values that are added at a time, about."""


class StreamingDiscriminant(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """SLDA: count and mean of each class, and the scatter of all records around the mean of their class.

    These are the same whatever order the records come in, but for rounding (Chan, Golub and LeVeque, 1983,
    for sets that are joined), in float64 on the CPU.
    """

    name = "slda"
    known = frozenset({"shrinkage", "counts", "means", "scatter"})

    def __init__(self, shrinkage: float) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.counts = torch.empty(0, dtype=torch.float64)
        """(rows,) records learnt of each class."""
        self.means = torch.empty(0, 0, dtype=torch.float64)
        """(rows, width)"""
        self.scatter = torch.empty(0, 0, dtype=torch.float64)
        """(width, width)"""

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Learn the experience; the pass that follows measures how well its records are classified then.

        Raises:
            LearningDivergedError: the network made features that are NaN or infinite.
        """
        strategy.train_epochs = 1
        network: Network = strategy.model
        records: Records = strategy.dataloader.records
        self._grow(strategy.experience.head_rows, network.head.width)
        indices = torch.arange(len(records), device=records.rows.device)
        with at_rest(network):
            for some in torch.split(indices, max(1, PASS_VALUES // network.head.width)):
                self.add(network.features(records.take(some)).cpu().double(), records.rows[some].cpu())
        if not (self.means.isfinite().all() and self.scatter.isfinite().all()):
            raise LearningDivergedError(
                "features of this experience are NaN or infinite; throw this learner away, load the last "
                "saved state, and choose another network"
            )
        assert network.readout is not None, "the strategy equips its network"
        network.readout.become(*self.solution())

    @torch.no_grad()
    def forward(self, strategy: Any) -> Tensor:
        """(b, rows) what the network answers; at rest, as statistics of a batch would move features."""
        network: Network = strategy.model
        assert network.readout is not None, "the strategy equips its network"
        with at_rest(network):
            answers: Tensor = network.readout(network.features(strategy.mb_x))
        return answers

    def add(self, features: Tensor, rows: Tensor) -> None:
        """Records more: (n, width) float64 with their dense labels (n,)."""
        counts = torch.bincount(rows, minlength=len(self.counts)).double()
        sums = torch.zeros_like(self.means).index_add(0, rows, features)
        means = sums / counts.clamp(min=1).unsqueeze(1)
        within = features - means[rows]
        apart = means - self.means
        total = self.counts + counts
        share = counts / total.clamp(min=1)
        self.scatter = (
            self.scatter + within.T @ within + apart.T @ (apart * (self.counts * share).unsqueeze(1))
        )
        self.means = self.means + apart * share.unsqueeze(1)
        self.counts = total

    def solution(self) -> tuple[Tensor, Tensor]:
        """Weight (rows, width) and bias (rows,) of the logits of each class, all taken to be as frequent."""
        width = len(self.scatter)
        covariance = self.scatter / self.counts.sum()
        spread = covariance.diagonal().mean()
        round_ = torch.eye(width, dtype=torch.float64) * torch.where(spread > 0, spread, 1.0)
        factor = torch.linalg.cholesky(torch.lerp(covariance, round_, self.shrinkage))
        # From the middle: what all classes share says nothing, and costs digits in float32.
        middle = self.counts @ self.means / self.counts.sum()
        from_middle = self.means - middle
        weight = torch.cholesky_solve(from_middle.T, factor).T
        return weight, -(weight * (middle + from_middle / 2)).sum(1)

    def _grow(self, classes: int, width: int) -> None:
        more = classes - len(self.counts)
        self.counts = torch.cat((self.counts, self.counts.new_zeros(more)))
        self.means = torch.cat((self.means.reshape(-1, width), self.means.new_zeros(more, width)))
        if not self.scatter.numel():
            self.scatter = self.scatter.new_zeros(width, width)

    def tensors(self) -> dict[str, Tensor]:
        if not len(self.counts):
            return {}
        return {"counts": self.counts, "means": self.means, "scatter": self.scatter}

    def facts(self) -> dict[str, JsonValue]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        if tensors:
            self.counts, self.means, self.scatter = (tensors[n] for n in ("counts", "means", "scatter"))


def answers_by_gaussians(network: Network) -> None:
    """Equip a network that stays as it was drawn, and is only asked for features."""
    network.requires_grad_(False)
    network.readout = Readout(network.head.width, normalize=False)
