"""Plugins that use kept records otherwise than by mixing them into every step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from strategies.batches import ReplayBatches, TensorBatches
from strategies.buffers import ReplayBuffer, ReplayPlugin

ANSWERED_VALUES = 2**22
"""Feature values of one batch of records whose answers are kept, at most."""


class AsymmetricReplay(ReplayPlugin):
    """ER-ACE: new records are told apart from the classes of their own batch only.

    The experience joins the buffer before it is learnt, as in the paper, where records are kept as they come:
    only as kept ones are they told apart from older classes.
    """

    name = "er-ace"

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        super().before_training_exp(strategy, **kwargs)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """The experience was offered before."""

    def before_backward(self, strategy: Any, **_: Any) -> None:
        fresh = fresh_records(strategy)
        logits, rows = strategy.mb_output, strategy.mb_y
        absent = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        absent[rows[:fresh]] = False
        # Not minus infinity: its gradient would be NaN.
        among = logits[:fresh].masked_fill(absent, torch.finfo(logits.dtype).min)
        strategy.loss = cross_entropy(among, rows[:fresh]) + cross_entropy(logits[fresh:], rows[fresh:])


class DarkReplay(ReplayPlugin):
    """DER and DER++: kept records bring the logits along that the network gave them once."""

    name = "der"
    known = ReplayPlugin.known | {"alpha", "beta", "logits"}

    def __init__(self, buffer: ReplayBuffer, replayed: int, *, alpha: float, beta: float) -> None:
        super().__init__(buffer, replayed)
        self.alpha = alpha
        self.beta = beta
        self.logits = torch.empty(0, 0)
        """(n, rows) of the kept records; NaN where the head had no such row yet."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        if isinstance(strategy.dataloader, ReplayBatches):
            strategy.dataloader = DarkBatches(strategy.dataloader, self.logits.to(strategy.device))

    def before_backward(self, strategy: Any, **_: Any) -> None:
        if not isinstance(strategy.dataloader, DarkBatches):
            return
        fresh = fresh_records(strategy)
        logits, rows, then = strategy.mb_output, strategy.mb_y, strategy.mbatch[2]
        known = ~then.isnan()
        apart = torch.where(known, logits[fresh:, : then.shape[1]] - then.nan_to_num(), 0.0)
        loss = cross_entropy(logits[:fresh], rows[:fresh])
        loss = loss + self.alpha * apart.square().sum() / known.sum()
        if self.beta:
            loss = loss + self.beta * cross_entropy(logits[fresh:], rows[fresh:])
        strategy.loss = loss

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        data = strategy.experience.dataset
        kept, admitted = self.buffer.offer(data.inputs, data.rows, generator=strategy.generator)
        fresh = answers(strategy.model, data.inputs[admitted], strategy.device)
        before = self.logits.new_full((len(kept), fresh.shape[1]), torch.nan)
        before[:, : self.logits.shape[1]] = self.logits[kept]
        self.logits = torch.cat((before, fresh))

    def tensors(self) -> dict[str, Tensor]:
        found = super().tensors()
        return found | {"logits": self.logits} if found else found

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        super().restore(tensors, facts, network)
        if tensors:
            self.logits = tensors["logits"]


class GradientProjection(ReplayPlugin):
    """A-GEM: kept records are not learnt again; they say where a step may not go."""

    name = "a-gem"
    known = ReplayPlugin.known | {"_inputs", "_rows"}

    def __init__(self, buffer: ReplayBuffer, replayed: int) -> None:
        super().__init__(buffer, replayed)
        self._inputs: Tensor | None = None
        self._rows: Tensor | None = None

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        if self.buffer.inputs is not None:
            self._inputs = self.buffer.inputs.to(strategy.device)
            self._rows = self.buffer.rows.to(strategy.device)

    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Take away what of the gradient points against that of a sample of kept records."""
        if self._inputs is None or self._rows is None:
            return
        count = min(self.replayed, len(self._rows))
        chosen = torch.randperm(len(self._rows), generator=strategy.generator)[:count].to(strategy.device)
        parameters = [parameter for parameter in strategy.model.parameters() if parameter.grad is not None]
        loss = cross_entropy(strategy.model(self._inputs[chosen]), self._rows[chosen])
        of_kept = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            along = sum((p.grad * g).sum() for p, g in zip(parameters, of_kept, strict=True))
            length = sum(g.square().sum() for g in of_kept)
            # Nothing is read from the device: where they agree, nothing is taken away.
            share = torch.clamp(along, max=0) / (length + 1e-12)
            for parameter, gradient in zip(parameters, of_kept, strict=True):
                parameter.grad -= share * gradient

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._inputs = self._rows = None
        super().after_training_exp(strategy, **kwargs)


class FromScratch(ReplayPlugin):
    """GDumb: the experience joins the sample, and a fresh network learns the sample and nothing else."""

    name = "gdumb"

    def __init__(self, buffer: ReplayBuffer) -> None:
        super().__init__(buffer, replayed=0)

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        data = strategy.experience.dataset
        self.buffer.offer(data.inputs, data.rows, generator=strategy.generator)
        assert self.buffer.inputs is not None, "an experience is never empty"
        strategy.model.forget(strategy.generator)
        strategy.optimizer.state.clear()
        strategy.dataloader = TensorBatches(
            self.buffer.inputs.to(strategy.device),
            self.buffer.rows.to(strategy.device),
            batch_size=strategy.train_mb_size,
            generator=strategy.generator,
        )

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """The experience was offered before."""


@dataclass(frozen=True)
class DarkBatches:
    """As `ReplayBatches`, and what the network answered to the kept records of the step.

    Yields [inputs (b, *shape), rows (b,), logits of the kept ones (k, rows), task labels (b,)].
    """

    mixed: ReplayBatches
    logits: Tensor

    def __len__(self) -> int:
        return len(self.mixed)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for (inputs, rows, tasks), chosen in self.mixed.with_places():
            yield [inputs, rows, self.logits[chosen], tasks]


def fresh_records(strategy: Any) -> int:
    """How many of the step's records are new; they come first."""
    size: int = strategy.train_mb_size
    done: int = strategy.clock.train_epoch_iterations * size
    return min(size, len(strategy.experience.dataset) - done)


@torch.no_grad()
def answers(network: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
    """(n, rows) logits on the CPU, in evaluation mode; the network's own mode stays."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        step = max(1, ANSWERED_VALUES // max(1, inputs[0].numel() if len(inputs) else 1))
        chunks = torch.split(inputs, step) if len(inputs) else [inputs]
        return torch.cat([network(chunk.to(device)).cpu() for chunk in chunks])
    finally:
        for module, mode in modes.items():
            module.training = mode
