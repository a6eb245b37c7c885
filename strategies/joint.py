"""Joint training: a fresh network on all records so far, as if they had not arrived one after the other.

Like `cumulative` it keeps every record up to a wall; unlike it, nothing is left of the order they came in.
"""

from typing import Literal

from strategies.base import Learner, StreamInfo
from strategies.cumulative import CumulativeConfig


class JointConfig(CumulativeConfig):
    """Config of joint training: the limit of records kept."""

    name: Literal["joint"] = "joint"  # type: ignore[assignment]  # the same knobs under another name


def build(config: JointConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner that keeps no record yet."""
    from strategies.learning.learner import AvalancheLearner
    from strategies.plugins.buffers import CumulativePlugin

    plugin = CumulativePlugin(config.max_records, fresh=True)
    return AvalancheLearner(config, stream_info, plugins=[plugin])
