"""iCaRL: replays exemplars of each class, chosen by herding, and classifies by their nearest mean.

Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017 (arXiv:1611.07725). The
head is trained with a sigmoid a class, old classes by what the network before the experience answered; it
shapes the features and answers nothing. Nothing is known of classes to come, and classes may come back:
these count as new ones, and their exemplars are chosen out of the old ones and the new records. The paper
trains on exemplars and new records in one heap; here a step takes a share of each, as with the other
strategies.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from strategies.base import Learner, StreamInfo
from strategies.replay import RehearsalConfig


class IcarlConfig(RehearsalConfig):
    """Config of iCaRL: the exemplars, and the temperature of the answers."""

    refused: ClassVar[Mapping[str, str]] = {"early_stop": "it answers by means taken after an experience"}

    name: Literal["icarl"] = "icarl"
    epochs: int = Field(30, ge=1, le=10_000, description="Passes over an experience; the paper makes 70.")
    balance: Literal["classes"] = Field(
        "classes", description="classes: the classes seen share the capacity evenly; there is no other way."
    )
    temperature: float = Field(
        0.05,
        gt=0,
        allow_inf_nan=False,
        description="Answers are the softmax of cosines over it: the smaller, the surer; "
        "which class comes first stays.",
    )

    def problem(self, shape: Sequence[int], dtype: str, *, classes: int = 0) -> tuple[str, str] | None:
        return super().problem(shape, dtype) or self.capacity_problem(classes)


def build(config: IcarlConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner without exemplars or a teacher."""
    from strategies.learning.learner import AvalancheLearner
    from strategies.plugins.distillation import SigmoidDistillation
    from strategies.plugins.prototypes import HerdedReplay, answers_by_means

    exemplars = HerdedReplay(
        config.capacity,
        replayed=config.replay_batch_size or config.batch_size,
        temperature=config.temperature,
    )
    # The teacher looks at what a step is made of, so it comes after what decides that.
    plugins = [exemplars, SigmoidDistillation()]
    return AvalancheLearner(config, stream_info, plugins=plugins, equip=answers_by_means)
