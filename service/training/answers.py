"""Holdouts in the order in which they are judged, and the answers of a model on them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.gate.base import Bits, Column, Details
from strategies.base import Learner
from streams.base import Experience


@dataclass(frozen=True)
class Answers:
    """The answers of one model on a holdout."""

    bits: Bits
    details: Details | None = None
    """None for the majority class, which has no probabilities."""


@dataclass(frozen=True)
class HoldoutRecords:
    """Labels and groups of a holdout's records, as the gate needs them."""

    labels: NDArray[np.int64]
    groups: Mapping[str, Column] = field(default_factory=dict)


def answer(learner: Learner, holdout: Experience) -> Answers:
    """The model's answers on every record, from one pass."""
    if not len(holdout):
        return Answers(np.zeros(0, dtype=bool), details(np.zeros((0, 1), np.float32), holdout.labels))
    probabilities = learner.predict(holdout.inputs)
    right: Bits = probabilities.argmax(axis=1) == holdout.labels
    return Answers(right, details(probabilities, holdout.labels))


def details(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Details:
    """The details of (n, n_classes) probabilities, given the (n,) true class ids."""
    rows = np.arange(len(labels))
    if not len(labels):
        empty = np.zeros(0, np.float32)
        return Details(np.zeros(0, np.int32), empty, empty)
    truth = probabilities[rows, labels].astype(np.float64)
    squares = np.square(probabilities, dtype=np.float64).sum(axis=1)
    return Details(
        predicted=probabilities.argmax(axis=1).astype(np.int32),
        confidence=probabilities.max(axis=1).astype(np.float32),
        # sum (p - y)^2 = sum p^2 - 2 p[y] + 1; rounding may take it a hair below 0.
        brier=np.maximum(squares - 2 * truth + 1, 0.0).astype(np.float32),
        score=probabilities[:, 1].astype(np.float32) if probabilities.shape[1] == 2 else None,
    )


def records_of(holdout: Experience) -> HoldoutRecords:
    """Labels and group columns of a holdout."""
    groups = {name: Column.of(np.asarray(values)) for name, values in holdout.groups.items()}
    return HoldoutRecords(np.array(holdout.labels, dtype=np.int64), groups)


def judged(holdout: Experience, records: int | None) -> Experience:
    """The first `records` of a holdout in judging order; None: all of them, in that order."""
    order = judging_order(holdout.labels, seed=holdout.digest)[:records]
    return Experience(
        index=holdout.index,
        inputs=holdout.inputs[order],
        labels=holdout.labels[order],
        record_ids=holdout.record_ids[order],
        groups={name: values[order] for name, values in holdout.groups.items()},
        digest=holdout.digest,
    )


def judging_order(labels: NDArray[np.int64], *, seed: str) -> NDArray[np.int64]:
    """Indices (n,) of a holdout's records, ordered so that the first ones are a sample stratified by class.

    The order depends on the labels and the seed alone: the answers on fewer records of a holdout are the
    first of the answers on more.
    """
    random = np.random.default_rng(np.frombuffer(hashlib.sha256(seed.encode()).digest(), dtype=np.uint32))
    shuffled = random.permutation(len(labels))
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        # Each class spreads its records evenly over the whole order.
        rank[members] = (np.arange(len(members)) + random.random()) / len(members)
    return np.argsort(rank, kind="stable")


def sample(holdouts: Sequence[Experience], *, limit: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Inputs and labels of at most `limit` records of all holdouts, drawn uniformly."""
    ends = np.cumsum([len(holdout) for holdout in holdouts])
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:limit])
    inputs, labels = [], []
    for holdout, end in zip(holdouts, ends, strict=True):
        rows = chosen[(chosen >= end - len(holdout)) & (chosen < end)] - (end - len(holdout))
        inputs.append(holdout.inputs[rows])
        labels.append(holdout.labels[rows])
    return np.concatenate(inputs), np.concatenate(labels)


def majority_right(experience: Experience, holdout: Experience) -> Bits:
    """(n,) where a holdout's label is the most frequent class of `experience`."""
    majority = np.bincount(experience.labels).argmax()
    right: Bits = holdout.labels == majority
    return right
