"""Plugins of iCaRL and SCR: classify by the nearest mean of kept records.

Distances are between features of length 1, so nearest is what has the largest cosine; a network answers with
the softmax of the cosines over a temperature. As the features move, the means are recomputed after every
experience, over all records that are kept.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from strategies.base import ExperienceUnfitError
from strategies.learning.avalanche import SupervisedPlugin
from strategies.learning.batches import Records, ReplayBatches
from strategies.learning.networks import Network, Readout
from strategies.learning.record_gradients import at_rest
from strategies.plugins.buffers import ReplayBuffer, ReplayPlugin

PASS_RECORDS = 1024
"""Records whose features are taken at a time, at most."""


class HerdedReplay(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """iCaRL's exemplars: mixed into every step, and chosen again for the classes that an experience brings.

    The classes seen share the capacity evenly. A class that does not come keeps the first of its herding
    order. One that comes back is herded out of its exemplars and its new records, towards the mean of all its
    records so far: its exemplars count for those that they were chosen from.
    """

    name = "icarl"
    known = frozenset({"capacity", "replayed", "temperature", "inputs", "rows", "seen"})

    def __init__(self, capacity: int, replayed: int, *, temperature: float) -> None:
        """`replayed`: exemplars a step, next to the batch of new records."""
        super().__init__()
        self.capacity = capacity
        self.replayed = replayed
        self.temperature = temperature
        self.inputs: Tensor | None = None
        """(n, *shape) exemplars as stored in the stream, class by class in herding order."""
        self.rows = torch.empty(0, dtype=torch.int64)
        self.seen = torch.empty(0, dtype=torch.int64)
        """(rows,) records ever learnt of each class."""

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        check_room(self.capacity, strategy.experience.head_rows)
        if self.inputs is not None:
            strategy.dataloader = ReplayBatches(
                strategy.dataloader,
                kept=strategy.records(self.inputs, self.rows),
                replayed=self.replayed,
            )

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        data, classes = strategy.experience.dataset, strategy.experience.head_rows
        sources = [strategy.unvaried(records) for records in strategy.dataloader.sources]
        # Old before new: a class that does not come keeps its order.
        features = torch.cat([features_of(strategy.model, records) for records in reversed(sources)])
        rows, fresh = torch.cat((self.rows, data.rows)), torch.bincount(data.rows, minlength=classes)
        seen = torch.cat((self.seen, self.seen.new_zeros(classes - len(self.seen))))
        counts = torch.cat((self._stands_for(), torch.ones(len(data.rows))))
        share, left = divmod(self.capacity, classes)
        chosen = []
        for row in range(classes):
            members = torch.nonzero(rows == row).squeeze(1)
            if fresh[row]:
                members = members[herd(features[members], counts[members], share + (row < left))]
            chosen.append(members[: share + (row < left)])
        stay = torch.cat(chosen)
        self.inputs = self._copied(data.inputs, stay)
        self.rows, self.seen = rows[stay], seen + fresh
        answer_by_means(strategy.model, features[stay], self.rows, temperature=self.temperature)

    def _stands_for(self) -> Tensor:
        """(n,) the number of records of its class that each exemplar represents."""
        each = self.seen / torch.bincount(self.rows, minlength=len(self.seen))
        return each[self.rows]

    def _copied(self, new: Tensor, indices: Tensor) -> Tensor:
        """The inputs at `indices` among the exemplars and, after them, the records of `new`."""
        old = len(self.rows)
        inputs = new.new_empty(len(indices), *new.shape[1:])
        if self.inputs is not None:
            inputs[indices < old] = self.inputs[indices[indices < old]]
        inputs[indices >= old] = new[indices[indices >= old] - old]
        return inputs

    def tensors(self) -> dict[str, Tensor]:
        if self.inputs is None:
            return {}
        return {"inputs": self.inputs, "rows": self.rows, "seen": self.seen}

    def facts(self) -> dict[str, JsonValue]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        if tensors:
            self.inputs, self.rows, self.seen = (tensors[name] for name in ("inputs", "rows", "seen"))


class ContrastiveReplay(ReplayPlugin):
    """SCR: a contrastive loss on new and kept records; kept ones classify by their means."""

    name = "scr"
    known = ReplayPlugin.known | {"noise", "contrast_temperature", "temperature"}

    def __init__(
        self,
        buffer: ReplayBuffer,
        replayed: int,
        *,
        noise: float,
        contrast_temperature: float,
        temperature: float,
    ) -> None:
        super().__init__(buffer, replayed)
        self.noise = noise
        self.contrast_temperature = contrast_temperature
        self.temperature = temperature

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        check_room(self.buffer.capacity, strategy.experience.head_rows)
        super().before_training_exp(strategy, **kwargs)

    def forward(self, strategy: Any) -> Tensor:
        """(2b, width) projections of length 1: of the batch as it is, and of the batch with noise."""
        network, inputs = strategy.model, strategy.mb_x
        drawn = torch.randn(inputs.shape, generator=strategy.generator).to(inputs.device)
        views = torch.cat((inputs, inputs + self.noise * drawn))
        projected: Tensor = network.projection(normalize(network.features(views), dim=1))
        return normalize(projected, dim=1)

    def criterion(self, strategy: Any) -> Tensor:
        return contrast(strategy.mb_output, strategy.mb_y.repeat(2), temperature=self.contrast_temperature)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        assert self.buffer.inputs is not None, "an experience is never empty"
        features = features_of(
            strategy.model, strategy.unvaried(strategy.records(self.buffer.inputs, self.buffer.rows))
        )
        answer_by_means(strategy.model, features, self.buffer.rows, temperature=self.temperature)


def answers_by_means(network: Network) -> None:
    """Equip a network for `answer_by_means`."""
    network.readout = Readout(network.head.width, normalize=True)


def projects(network: Network, *, width: int) -> None:
    """Equip a network with a projection of its features for `contrast`, a perceptron of one hidden layer."""
    inside = network.head.width
    network.projection = nn.Sequential(nn.Linear(inside, inside), nn.ReLU(), nn.Linear(inside, width))


def answer_by_means(network: Network, features: Tensor, rows: Tensor, *, temperature: float) -> None:
    """Answer by the nearest mean of `features` (n, width), of length 1, with their dense labels (n,)."""
    assert network.readout is not None, "the strategy equips its network"
    sums = features.new_zeros(int(rows.max()) + 1, features.shape[1]).index_add(0, rows, features)
    directions = normalize(sums, dim=1)
    network.readout.become(directions / temperature, directions.new_zeros(len(directions)))


@torch.no_grad()
def features_of(network: Network, records: Records) -> Tensor:
    """(n, width) of length 1, on the CPU, in evaluation mode."""
    indices = torch.arange(len(records), device=records.rows.device)
    with at_rest(network):
        chunks = [network.features(records.take(some)) for some in torch.split(indices, PASS_RECORDS)]
    return normalize(torch.cat(chunks), dim=1).cpu()


def herd(features: Tensor, counts: Tensor, share: int) -> Tensor:
    """Indices of at most `share` records, ordered so that the mean of the first ones is near that of all.

    The mean of all is over as many as `counts` (n,) says for each. Algorithm 4 of the paper.
    """
    mean = (features * counts.unsqueeze(1)).sum(0) / counts.sum()
    total = torch.zeros_like(mean)
    free = torch.zeros_like(counts)
    order = []
    for rank in range(1, min(share, len(features)) + 1):
        # All are of length 1: the nearest to what the mean lacks has the largest product with it.
        chosen = int(torch.argmax(features @ (rank * mean - total) + free))
        free[chosen] = -torch.inf
        total += features[chosen]
        order.append(chosen)
    return torch.tensor(order, dtype=torch.int64)


def contrast(projected: Tensor, rows: Tensor, *, temperature: float) -> Tensor:
    """The supervised contrastive loss (Khosla et al., arXiv:2004.11362, equation 2, L_out).

    Args:
        projected: (n, width) of length 1.
        rows: (n,) dense labels, each at least twice.
    """
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    same = (rows.unsqueeze(1) == rows) & ~itself
    # Not minus infinity: its gradient would be NaN.
    alike = (projected @ projected.T / temperature).masked_fill(itself, torch.finfo(projected.dtype).min)
    drawn = torch.where(same, log_softmax(alike, dim=1), 0.0).sum(1)
    return -(drawn / same.sum(1)).mean()


def check_room(capacity: int, classes: int) -> None:
    """Raises ExperienceUnfitError where not every class can keep a record: it could not be answered with."""
    if classes > capacity:
        raise ExperienceUnfitError(
            f"{classes} classes do not fit in capacity={capacity}: each must keep a record to be known by; "
            "declare a pipeline with a larger capacity"
        )
