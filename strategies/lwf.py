"""Learning without forgetting: the network before the experience teaches the one that learns it.

Li and Hoiem, "Learning without Forgetting", ECCV 2016 (arXiv:1606.09282).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class LwfConfig(StrategyConfig):
    """Config of LwF: the weight and temperature of the distillation loss."""

    name: Literal["lwf"] = "lwf"
    alpha: float = Field(
        2.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the distillation loss next to the loss on the labels; 0 is naive training.",
    )
    temperature: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="Softening of both answers before they are compared."
    )


def plugins(config: LwfConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.distillation import Distillation

    return [Distillation(alpha=config.alpha, temperature=config.temperature)]


def build(config: LwfConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner without a teacher."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
