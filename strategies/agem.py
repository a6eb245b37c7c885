"""A-GEM: a step may not go where the loss on kept records would rise.

Chaudhry et al., "Efficient Lifelong Learning with A-GEM", ICLR 2019 (arXiv:1812.00420). The gradient of new
records is projected where it points against that of kept ones. Kept records come from one bounded sample of
the past, where Avalanche keeps a buffer an experience for ever.
"""

from typing import Literal

from strategies.base import Learner, StreamInfo
from strategies.replay import RehearsalConfig


class AgemConfig(RehearsalConfig):
    """How much of the past is kept, and how much of it a step is held to."""

    name: Literal["a-gem"] = "a-gem"


def build(config: AgemConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty buffer."""
    from strategies.buffers import ReplayBuffer
    from strategies.learner import AvalancheLearner
    from strategies.rehearsal import GradientProjection

    buffer = ReplayBuffer(config.capacity, config.balance)
    return AvalancheLearner(
        config, stream_info, plugins=[GradientProjection(buffer, replayed=config.replayed)]
    )
