"""Experience replay: every step mixes new records with records kept from the past.

Rolnick et al., "Experience Replay for Continual Learning", NeurIPS 2019 (arXiv:1811.11682); Chaudhry et
al., "On Tiny Episodic Memories in Continual Learning", 2019 (arXiv:1902.10486).
"""

from typing import Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo


class RehearsalConfig(StrategyConfig):
    """How much of the past is kept, and how much of it a step sees."""

    capacity: int = Field(
        1000, ge=1, le=10_000_000, description="Records kept; the memory they take never exceeds this."
    )
    replay_batch_size: int | None = Field(
        None, ge=1, le=65536, description="Kept records a step; unset means as many as new ones."
    )
    balance: Literal["records", "classes"] = Field(
        "records",
        description="records: a uniform sample of all records ever seen. "
        "classes: equal shares of the classes seen, uniform within each.",
    )

    @property
    def replayed(self) -> int:
        """Kept records a step."""
        return self.replay_batch_size or self.batch_size


class ReplayConfig(RehearsalConfig):
    """How much of the past is kept, and how much of it a step sees."""

    name: Literal["replay"] = "replay"


def build(config: ReplayConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty replay buffer."""
    from strategies.buffers import ReplayBuffer, ReplayPlugin
    from strategies.learner import AvalancheLearner

    buffer = ReplayBuffer(config.capacity, config.balance)
    plugin = ReplayPlugin(buffer, replayed=config.replayed)
    return AvalancheLearner(config, stream_info, plugins=[plugin])
