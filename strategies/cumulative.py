"""Training on all records so far at every experience: an upper bound for other strategies.

It keeps a copy of every record, and the time of an experience grows with their number. Its bound is a wall,
not a window: an experience that would pass `max_records` is refused.
"""

from typing import Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo


class CumulativeConfig(StrategyConfig):
    """Config of cumulative training: the limit of records kept."""

    name: Literal["cumulative"] = "cumulative"
    early_stop: None = Field(
        None, description="Has no meaning here: records put aside would be among those that are learnt."
    )
    max_records: int = Field(
        100_000, ge=1, description="Records kept, at most; an experience that would pass it is refused."
    )


def build(config: CumulativeConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner that keeps no record yet."""
    from strategies.learning.learner import AvalancheLearner
    from strategies.plugins.buffers import CumulativePlugin

    return AvalancheLearner(config, stream_info, plugins=[CumulativePlugin(config.max_records)])
