"""The plugin that records losses, reports progress, and stops a learner that diverged."""

import time
from typing import Any

import numpy as np
import torch

from strategies.base import LearningDivergedError, Progress, silent
from strategies.learning.avalanche import SupervisedPlugin


class Recorder(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Records the loss of each epoch, reports progress, and stops a learner that diverged.

    The loss stays on the device and is read about twice a second and at the end of each epoch. Stands in for
    Avalanche's evaluator too, so that nothing is measured, logged or printed.
    """

    INTERVAL_SECONDS = 0.5

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
        self._sum.add_(strategy.loss.detach(), alpha=records)
        self._records += records
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self.INTERVAL_SECONDS
            # The clock counts this step after its plugins were called.
            self._report(strategy, strategy.clock.train_exp_iterations + 1)

    def after_training_epoch(self, strategy: Any, **_: Any) -> None:
        self.losses.append(self._mean_loss())

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        # The last step's loss was taken before that step: the weights show whether it broke them.
        if not all(bool(p.isfinite().all()) for p in strategy.model.parameters()):
            raise LearningDivergedError(_diverged("a weight"))
        self._report(strategy, self._total_steps)

    def _mean_loss(self) -> float:
        if not self._records:
            # An early stop is noticed when the next epoch has begun.
            return self.losses[-1]
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
