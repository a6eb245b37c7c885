"""Exponential moving average of the weights over the steps of an experience.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; for continual learning
Soutif et al., "Improving Online Continual Learning Performance and Stability with Temporal Ensembles",
CoLLAs 2023 (arXiv:2306.16817), who keep both the last weights and the mean. Here the next experience
starts from the mean.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class EmaConfig(StrategyConfig):
    """Config of the moving average."""

    refused: ClassVar[Mapping[str, str]] = {"early_stop": "the best weights would be given up for the mean"}

    name: Literal["ema"] = "ema"
    decay: float = Field(
        0.995,
        gt=0,
        lt=1,
        description="Weight of the mean so far at each step: it looks back over about 1 / (1 - decay) steps, "
        "so more steps than an experience has hold it near the champion.",
    )


def plugins(config: EmaConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.weight_averages import MovingAverage

    return [MovingAverage(decay=config.decay)]


def build(config: EmaConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
