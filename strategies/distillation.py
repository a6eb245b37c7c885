"""The plugin by which the network before an experience teaches the one that learns it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import kl_div

from strategies.avalanche_parts import SupervisedPlugin
from strategies.batches import Batch, Records
from strategies.networks import Network

ANSWERED_RECORDS = 4096
"""Records that the teacher answers to at a time, at most."""


class Distillation(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Avalanche's LwF loss: the divergence of the softened answers from the teacher's, over rows it knows.

    The teacher rests in evaluation mode, so it answers the same to a record in every step: where records
    are prepared ahead, it is asked once an experience.
    """

    name = "lwf"
    known = frozenset({"alpha", "temperature", "teacher", "_answers"})

    def __init__(self, *, alpha: float, temperature: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.temperature = temperature
        self.teacher: Network | None = None
        self._answers: list[Tensor | None] = []

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        if self.teacher is not None and self.alpha:
            self._answers = [self._ahead(records) for records in strategy.dataloader.sources]

    @torch.no_grad()
    def _ahead(self, records: Records) -> Tensor | None:
        """(n, rows) softened answers to all records, where these are prepared."""
        if records.prepare is not None:
            return None
        places = torch.arange(len(records), device=records.rows.device)
        return torch.cat([self._softened(records.take(p)) for p in torch.split(places, ANSWERED_RECORDS)])

    @torch.no_grad()
    def _softened(self, prepared: Tensor) -> Tensor:
        assert self.teacher is not None
        return torch.softmax(self.teacher.answer(prepared) / self.temperature, dim=1)

    def before_backward(self, strategy: Any, **_: Any) -> None:
        if not self._answers:
            return
        batch: Batch = strategy.mbatch
        parts = [
            self._softened(inputs) if answers is None else answers.index_select(0, places)
            for answers, places, inputs in zip(self._answers, batch.places, batch.parts, strict=False)
        ]
        taught = parts[0] if len(parts) == 1 else torch.cat(parts)
        logits = strategy.mb_output[:, : taught.shape[1]]
        apart = kl_div(torch.log_softmax(logits / self.temperature, dim=1), taught, reduction="batchmean")
        strategy.loss = strategy.loss + self.alpha * apart

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


def _teacher(network: Network) -> Network:
    """A copy that learns no more; a frozen body is shared with it."""
    memo = {id(network.body): network.body} if network.frozen else {}
    return copy.deepcopy(network, memo).eval().requires_grad_(False)


def _shared(network: Network, name: str) -> bool:
    return network.frozen and name.startswith("body.")
