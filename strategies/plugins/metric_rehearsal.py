"""Plugin of ER-AML: a metric loss on the features of new records."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.hooks import RemovableHandle

from strategies.plugins.buffers import ReplayBuffer
from strategies.plugins.rehearsal import AsymmetricReplay


class AsymmetricMetric(AsymmetricReplay):
    """ER-AML: new records are drawn to their own class and away from the others of their batch.

    Only kept records, which the new ones are among, teach the head.
    """

    name = "er-aml"
    known = AsymmetricReplay.known | {"temperature", "strength", "_features", "_listening"}

    def __init__(self, buffer: ReplayBuffer, replayed: int, *, temperature: float, strength: float) -> None:
        """`strength`: weight of the loss on features next to that on labels."""
        super().__init__(buffer, replayed)
        self.temperature = temperature
        self.strength = strength
        self._features: Tensor | None = None
        self._listening: RemovableHandle | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        # The loop asks for logits; features computed a second time would cost a second pass.
        self._listening = strategy.model.head.register_forward_pre_hook(self._note)

    def _note(self, _head: nn.Module, given: tuple[Tensor, ...]) -> None:
        # In bfloat16, cosines over a small temperature would be coarse.
        self._features = given[0].float()

    def criterion(self, strategy: Any) -> Tensor:
        fresh, logits, rows = len(strategy.mbatch.new), strategy.mb_output, strategy.mb_y
        assert self._features is not None
        apart = contrast(self._features, rows, fresh=fresh, temperature=self.temperature)
        return self.strength * apart + cross_entropy(logits[fresh:], rows[fresh:])

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        assert self._listening is not None
        self._listening.remove()
        self._features = self._listening = None


def contrast(features: Tensor, rows: Tensor, *, fresh: int, temperature: float) -> Tensor:
    """The supervised contrastive loss of new records among all of a step.

    For each new record the mean over the others of its class of minus the log of: its likeness to that one,
    over its likeness to all others whose class is among the new ones. Likeness is exp(cosine / temperature).
    A class that no new record has is neither near nor far: so old features are not pushed away. A record
    that is alone in its class has no loss, and is still what the others keep away from.

    Args:
        features: (b, width), those of the `fresh` new records first.
        rows: (b,) their dense labels.
    """
    directions = normalize(features, eps=1e-5)
    alike = directions[:fresh] @ directions.T / temperature
    itself = torch.eye(fresh, len(rows), dtype=torch.bool, device=rows.device)
    # Not by torch.isin, which asks the device what it found, and waits.
    same = rows[:fresh, None] == rows
    outside = itself | ~same.any(0)
    others = alike.masked_fill(outside, torch.finfo(alike.dtype).min)
    same &= ~itself
    contrast = torch.where(same, alike - others.logsumexp(1, keepdim=True), 0.0)
    count = same.sum(1)
    return -(contrast.sum(1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)
