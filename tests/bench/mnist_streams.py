"""MNIST as streams of experiences, for the benchmarks of strategies. HOLDFAST_TEST_DATA holds the images."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.base import Learner, StreamInfo
from strategies.catalog import STRATEGIES
from streams.base import Experience
from streams.sources.mnist import Part
from streams.sources.mnist import mnist as idx_files

INFO = StreamInfo(shape=(784,), classes=tuple("0123456789"))
Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]


@cache
def mnist(part: Part) -> Arrays:
    """Images as (n, 784) in 0 to 1, and their digits."""
    images, labels = idx_files(str(Path(os.environ["HOLDFAST_TEST_DATA"]) / "mnist"), part)
    return images.reshape(-1, 784).astype(np.float32) / np.float32(255), labels.astype(np.int64)


@cache
def split() -> Sequence[Arrays]:
    """Five experiences of two classes each."""
    images, labels = mnist("train")
    chosen = [np.flatnonzero(labels // 2 == place) for place in range(5)]
    return [(images[places], labels[places]) for places in chosen]


def permuted(step: int, part: Part, *, records: int) -> Arrays:
    """The first images, their pixels in an order of this step; those of step 0 stay as they are."""
    images, labels = mnist(part)
    order = np.random.default_rng(step).permutation(784) if step else np.arange(784)
    return images[:records].take(order, axis=1), labels[:records]


def experience(index: int, data: Arrays) -> Experience:
    return Experience(index, *data, np.zeros(len(data[1]), np.str_), {}, "")


def build(name: str, **settings: Any) -> Learner:
    """A learner on one CPU thread."""
    torch.set_num_threads(1)
    spec = STRATEGIES[name]
    return spec.build(spec.config.model_validate({"device": "cpu"} | settings), INFO)


def accuracy(learner: Learner, data: Arrays) -> float:
    images, labels = data
    return float((learner.predict(images).argmax(1) == labels).mean())
