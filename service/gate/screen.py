"""Screen of a batch alone: does each record look like its neighbours, and do they carry the same label?

No model and no earlier record is needed, only the numbers of earlier screens, so a batch that is new on
purpose (rotated, brighter, other classes) looks healthy, while broken pixels and shuffled labels do not.

The distance of a record is a ratio: the mean distance to its 5 nearest neighbours, divided by its own
distance to the nearest quarter of the sample. It lies between 0 and 1, where 1 says "no neighbour is nearer
than anybody else". Any scale divides out, so standardising inside the batch hides nothing: uniform noise,
which standardises to the same unit variance as digits do, has ratios near 0.9, digits near 0.6. Measured on
rotated and on split digits and on MNIST, for samples of 256:

- the raw distance calls bold strokes anomalous: its 99th percentile on clean digits (1.04 of the median
  distance) lies above all noise (0.90), so it sees nothing;
- divided by the record's own *median* distance, noise in all records is caught, but in 40 % of them less
  than one broken record in ten is: they are far from the clean ones, and that inflates their median;
- divided by the distance to the nearest *quarter*, at least 32 of those 40 % exceed every clean limit. A
  nearer tenth, the 20th to 40th neighbour and an estimate of the local dimension did no better.

The threshold stands a tenth of the way from the largest reference limit to 1. Without it, clean MNIST 2s
and 3s looked broken to a stream that had only seen 0s and 1s (21 % beyond the limit, with it 11 %), while of
40 % broken records 30 % or more still exceed it.

Wide records are scaled to unit length, so that direction counts and boldness does not; without it, permuted
MNIST pixels pass in two records of three. With few features there is not enough direction left, and there
noise differs little from data: on six-column tables the label check is the one that sees broken values.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.gate.base import DataEvidence, Screen

SAMPLE_SIZES = (64, 128, 256, 512)
NEIGHBOURS = 5
LIMIT_PERCENTILE = 99
REFERENCE_ANOMALY_RATE = 0.01

_HEADROOM = 0.1
"""How far the threshold stands from the largest reference limit towards 1."""

_EXAMINED = 1024
"""Records in all subsamples of one size together; more would cost time and change little."""
_WIDE = 16
"""Features from which on a record is scaled to unit length."""
_ROWS_AT_ONCE = 4096


def profile(inputs: NDArray[np.generic], labels: ArrayLike, *, seed: int = 0) -> Screen:
    """The screen of a batch: inputs (n, *shape), labels (n,). The same arguments give the same screen.

    Records with a NaN or infinite feature are left out; sizes above the number of the others are too.
    """
    features, classes = _sample(inputs, np.asarray(labels), seed)
    sizes = tuple(size for size in SAMPLE_SIZES if size <= len(features))
    measured = [_measure(features, classes, size=size, seed=seed) for size in sizes]
    return Screen(
        sizes=sizes,
        label_errors=tuple(float(differs.mean()) for differs, _ in measured),
        distance_limits=tuple(float(np.percentile(ratios, LIMIT_PERCENTILE)) for _, ratios in measured),
    )


def data_evidence(
    inputs: NDArray[np.generic],
    labels: ArrayLike,
    *,
    n_classes: int,
    shape: Sequence[int],
    reference: Sequence[Screen],
    seed: int = 0,
) -> DataEvidence:
    """Evidence for the data guard: a batch compared with the screens of earlier experiences.

    Compared at the largest sample size that the batch shares with at least half of the references: so one
    tiny experience does not blunt the screen for ever. Expected are the mean of the references' label errors
    and one record in a hundred beyond the largest of their distance limits.
    """
    classes = np.asarray(labels)
    known = [screen for screen in reference if screen.sizes]
    problem = _problem(inputs, classes, n_classes=n_classes, shape=tuple(shape))
    if problem is not None:
        return DataEvidence(len(inputs), 0, misshapen=problem, has_reference=bool(known))
    nonfinite = _count_nonfinite(inputs)
    bare = DataEvidence(len(inputs), nonfinite, has_reference=bool(known))
    size = _common_size(len(inputs) - nonfinite, known)
    if size is None:
        return bare
    features, classes = _sample(inputs, classes, seed)
    if len(features) < size:
        return bare
    differs, ratios = _measure(features, classes, size=size, seed=seed)
    matching = [(screen, screen.sizes.index(size)) for screen in known if size in screen.sizes]
    limit = max(screen.distance_limits[index] for screen, index in matching)
    threshold = limit + _HEADROOM * (1 - limit)
    return DataEvidence(
        records=len(inputs),
        nonfinite_records=nonfinite,
        sample=min(len(features), differs.size),
        label_error_rate=float(differs.mean()),
        reference_label_error_rate=float(np.mean([s.label_errors[index] for s, index in matching])),
        anomaly_rate=float((ratios > threshold).mean()),
        reference_anomaly_rate=REFERENCE_ANOMALY_RATE,
        has_reference=True,
    )


def _common_size(records: int, known: Sequence[Screen]) -> int | None:
    """The largest sample size that the batch shares with at least half of the known screens."""
    shared = [
        size
        for size in SAMPLE_SIZES
        if size <= records and 0 < len(known) <= 2 * sum(size in screen.sizes for screen in known)
    ]
    return max(shared, default=None)


def _problem(
    inputs: NDArray[np.generic], labels: NDArray[np.generic], *, n_classes: int, shape: tuple[int, ...]
) -> str | None:
    """Why the arrays are not a batch of this stream; None: they are."""
    if inputs.ndim == 0 or inputs.shape[1:] != shape:
        return f"records have the shape {inputs.shape[1:]}, {shape} was declared"
    if inputs.dtype.kind not in "fiub":
        return f"features are of type {inputs.dtype}, numbers were expected"
    if labels.shape != (len(inputs),):
        return f"{len(inputs)} records came with labels of shape {labels.shape}"
    if labels.dtype.kind not in "iu":
        return f"labels are of type {labels.dtype}, whole class numbers were expected"
    whole = labels.astype(np.int64)
    strange = whole[(whole < 0) | (whole >= n_classes)]
    if len(strange):
        return f"label {strange[0]} is not one of the {n_classes} classes (0 to {n_classes - 1})"
    return None


def _count_nonfinite(inputs: NDArray[np.generic]) -> int:
    """Records with a NaN or infinite feature, a few rows at a time: a batch may be larger than memory."""
    if inputs.dtype.kind != "f":
        return 0
    return sum(
        int((~_finite_rows(inputs[start : start + _ROWS_AT_ONCE])).sum())
        for start in range(0, len(inputs), _ROWS_AT_ONCE)
    )


def _finite_rows(inputs: NDArray[np.generic]) -> NDArray[np.bool_]:
    rows = inputs.reshape(len(inputs), -1).astype(np.float64, copy=False)
    return np.asarray(np.isfinite(rows).all(axis=1), dtype=np.bool_)


def _sample(
    inputs: NDArray[np.generic], labels: NDArray[np.generic], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.generic]]:
    """Up to twice `_EXAMINED` finite records at random, standardised, and their labels."""
    if len(labels) != len(inputs):
        raise ValueError(f"{len(inputs)} records came with {len(labels)} labels")
    if not len(inputs):
        return np.empty((0, 1)), labels
    order = np.random.default_rng(seed).permutation(len(inputs))
    # A few spare rows, because some may not be finite; sorted, because the batch may be memory-mapped.
    chosen = np.sort(order[: 4 * _EXAMINED])
    raw = np.asarray(inputs[chosen], dtype=np.float64).reshape(len(chosen), -1)
    finite = np.flatnonzero(_finite_rows(raw))[: 2 * _EXAMINED]
    if not len(finite):
        return np.empty((0, 1)), labels[:0]
    return standardise(raw[finite]), labels[chosen[finite]]


def standardise(raw: NDArray[np.float64], *, tail: float = 1.0) -> NDArray[np.float64]:
    """Every column to mean 0 and variance 1, its tails clipped; wide records then to unit length.

    Clipping `tail` percent at either end keeps one absurd value from flattening its column. A column that
    is constant after that says nothing and becomes 0.
    """
    scale = np.abs(raw).max(axis=0)
    columns = raw / np.where(scale > 0, scale, 1.0)
    low, high = np.percentile(columns, [tail, 100 - tail], axis=0)
    columns = np.clip(columns, low, high)
    columns -= columns.mean(axis=0)
    spread = columns.std(axis=0)
    columns *= np.where(spread > 1e-9, 1 / np.maximum(spread, 1e-9), 0.0)
    if columns.shape[1] < _WIDE:
        return columns
    length = np.linalg.norm(columns, axis=1, keepdims=True)
    return np.asarray(columns / np.where(length > 0, length, 1.0), dtype=np.float64)


def _measure(
    features: NDArray[np.float64], labels: NDArray[np.generic], *, size: int, seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Over random subsamples of `size`: whether a label differs from its neighbours', and the ratio."""
    random = np.random.default_rng((seed, size))
    draws = [random.choice(len(features), size, replace=False) for _ in range(max(1, _EXAMINED // size))]
    measured = [_against_neighbours(features[draw], labels[draw]) for draw in draws]
    return np.concatenate([differs for differs, _ in measured]), np.concatenate([r for _, r in measured])


def _against_neighbours(
    features: NDArray[np.float64], labels: NDArray[np.generic]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Of each record in a subsample: does its label differ from its neighbours', and the distance ratio."""
    n = len(features)
    squares = (features**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * features @ features.T, 0.0))
    np.fill_diagonal(distances, np.inf)
    nearest = np.argpartition(distances, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    rising = np.take_along_axis(distances, nearest, axis=1).argsort(axis=1)
    nearest = np.take_along_axis(nearest, rising, axis=1)
    near = np.take_along_axis(distances, nearest, axis=1).mean(axis=1)
    quarter = np.partition(distances, n // 4 - 1, axis=1)[:, n // 4 - 1]
    # Nothing is nearer than anything else where a quarter of the sample coincides: the ratio says so with 1.
    ratios = np.divide(near, quarter, out=np.ones(n), where=quarter > 1e-6)
    around = labels[nearest]
    votes = (around[:, :, None] == around[:, None, :]).sum(axis=2)
    # argmax takes the first of equals, so a tie goes to the nearer neighbour's label.
    majority = np.take_along_axis(around, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
    return majority != labels, ratios
