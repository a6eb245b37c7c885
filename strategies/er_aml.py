"""ER-AML: replay with a metric loss on features of new records; the head learns from kept ones.

Caccia et al., "New Insights on Reducing Abrupt Representation Change in Online Continual Learning", ICLR 2022
(arXiv:2104.05025), the sibling of ER-ACE: features of old classes are not pushed about by records that
cannot be theirs. For each new record the paper draws one record of its class and one of another; here all
that the step holds take part, which needs no second pass through the network.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from strategies.base import Learner, StreamInfo
from strategies.replay import Balance, RehearsalConfig

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class ErAmlConfig(RehearsalConfig):
    """Config of ER-AML: the replay buffer, and the metric loss on features of new records."""

    refused: ClassVar[Mapping[str, str]] = {"early_stop": "records put aside would be learnt as kept ones"}

    name: Literal["er-aml"] = "er-aml"
    balance: Balance = "classes"
    temperature: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="Divides the cosines of features before they are compared; the lower, the more the "
        "nearest count.",
    )
    contrast: float = Field(
        0.3,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the loss on features of new records next to that on labels of kept ones; the "
        "paper has 1, and 0 learns kept records only.",
    )


def plugins(config: ErAmlConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.buffers import ReplayBuffer
    from strategies.plugins.metric_rehearsal import AsymmetricMetric

    buffer = ReplayBuffer(config.capacity, config.balance)
    replayed = config.replay_batch_size or batch_size
    return [AsymmetricMetric(buffer, replayed, temperature=config.temperature, strength=config.contrast)]


def build(config: ErAmlConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty replay buffer."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
