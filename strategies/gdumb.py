"""GDumb: keeps a balanced sample, and trains a fresh network on it at every experience.

Prabhu et al., "GDumb: A Simple Approach that Questions Our Progress in Continual Learning", ECCV 2020. It
forgets nothing that is in the sample and knows nothing that is not: what a strategy must beat that keeps as
many records. The scaling of features stays that of the first experience. The paper's cutmix and its schedule
are left out.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from strategies.base import Learner, StreamInfo
from strategies.replay import Balance, RehearsalConfig


class GdumbConfig(RehearsalConfig):
    """Config of GDumb: the size of the sample, and the epochs."""

    name: Literal["gdumb"] = "gdumb"
    epochs: int = Field(50, ge=1, le=10_000, description="Passes over the sample.")
    balance: Balance = "classes"
    early_stop: None = Field(
        None, description="Has no meaning here: records put aside would be among those that are learnt."
    )
    replay_batch_size: None = Field(None, description="Has no meaning here: every record is a kept one.")

    def problem(self, shape: Sequence[int], dtype: str, *, classes: int = 0) -> tuple[str, str] | None:
        return super().problem(shape, dtype) or self.capacity_problem(classes)


def build(config: GdumbConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty sample."""
    from strategies.learning.learner import AvalancheLearner
    from strategies.plugins.buffers import ReplayBuffer
    from strategies.plugins.rehearsal import FromScratch

    plugin = FromScratch(ReplayBuffer(config.capacity, config.balance))
    return AvalancheLearner(config, stream_info, plugins=[plugin])
