"""ER-ACE: replay whose loss on new records is taken over the classes among them only.

Caccia et al., "New Insights on Reducing Abrupt Representation Change in Online Continual Learning", ICLR 2022
(arXiv:2104.05025). New records are separated from each other only, kept records from all classes: so the
rows of old classes are not pushed down by records that cannot be theirs. Where all classes come in every
batch, it is replay with the two losses added.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from strategies.base import Learner, StreamInfo
from strategies.replay import Balance, RehearsalConfig

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


class ErAceConfig(RehearsalConfig):
    """Config of ER-ACE: the replay buffer."""

    refused: ClassVar[Mapping[str, str]] = {"early_stop": "records put aside would be learnt as kept ones"}

    name: Literal["er-ace"] = "er-ace"
    balance: Balance = "classes"


def plugins(config: ErAceConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.buffers import ReplayBuffer
    from strategies.plugins.rehearsal import AsymmetricReplay

    buffer = ReplayBuffer(config.capacity, config.balance)
    return [AsymmetricReplay(buffer, replayed=config.replay_batch_size or batch_size)]


def build(config: ErAceConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty replay buffer."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
