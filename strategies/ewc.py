"""Elastic weight consolidation (EWC): penalises changes of weights by their Fisher information.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (arXiv:1612.00796);
one decaying importance instead of one an experience: Schwarz et al., "Progress & Compress", ICML 2018
(arXiv:1805.06370).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from strategies.base import Learner, StrategyConfig, StreamInfo

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class EwcConfig(StrategyConfig):
    """Config of the penalty on changes of important weights."""

    name: Literal["ewc"] = "ewc"
    strength: float = Field(
        3000.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the penalty on moving weights (lambda); 0 is naive training. "
        "Importances come from batch means and are small, so it is large; sgd needs less than adamw.",
    )
    mode: Literal["online", "separate"] = Field(
        "online",
        description="online: one penalty, whose anchor moves on with each experience. separate: a penalty "
        "an experience, each with its own anchor; both take the same bounded memory.",
    )
    decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor on the importances so far when an experience adds its own; 1 forgets none.",
    )
    fisher: Literal["batches", "records"] = Field(
        "batches",
        description="batches: squared gradients of batch means, as Avalanche takes them. records: the exact "
        "mean over records, which is about batch_size times as large: divide strength by that.",
    )
    fisher_records: int = Field(
        5000, ge=1, description="Records of an experience, at most, that importances are estimated from."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mode == "separate" and self.decay != 1:
            raise ValueError("decay belongs to mode online; with separate penalties none fades")
        return self


def plugins(config: EwcConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.importance import FisherInformation

    return [
        FisherInformation(
            strength=config.strength,
            mode=config.mode,
            decay=config.decay,
            fisher=config.fisher,
            records=config.fisher_records,
        )
    ]


def build(config: EwcConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner without a penalty yet."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
