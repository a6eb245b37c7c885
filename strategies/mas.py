"""Memory aware synapses (MAS): penalises changes of weights by how much the outputs depend on them.

Aljundi et al., "Memory Aware Synapses: Learning what (not) to forget", ECCV 2018 (arXiv:1711.09601). The
importance of a weight is the mean size of the gradient of the squared length of the answer, record by record;
labels play no part. Avalanche takes the gradient of a batch's mean instead, in which records cancel out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class MasConfig(StrategyConfig):
    """Config of the penalty on changes of important weights."""

    name: Literal["mas"] = "mas"
    strength: float = Field(
        0.05,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the penalty on moving weights (lambda); 0 is naive training.",
    )
    decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor on the importances so far when an experience adds its own; 1 forgets none.",
    )
    importance_records: int = Field(
        1000, ge=1, description="Records of an experience, at most, that importances are estimated from."
    )


def plugins(config: MasConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.importance import AnswerSensitivity

    return [
        AnswerSensitivity(strength=config.strength, decay=config.decay, records=config.importance_records)
    ]


def build(config: MasConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner without a penalty yet."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
