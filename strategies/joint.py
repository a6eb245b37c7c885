"""A fresh network on all records so far at every experience: what could be learnt if nothing came in turns.

Like `cumulative` it keeps every record up to a wall; unlike it, nothing is left of the order they came in.
"""

from typing import Literal

from strategies.base import Learner, StreamInfo
from strategies.cumulative import CumulativeConfig


class JointConfig(CumulativeConfig):
    """Where the growth must end."""

    name: Literal["joint"] = "joint"  # type: ignore[assignment]  # the same knobs under another name


def build(config: JointConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner that keeps no record yet."""
    from strategies.learning.learner import AvalancheLearner
    from strategies.plugins.buffers import CumulativePlugin

    plugin = CumulativePlugin(config.max_records, anew=True)
    return AvalancheLearner(config, stream_info, plugins=[plugin])
