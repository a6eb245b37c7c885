"""SCR: supervised contrastive replay; classifies by the nearest mean of kept records.

Mai et al., "Supervised Contrastive Replay: Revisiting the Nearest Class Mean Classifier in Online
Class-Incremental Continual Learning", CVPR Workshops 2021 (arXiv:2103.13885). New and kept records of a class
are drawn together, by the supervised contrastive loss on a projection that is used for nothing else; the head
is not trained. The second view of a record, which the paper makes by cropping, turning and colouring images,
is the record with noise on its scaled features: it has a meaning for tables too.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from strategies.base import Learner, StreamInfo
from strategies.replay import RehearsalConfig


class ScrConfig(RehearsalConfig):
    """Config of SCR: the replay buffer, and the contrastive loss."""

    refused: ClassVar[Mapping[str, str]] = {
        "early_stop": "it answers by means that are taken after an experience",
        "precision": "its loss compares features in float32",
        "compile": "its loss is taken on a projection, which is not compiled",
    }

    name: Literal["scr"] = "scr"
    balance: Literal["classes"] = Field(
        "classes", description="classes: the classes seen share the capacity evenly; there is no other way."
    )
    noise: float = Field(
        0.1,
        ge=0,
        allow_inf_nan=False,
        description="Deviation of the noise on scaled features that makes the second view of a record.",
    )
    contrast_temperature: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="Cosines are divided by it in the loss: the smaller, the more the nearest others count.",
    )
    projection: int = Field(
        128, ge=1, le=65536, description="Width of the projection that the loss is taken on."
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


def build(config: ScrConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with an empty replay buffer."""
    from strategies.learning.learner import AvalancheLearner
    from strategies.learning.networks import Network
    from strategies.plugins.buffers import ReplayBuffer
    from strategies.plugins.prototypes import ContrastiveReplay, answers_by_means, projects

    plugin = ContrastiveReplay(
        ReplayBuffer(config.capacity, config.balance),
        replayed=config.replay_batch_size or config.batch_size,
        noise=config.noise,
        contrast_temperature=config.contrast_temperature,
        temperature=config.temperature,
    )

    def equip(network: Network) -> None:
        answers_by_means(network)
        projects(network, width=config.projection)

    return AvalancheLearner(config, stream_info, plugins=[plugin], equip=equip)
