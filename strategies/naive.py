"""Plain training on each experience, with nothing against forgetting: what other strategies must beat."""

from typing import Literal

from strategies.base import Learner, StrategyConfig, StreamInfo


class NaiveConfig(StrategyConfig):
    """Config of plain training: no settings of its own."""

    name: Literal["naive"] = "naive"


def build(config: NaiveConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner that trains on each experience and no more."""
    from strategies.learning.learner import AvalancheLearner

    return AvalancheLearner(config, stream_info)
