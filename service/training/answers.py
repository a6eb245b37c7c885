"""One pass of a model over a holdout: right or wrong, and what else the gate may ask of each record."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.gate.base import Bits, Column, Details
from strategies.base import Learner
from streams.base import Experience

FORM = 1
"""Of packed details. A form that is not known reads as no details: they are computed again."""


@dataclass(frozen=True)
class Answers:
    """What one model said of a holdout."""

    bits: Bits
    details: Details | None = None
    """None: it said nothing of single records, as the majority class does."""


@dataclass(frozen=True)
class HoldoutRecords:
    """What the gate must know of a holdout's records themselves."""

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
    """Of (n, n_classes) probabilities and the (n,) class ids that are true."""
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


def pack(said: Details) -> bytes:
    """The bytes that a database keeps."""
    columns = {"predicted": said.predicted.astype("<i4").tobytes()}
    columns |= {name: getattr(said, name).astype("<f4").tobytes() for name in ("confidence", "brier")}
    if said.score is not None:
        columns["score"] = said.score.astype("<f4").tobytes()
    return msgspec.msgpack.encode({"form": FORM, **columns})


def unpack(packed: bytes | None) -> Details | None:
    """What `pack` packed; None: there was nothing, or it is of another form."""
    if packed is None:
        return None
    columns = msgspec.msgpack.decode(packed)
    if columns["form"] != FORM:
        return None
    return Details(
        predicted=np.frombuffer(columns["predicted"], "<i4"),
        confidence=np.frombuffer(columns["confidence"], "<f4"),
        brier=np.frombuffer(columns["brier"], "<f4"),
        score=np.frombuffer(columns["score"], "<f4") if "score" in columns else None,
    )
