"""Plugins of ER-ACE, DER, A-GEM and GDumb: other uses of kept records than mixing them into every step."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from strategies.learning.batches import Records, passes
from strategies.learning.networks import Network
from strategies.learning.record_gradients import at_rest
from strategies.plugins.buffers import ReplayBuffer, ReplayPlugin

ANSWERED_VALUES = 2**22
"""Feature values of one batch of records whose answers are kept, at most."""


class AsymmetricReplay(ReplayPlugin):
    """ER-ACE: the loss on new records is taken over the classes of their own batch only.

    The experience joins the buffer before it is learnt, as in the paper, where records are kept as they come:
    only as kept records are they separated from older classes.
    """

    name = "er-ace"

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        super().before_training_exp(strategy, **kwargs)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """The experience was offered before."""

    def criterion(self, strategy: Any) -> Tensor:
        fresh, logits, rows = len(strategy.mbatch.new), strategy.mb_output, strategy.mb_y
        absent = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        # Not by assignment: that brings the False over from the host, and waits for it.
        absent.index_fill_(0, rows[:fresh], False)
        # Not minus infinity: its gradient would be NaN.
        among = logits[:fresh].masked_fill(absent, torch.finfo(logits.dtype).min)
        return cross_entropy(among, rows[:fresh]) + cross_entropy(logits[fresh:], rows[fresh:])


class DarkReplay(ReplayPlugin):
    """DER and DER++: kept records are stored with the logits that the network gave them."""

    name = "der"
    known = ReplayPlugin.known | {"alpha", "beta", "logits", "_known", "_then"}

    def __init__(self, buffer: ReplayBuffer, replayed: int, *, alpha: float, beta: float) -> None:
        super().__init__(buffer, replayed)
        self.alpha = alpha
        self.beta = beta
        self.logits = torch.empty(0, 0)
        """(n, rows) of the kept records; NaN where the head had no such row yet."""
        self._known = self._then = torch.empty(0, 0)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        known = ~self.logits.isnan()
        self._known = known.to(strategy.device)
        self._then = self.logits.nan_to_num().to(strategy.device)

    def criterion(self, strategy: Any) -> Tensor:
        fresh, kept = len(strategy.mbatch.new), strategy.mbatch.kept
        logits, rows = strategy.mb_output, strategy.mb_y
        loss = cross_entropy(logits[:fresh], rows[:fresh])
        if not len(kept):
            return loss
        known, then = self._known[kept], self._then[kept]
        apart = torch.where(known, logits[fresh:, : then.shape[1]] - then, 0.0)
        loss = loss + self.alpha * apart.square().sum() / known.sum()
        if self.beta:
            loss = loss + self.beta * cross_entropy(logits[fresh:], rows[fresh:])
        return loss

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        data = strategy.experience.dataset
        kept, admitted = self.buffer.offer(data.inputs, data.rows, generator=strategy.generator)
        fresh = answers(strategy.model, data.inputs[admitted], strategy.device)
        before = self.logits.new_full((len(kept), fresh.shape[1]), torch.nan)
        before[:, : self.logits.shape[1]] = self.logits[kept]
        self.logits = torch.cat((before, fresh))
        self._known = self._then = torch.empty(0, 0)

    def tensors(self) -> dict[str, Tensor]:
        found = super().tensors()
        return found | {"logits": self.logits} if found else found

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        super().restore(tensors, facts, network)
        if tensors:
            self.logits = tensors["logits"]


class GradientProjection(ReplayPlugin):
    """A-GEM: projects each gradient so that the loss on kept records does not rise; they are not replayed."""

    name = "a-gem"
    known = ReplayPlugin.known | {"_kept", "_chosen"}

    def __init__(self, buffer: ReplayBuffer, replayed: int) -> None:
        super().__init__(buffer, replayed)
        self._kept: Records | None = None
        self._chosen: Iterator[Tensor] = iter(())

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        if self.buffer.inputs is not None:
            self._kept = strategy.records(self.buffer.inputs, self.buffer.rows)

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        if self._kept is not None:
            steps = len(strategy.dataloader)
            self._chosen = passes(self._kept, self.replayed, steps=steps, generator=strategy.generator)

    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Remove the component of the gradient that opposes the gradient of a sample of kept records."""
        kept = self._kept
        if kept is None:
            return
        chosen = next(self._chosen)
        parameters = [parameter for parameter in strategy.model.parameters() if parameter.grad is not None]
        loss = cross_entropy(strategy.model.answer(kept.take(chosen)), kept.rows[chosen])
        of_kept = torch.autograd.grad(loss, parameters, materialize_grads=True)
        with torch.no_grad():
            along = sum((p.grad * g).sum() for p, g in zip(parameters, of_kept, strict=True))
            length = sum(g.square().sum() for g in of_kept)
            # Nothing is read from the device: where they agree, nothing is taken away.
            share = torch.clamp(along, max=0) / (length + 1e-12)
            for parameter, gradient in zip(parameters, of_kept, strict=True):
                parameter.grad -= share * gradient

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._kept, self._chosen = None, iter(())
        super().after_training_exp(strategy, **kwargs)


class FromScratch(ReplayPlugin):
    """GDumb: adds the experience to the sample, and trains a newly drawn network on the sample alone."""

    name = "gdumb"

    def __init__(self, buffer: ReplayBuffer) -> None:
        super().__init__(buffer, replayed=0)

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        data = strategy.experience.dataset
        self.buffer.offer(data.inputs, data.rows, generator=strategy.generator)
        assert self.buffer.inputs is not None, "an experience is never empty"
        strategy.restart()
        strategy.dataloader = strategy.batches(strategy.records(self.buffer.inputs, self.buffer.rows))

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """The experience was offered before."""


@torch.no_grad()
def answers(network: Network, inputs: Tensor, device: torch.device) -> Tensor:
    """(n, rows) logits on the CPU, in evaluation mode; the network's own mode stays."""
    with at_rest(network):
        step = max(1, ANSWERED_VALUES // max(1, inputs[0].numel() if len(inputs) else 1))
        step = min(step, network.records_at_once)
        chunks = torch.split(inputs, step) if len(inputs) else [inputs]
        return torch.cat([network(chunk.to(device)).cpu() for chunk in chunks])
