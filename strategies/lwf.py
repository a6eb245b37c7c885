"""Learning without forgetting: the network before the experience teaches the one that learns it.

Li and Hoiem, "Learning without Forgetting", ECCV 2016 (arXiv:1606.09282).
"""

from typing import Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo


class LwfConfig(StrategyConfig):
    """How much the old network has to say."""

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


def build(config: LwfConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner without a teacher."""
    from strategies.learner import AvalancheLearner
    from strategies.regularizers import Distillation

    plugin = Distillation(alpha=config.alpha, temperature=config.temperature)
    return AvalancheLearner(config, stream_info, plugins=[plugin])
