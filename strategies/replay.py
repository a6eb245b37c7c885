"""Experience replay: every step mixes new records with records kept from the past.

Rolnick et al., "Experience Replay for Continual Learning", NeurIPS 2019 (arXiv:1811.11682); Chaudhry et
al., "On Tiny Episodic Memories in Continual Learning", 2019 (arXiv:1902.10486).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin


Balance = Annotated[
    Literal["records", "classes", "experiences"],
    Field(
        description="records: a uniform sample of all records ever seen. "
        "classes: equal shares of the classes seen, uniform within each. "
        "experiences: equal shares of the experiences learnt, uniform within each."
    ),
]


class RehearsalConfig(StrategyConfig):
    """Settings of strategies with a replay buffer: its capacity, and the kept records in a step."""

    capacity: int = Field(
        1000, ge=1, le=10_000_000, description="Records kept; the memory they take never exceeds this."
    )
    replay_batch_size: int | None = Field(
        None, ge=1, le=65536, description="Kept records a step; unset means as many as new ones."
    )
    balance: Balance = "records"

    def capacity_problem(self, classes: int) -> tuple[str, str] | None:
        """Why the capacity is too small for a strategy that keeps at least a record of each class."""
        if classes <= self.capacity:
            return None
        few = f"{self.name} keeps a record of each class at least; {classes} do not fit in {self.capacity}"
        return "capacity", few


class ReplayConfig(RehearsalConfig):
    """Config of experience replay."""

    name: Literal["replay"] = "replay"


def plugins(config: ReplayConfig, *, batch_size: int) -> "Sequence[SupervisedPlugin]":
    """The plugins of this strategy, alone or in a combination; `batch_size`: new records in a step."""
    from strategies.plugins.buffers import ReplayBuffer, ReplayPlugin

    buffer = ReplayBuffer(config.capacity, config.balance)
    return [ReplayPlugin(buffer, replayed=config.replay_batch_size or batch_size)]


def build(config: ReplayConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty replay buffer."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info, plugins=plugins(config, batch_size=config.batch_size))
