"""DER and DER++: replays kept records with the logits that the network gave when they were stored.

Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS 2020
(arXiv:2004.07211). `beta` 0 is DER, above it DER++. Two things differ from the paper, whose stream has a
closed set of classes and no experiences: the answers are taken at the end of the experience that a record
came in, and rows that the head did not have then are not compared.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from strategies.base import Learner, StreamInfo
from strategies.replay import RehearsalConfig

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class DerConfig(RehearsalConfig):
    """Config of DER: the buffer, and the weights of stored logits and labels."""

    name: Literal["der"] = "der"
    alpha: float = Field(
        0.3,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the squared distance to the kept logits, a mean over logits.",
    )
    beta: float = Field(
        0.5,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the loss on the labels of kept records; 0 is DER, above it DER++.",
    )


def plugins(config: DerConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.buffers import ReplayBuffer
    from strategies.plugins.rehearsal import DarkReplay

    buffer = ReplayBuffer(config.capacity, config.balance)
    replayed = config.replay_batch_size or batch_size
    return [DarkReplay(buffer, replayed=replayed, alpha=config.alpha, beta=config.beta)]


def build(config: DerConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty buffer."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
