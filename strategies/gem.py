"""GEM: projects each gradient so that the loss on no group of kept records rises.

Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017 (arXiv:1706.08840).
The paper keeps a memory and a constraint for each experience, so memory and the time of a step grow with the
stream. Here one sample of bounded size is kept, and its records make up a bounded number of constraints: one
for each experience while these are few, then one for each run of neighbouring experiences. The paper makes a
constraint of all records of its experience; here each step draws its kept records again, as many of each
group. A margin adds gradients of kept records to a step: these are then learnt, not only looked at.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from strategies.base import Learner, StreamInfo
from strategies.replay import RehearsalConfig

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class GemConfig(RehearsalConfig):
    """Config of GEM: the buffer, and the groups of kept records that constrain a step."""

    name: Literal["gem"] = "gem"
    groups: int = Field(
        10,
        ge=1,
        le=100,
        description="Groups of kept records, each a constraint and a gradient a step. One an experience "
        "while there are no more, then neighbours share one.",
    )
    margin: float = Field(
        0.5,
        ge=0,
        allow_inf_nan=False,
        description="Share of each group's gradient that a step takes at least where it must be turned "
        "(memory strength in the paper); 0 turns it no further than it must.",
    )


def plugins(config: GemConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.buffers import ReplayBuffer
    from strategies.plugins.gradient_rehearsal import EpisodicConstraints

    buffer = ReplayBuffer(config.capacity, config.balance)
    return [
        EpisodicConstraints(
            buffer,
            replayed=config.replay_batch_size or batch_size,
            groups=config.groups,
            margin=config.margin,
        )
    ]


def build(config: GemConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty buffer."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
