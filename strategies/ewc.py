"""Elastic weight consolidation, online: weights that mattered are held near where they were.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (arXiv:1612.00796);
one decaying importance instead of one an experience: Schwarz et al., "Progress & Compress", ICML 2018
(arXiv:1805.06370).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo

if TYPE_CHECKING:
    from strategies.avalanche_parts import SupervisedPlugin


class EwcConfig(StrategyConfig):
    """How firmly the past is held."""

    name: Literal["ewc"] = "ewc"
    strength: float = Field(
        3000.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the penalty on moving weights (lambda); 0 is naive training. "
        "Importances come from batch means and are small, so it is large; sgd needs less than adamw.",
    )
    decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor on the importances so far when an experience adds its own; 1 forgets none.",
    )
    fisher_records: int = Field(
        5000, ge=1, description="Records of an experience, at most, that importances are estimated from."
    )


def plugins(config: EwcConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """What this adds to plain training, alone or beside others; `batch_size`: new records a step."""
    from strategies.regularizers import OnlineEwc

    return [OnlineEwc(strength=config.strength, decay=config.decay, fisher_records=config.fisher_records)]


def build(config: EwcConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner that nothing holds yet."""
    from strategies.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
