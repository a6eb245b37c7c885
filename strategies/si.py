"""Synaptic intelligence (SI): penalises changes of weights by how much they reduced the loss.

Zenke et al., "Continual Learning Through Synaptic Intelligence", ICML 2017 (arXiv:1703.04200). The importance
of a weight is summed up while it learns, without a further pass over the data. The sum takes the gradient of
the loss on the labels alone, as the paper has it; Avalanche's includes that of the penalty.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class SiConfig(StrategyConfig):
    """Config of the penalty on changes of important weights."""

    name: Literal["si"] = "si"
    strength: float = Field(
        40.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the penalty on moving weights (c in the paper); 0 is naive training.",
    )
    damping: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="Added to the squared way that a weight went, so that one which stood still counts "
        "little (xi in the paper).",
    )


def plugins(config: SiConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.importance import PathIntegral

    return [PathIntegral(strength=config.strength, damping=config.damping)]


def build(config: SiConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner without a penalty yet."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
