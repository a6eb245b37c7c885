"""SLDA: one Gaussian for each class over fixed features; no weight is trained, so nothing is forgotten.

Hayes and Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", CVPR Workshops
2020 (arXiv:1909.01520). The features are those of a frozen `backbone`, or of a network that stays as it was
drawn: many random features, of which a linear answer makes more than of the records themselves. What is
kept, the mean of each class and one covariance, is the same in whatever order the records come, but for
rounding (the paper's covariance depends on it), given the scaling, which is that of the first experience.
Shrinkage is towards equal variances of the size that the features have, where the paper's are 1.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from strategies.base import Learner, StrategyConfig, StreamInfo


class SldaConfig(StrategyConfig):
    """Config of SLDA: the number of features, and the shrinkage of their covariance.

    What says how a network is trained (optimizer, learning_rate, momentum, weight_decay, epochs) has no
    meaning here, and batch_size none but for the loss that is shown.
    """

    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("schedule", "warmup", "clip_gradient", "early_stop", "augment", "precision", "compile"),
        "no weight is ever trained, and each record counts once, as it is",
    )

    name: Literal["slda"] = "slda"
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        (1024,),
        max_length=64,
        description="Widths of the layers of random features; [] answers by the records themselves.",
    )
    shrinkage: float = Field(
        0.1,
        ge=1e-9,
        le=1,
        description="Share of the covariance that is replaced by equal variances; with few records, more.",
    )


def build(config: SldaConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner that counted nothing."""
    from strategies.learning.learner import AvalancheLearner
    from strategies.plugins.discriminant import StreamingDiscriminant, answers_by_gaussians

    plugin = StreamingDiscriminant(config.shrinkage)
    return AvalancheLearner(config, stream_info, plugins=[plugin], equip=answers_by_gaussians)
