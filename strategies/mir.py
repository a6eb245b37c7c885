"""MIR: replays the kept records, out of a sample, that a step on the new ones would hurt most.

Aljundi et al., "Online Continual Learning with Maximally Interfered Retrieval", NeurIPS 2019
(arXiv:1908.04742). The step that is tried is a plain one along the gradient, of the size of the learning
rate, whatever the optimizer would make of it. New and chosen records are learnt as in replay, by the mean
loss of all of them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from strategies.base import Learner, StreamInfo
from strategies.replay import RehearsalConfig

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class MirConfig(RehearsalConfig):
    """Config of MIR: the buffer, and the kept records that a step examines and replays."""

    name: Literal["mir"] = "mir"
    candidates: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Kept records a step that are looked at; unset means twice those that are replayed.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.candidates and self.replay_batch_size and self.candidates < self.replay_batch_size:
            raise ValueError("candidates must be at least replay_batch_size: they are what is chosen from")
        return self


def plugins(config: MirConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.buffers import ReplayBuffer
    from strategies.plugins.gradient_rehearsal import InterferedReplay

    buffer = ReplayBuffer(config.capacity, config.balance)
    replayed = config.replay_batch_size or batch_size
    return [InterferedReplay(buffer, replayed, candidates=config.candidates or 2 * replayed)]


def build(config: MirConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty replay buffer."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
