"""Weight averaging: mixes the weights before an experience (champion) with those after it (challenger).

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (arXiv:2109.01903), there for a
pretrained and a fine-tuned network. Keeps no record and costs nothing a step; it combines with every
strategy that keeps training one network.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class AveragingConfig(StrategyConfig):
    """Config of weight averaging."""

    name: Literal["averaging"] = "averaging"
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Weight of the challenger in the mean, the champion has the rest; 1 is naive training.",
    )


def plugins(config: AveragingConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.weight_averages import ChampionAverage

    return [ChampionAverage(share=config.share)]


def build(config: AveragingConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner; its first experience is learnt without averaging."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
