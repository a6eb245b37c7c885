"""A-GEM: projects each gradient so that the loss on a sample of kept records does not rise.

Chaudhry et al., "Efficient Lifelong Learning with A-GEM", ICLR 2019 (arXiv:1812.00420). The gradient of new
records is projected where it points against that of kept ones. Kept records come from one bounded sample of
the past, where Avalanche keeps a buffer an experience for ever.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from strategies.base import Learner, StreamInfo
from strategies.replay import RehearsalConfig

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class AgemConfig(RehearsalConfig):
    """Config of A-GEM: the buffer, and the kept records that constrain a step."""

    name: Literal["a-gem"] = "a-gem"


def plugins(config: AgemConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.buffers import ReplayBuffer
    from strategies.plugins.rehearsal import GradientProjection

    buffer = ReplayBuffer(config.capacity, config.balance)
    return [GradientProjection(buffer, replayed=config.replay_batch_size or batch_size)]


def build(config: AgemConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty buffer."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
