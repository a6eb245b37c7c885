"""Parts that tests of networks share: digits as images, every network, and weights made here."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torchvision.models import resnet18

from strategies.base import StreamInfo
from strategies.catalog import STRATEGIES
from strategies.learning.learner import AvalancheLearner
from strategies.network_choice import Installation
from streams.base import Experience
from tests.support import own_networks

INFO = StreamInfo(shape=(1, 8, 8), classes=tuple("0123456789"))
WEIGHTS = "drawn-resnet18.pth"
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp"},
    "mlp, dropout": {"name": "mlp", "dropout": 0.3, "norm": "layer"},
    "cnn": {"name": "cnn", "channels": (8, 16)},
    "cnn, batch": {"name": "cnn", "channels": (8, 16), "norm": "batch"},
    "cnn, none": {"name": "cnn", "channels": (8, 16), "norm": "none"},
    "resnet18": {"name": "resnet18"},
    "backbone, frozen": {"name": "backbone", "weights": WEIGHTS, "size": 32},
    "backbone": {"name": "backbone", "weights": WEIGHTS, "frozen": False},
    "own": {"name": "own", "of": "normalised"},
}
"""Small ones of each kind."""


def installation(folder: Path) -> Installation:
    """All of `tests.support.own_networks`, and the weights of a ResNet-18 as drawn: nothing is downloaded."""
    torch.manual_seed(0)
    torch.save(resnet18(weights=None).state_dict(), folder / WEIGHTS)
    names = [name for name in vars(own_networks) if name[0].islower()]
    functions = {name.replace("_", "-"): f"tests.support.own_networks:{name}" for name in names}
    return Installation(networks=functions, weights=folder)


@cache
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Real images (1797, 1, 8, 8) in 0 to 1, in an order that mixes the writers, and their digits."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    shaped = (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return shaped, labels[order].astype(np.int64)


def experience(index: int, start: int, stop: int, *, below: int = 10, dtype: str = "float32") -> Experience:
    """Digits below `below`, of those from `start` to `stop`."""
    images, labels = digits()
    chosen = np.flatnonzero(labels[start:stop] < below) + start
    taken = images[chosen]
    stored = taken if dtype == "float32" else (taken * 255).round().astype(np.uint8)
    return Experience(index, stored, labels[chosen], chosen.astype(str), {}, "")


def build(
    network: str, strategy: str = "naive", /, info: StreamInfo = INFO, **settings: Any
) -> AvalancheLearner:
    small = {"hidden": (16,), "epochs": 1, "batch_size": 16, "device": "cpu", "network": NETWORKS[network]}
    spec = STRATEGIES[strategy]
    learner = spec.build(spec.config.model_validate({"name": strategy} | small | settings), info)
    assert isinstance(learner, AvalancheLearner)
    return learner


def accuracy(learner: AvalancheLearner, held_out: Experience) -> float:
    return float((learner.predict(held_out.inputs).argmax(1) == held_out.labels).mean())
