"""Distillation plugins of LwF and iCaRL: the network before an experience teaches the one that learns it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, one_hot

from strategies.learning.avalanche import SupervisedPlugin
from strategies.learning.batches import Batch, Records
from strategies.learning.networks import Network

ANSWERED_RECORDS = 4096
"""Records that the teacher answers to at a time, at most."""


class Teaching(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Keeps a copy of the network from before the experience, and computes its answers to the records.

    The teacher rests in evaluation mode, so it answers the same to a record in every step: where records
    are prepared ahead, it is asked once an experience.
    """

    known = frozenset({"teacher", "_answers"})

    def __init__(self) -> None:
        super().__init__()
        self.teacher: Network | None = None
        self._answers: list[Tensor | None] = []

    def softened(self, logits: Tensor) -> Tensor:
        """(b, rows) what of the teacher's logits is taught."""
        return logits

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        if self.teacher is not None:
            self._answers = [self._ahead(records) for records in strategy.dataloader.sources]

    @torch.no_grad()
    def _ahead(self, records: Records) -> Tensor | None:
        """(n, rows) softened answers to all records, where these are prepared."""
        if records.prepare is not None:
            return None
        assert self.teacher is not None
        indices = torch.arange(len(records), device=records.rows.device)
        step = min(ANSWERED_RECORDS, self.teacher.records_at_once)
        return torch.cat([self._softened(records.take(some)) for some in torch.split(indices, step)])

    @torch.no_grad()
    def _softened(self, prepared: Tensor) -> Tensor:
        assert self.teacher is not None
        return self.softened(self.teacher.answer(prepared))

    def taught(self, batch: Batch) -> Tensor | None:
        """(b, rows that the teacher knows) its answers to a batch; None where there is no teacher."""
        if not self._answers:
            return None
        parts = [
            self._softened(inputs) if answers is None else answers.index_select(0, indices)
            for answers, indices, inputs in zip(self._answers, batch.indices, batch.parts, strict=False)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        self._answers = []
        self.teacher = _teacher(strategy.model)

    def tensors(self) -> dict[str, Tensor]:
        """The teacher's tensors, but for a frozen body's; empty before the first experience."""
        if self.teacher is None:
            return {}
        found = self.teacher.state_dict()
        return {name: tensor for name, tensor in found.items() if not _shared(self.teacher, name)}

    def facts(self) -> dict[str, JsonValue]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        if not tensors:
            return
        assert isinstance(network, Network)
        teacher = _teacher(network)
        shared = {name: t for name, t in network.state_dict().items() if _shared(network, name)}
        teacher.load_state_dict({**shared, **tensors})
        self.teacher = teacher


class Distillation(Teaching):
    """Avalanche's LwF loss: the divergence of the softened answers from the teacher's, over rows it knows."""

    name = "lwf"
    known = Teaching.known | {"alpha", "temperature"}

    def __init__(self, *, alpha: float, temperature: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.temperature = temperature

    def softened(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits / self.temperature, dim=1)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self.alpha:
            super().before_training_exp(strategy, **kwargs)

    def before_backward(self, strategy: Any, **_: Any) -> None:
        taught = self.taught(strategy.mbatch)
        if taught is None:
            return
        logits = strategy.mb_output[:, : taught.shape[1]]
        apart = kl_div(torch.log_softmax(logits / self.temperature, dim=1), taught, reduction="batchmean")
        strategy.loss = strategy.loss + self.alpha * apart


class SigmoidDistillation(Teaching):
    """iCaRL's loss: binary for each row, from the labels or, for absent classes, from the teacher.

    Rows of classes that the experience holds, new or come back, are learnt from the labels. The other rows
    are learnt from the teacher, of new records and of kept ones.
    """

    name = "icarl-teacher"
    known = Teaching.known | {"_absent"}

    def __init__(self) -> None:
        super().__init__()
        self._absent = torch.empty(0, dtype=torch.int64)

    def softened(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        old = 0 if self.teacher is None else self.teacher.head.rows
        here = set(strategy.experience.classes_in_this_experience)
        absent = [row for row in range(old) if row not in here]
        self._absent = torch.tensor(absent, dtype=torch.int64, device=strategy.device)

    def criterion(self, strategy: Any) -> Tensor:
        logits: Tensor = strategy.mb_output
        targets = one_hot(strategy.mb_y, logits.shape[1]).to(logits.dtype)
        taught = self.taught(strategy.mbatch)
        if taught is not None:
            targets[:, self._absent] = taught[:, self._absent]
        return binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(targets)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._absent = torch.empty(0, dtype=torch.int64)
        super().after_training_exp(strategy, **kwargs)


def _teacher(network: Network) -> Network:
    """A copy that learns no more; a frozen body is shared with it."""
    memo = {id(network.body): network.body} if network.frozen else {}
    return copy.deepcopy(network, memo).eval().requires_grad_(False)


def _shared(network: Network, name: str) -> bool:
    return network.frozen and name.startswith("body.")
