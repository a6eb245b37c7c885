"""Training plugins for every strategy: learning-rate schedule, gradient clipping, early stopping.

They start afresh with every experience, so there is nothing of them to save.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from strategies.learning.avalanche import SupervisedPlugin
from strategies.learning.record_gradients import at_rest


class PassingPlugin(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """A plugin that keeps nothing from one experience to the next."""


class Schedule(PassingPlugin):
    """Varies the learning rate within an experience; each begins and ends as the config says."""

    def __init__(self, shape: Literal["constant", "cosine", "linear"], *, warmup: float) -> None:
        super().__init__()
        self.shape = shape
        self.warmup = warmup
        self._rates: list[float] = []
        self._total = 0

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        self._rates = [group["lr"] for group in strategy.optimizer.param_groups]
        self._total = strategy.train_epochs * len(strategy.dataloader)

    def before_update(self, strategy: Any, **_: Any) -> None:
        share = self.share(strategy.clock.train_exp_iterations)
        for group, rate in zip(strategy.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        for group, rate in zip(strategy.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate

    def share(self, step: int) -> float:
        """Share of the learning rate at a step: rises linearly during the warm-up, then follows the shape."""
        rising = math.ceil(self.warmup * self._total)
        if step < rising:
            return (step + 1) / rising
        gone = (step - rising) / max(1, self._total - rising)
        if self.shape == "cosine":
            return 0.5 * (1 + math.cos(math.pi * gone))
        return 1 - gone if self.shape == "linear" else 1.0


class ClippedGradient(PassingPlugin):
    """Clips the gradient of a step, including penalties of plugins, to a norm."""

    def __init__(self, norm: float) -> None:
        super().__init__()
        self.norm = norm

    def before_update(self, strategy: Any, **_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(strategy.model.parameters(), self.norm)


class EarlyStop(PassingPlugin):
    """Ends an experience when the answers on records held out from it no longer improve.

    The weights are then those of the best epoch. To be the first plugin: others see what it left them.
    """

    VALIDATED_RECORDS = 4096

    def __init__(self, patience: int, *, share: float) -> None:
        super().__init__()
        self.patience = patience
        self.share = share
        self._forget()

    def _forget(self) -> None:
        self._inputs: Tensor | None = None
        self._rows: Tensor | None = None
        self._best = math.inf
        self._weights: dict[str, Tensor] = {}
        self._waited = 0

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        self._forget()
        data = strategy.experience.dataset
        aside = round(self.share * len(data))
        if not 0 < aside < len(data):
            return
        order = torch.randperm(len(data), generator=strategy.generator)
        self._inputs, self._rows = data.inputs[order[:aside]], data.rows[order[:aside]]
        strategy.dataloader = strategy.dataloader.among(order[aside:])

    def after_training_epoch(self, strategy: Any, **_: Any) -> None:
        if self._inputs is None or self._rows is None:
            return
        loss = self._loss(strategy, self._inputs, self._rows)
        if loss < self._best:
            self._best, self._waited = loss, 0
            self._weights = {name: t.clone() for name, t in strategy.model.state_dict().items()}
            return
        self._waited += 1
        if self._waited >= self.patience:
            strategy.stop_training()

    @torch.no_grad()
    def _loss(self, strategy: Any, inputs: Tensor, rows: Tensor) -> float:
        total = torch.zeros((), dtype=torch.float64, device=strategy.device)
        with at_rest(strategy.model):
            for given, wanted in zip(
                torch.split(inputs, self.VALIDATED_RECORDS),
                torch.split(rows, self.VALIDATED_RECORDS),
                strict=True,
            ):
                logits = strategy.model(given.to(strategy.device))
                total += cross_entropy(logits, wanted.to(strategy.device), reduction="sum")
        return float(total) / len(rows)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        # Avalanche keeps the stop flag set where the last epoch set it.
        strategy._stop_training = False
        if self._weights:
            strategy.model.load_state_dict(self._weights)
        self._forget()
