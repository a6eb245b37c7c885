"""Detects a shift between two samples, by a battery of two-sample tests, and measures its size.

Three cheap tests together see what each alone misses (Rabanser et al. 2019, "Failing Loudly"):
Kolmogorov-Smirnov on every feature, the same on a model's class probabilities (BBSD), and chi-square on its
predicted labels. A small p-value says that something moved, not that it does harm: the effect sizes
measure that.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

MIN_RECORDS = 50
"""Fewer on either side, and nothing is decided."""
MIN_EXPECTED = 5.0
"""Chi-square holds from this many expected records a class; rarer classes are counted together."""

TestName = Literal["features", "probabilities", "labels"]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Columns:
    """A sample, with each feature sorted once so that many windows can be compared with it."""

    values: NDArray[np.generic]
    """(features, n) each row ascending."""

    @classmethod
    def of(cls, sample: NDArray[np.generic]) -> "Columns":
        """The columns of (n, *shape) values."""
        flat = sample.reshape(len(sample), math.prod(sample.shape[1:]))
        return cls(np.sort(np.ascontiguousarray(flat.T), axis=1))

    def __len__(self) -> int:
        return int(self.values.shape[1])

    @property
    def features(self) -> int:
        """Number of features."""
        return int(self.values.shape[0])


@dataclass(frozen=True)
class Answers:
    """The predictions of one model on both samples."""

    reference: NDArray[np.floating]
    """(n, classes) probabilities for the reference."""
    window: NDArray[np.floating]
    """(m, classes) probabilities for the window."""
    confusion: NDArray[np.integer] | None = None
    """(classes, classes) counts by true and by predicted class, on labelled records like the reference."""
    accuracy: float | None = None
    """The model's accuracy on labelled records like the reference."""


@dataclass(frozen=True)
class Shift:
    """Result of the battery of tests."""

    verdict: Literal["shifted", "same", "undecided"]
    """`same`: no evidence of a shift. `undecided`: too few records for any evidence."""
    alpha: float
    """Chance of `shifted` when reference and window are samples of one distribution, at most."""
    p_values: dict[TestName, float]
    """p-value of each test, corrected for all comparisons; `shifted` if one is at most alpha."""
    distance: float
    """Largest KS distance of a feature, 0..1."""
    feature: int | None
    """Its index among the flattened features; None when all features are constant or nothing was compared."""
    features: int
    """Number of features that vary, hence were compared."""
    reference_records: int
    window_records: int
    prior_shift: float | None = None
    """Total variation between the classes' shares, 0..1, estimated by BBSE (Lipton et al. 2018)."""
    estimated_accuracy: float | None = None
    """Accuracy on the window, estimated by the difference of mean confidences (Guillory et al. 2021)."""

    @property
    def p_value(self) -> float:
        """The smallest of the corrected p-values; 1 when no test was made."""
        return min(self.p_values.values(), default=1.0)


def battery(
    reference: Columns | NDArray[np.generic],
    window: NDArray[np.generic],
    *,
    alpha: float,
    answers: Answers | None = None,
) -> Shift:
    """Compare a window (m, *shape) with a reference (n, *shape).

    Bonferroni over the features of a test and over the tests, so that a false alarm has probability alpha at
    most a window, whatever the distribution, as long as records are independent.
    """
    columns = reference if isinstance(reference, Columns) else Columns.of(reference)
    tests = 1 if answers is None else 3
    if not can_decide(len(columns), len(window), columns.features * tests, alpha):
        return Shift("undecided", alpha, {}, 0.0, None, 0, len(columns), len(window))
    distances, varying = ks_distances(columns, window)
    features = int(varying.sum())
    p_values: dict[TestName, float] = {
        "features": _corrected(distances, features * tests, len(columns), len(window))
    }
    if answers is not None:
        found, moving = ks_distances(Columns.of(answers.reference), answers.window)
        comparisons = int(moving.sum()) * tests
        p_values["probabilities"] = _corrected(found, comparisons, len(columns), len(window))
        p_values["labels"] = min(1.0, tests * label_p_value(answers.reference, answers.window))
    largest = int(np.argmax(distances)) if features else None
    return Shift(
        verdict="shifted" if min(p_values.values()) <= alpha else "same",
        alpha=alpha,
        p_values=p_values,
        distance=0.0 if largest is None else float(distances[largest]),
        feature=largest,
        features=features,
        reference_records=len(columns),
        window_records=len(window),
        prior_shift=None if answers is None else prior_shift(answers),
        estimated_accuracy=None if answers is None else estimated_accuracy(answers),
    )


def can_decide(reference: int, window: int, comparisons: int, alpha: float) -> bool:
    """Whether samples of these sizes can give an alarm at all, were they as different as can be."""
    if min(reference, window) < MIN_RECORDS:
        return False
    return comparisons * ks_p_value(1.0, reference, window) <= alpha


def ks_p_value(distance: float, reference: int, window: int) -> float:
    """Upper bound of P(D >= distance) for samples of one distribution, ties or not.

    The inequality of Dvoretzky, Kiefer, Wolfowitz and Massart for two samples (Wei and Dudley 2012). It
    needs no table. From `MIN_RECORDS` on it holds below 0.1, and is about twice the exact one at most.
    """
    effective = reference * window / (reference + window)
    return min(1.0, 2.0 * float(np.exp(-2.0 * effective * distance * distance)))


def ks_distances(
    reference: Columns, window: NDArray[np.generic]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(features,) the KS distance of each feature, and whether it varies at all in the two samples."""
    sorted_window = Columns.of(window).values
    n, m = len(reference), len(window)
    below, upto = np.arange(m) / m, np.arange(1, m + 1) / m
    distances = np.empty(reference.features)
    # Both suprema are met at, or just left of, a value of the window; among ties, the first and last hold it.
    for index, (known, seen) in enumerate(zip(reference.values, sorted_window, strict=True)):
        above = upto - np.searchsorted(known, seen, side="right") / n
        beneath = np.searchsorted(known, seen, side="left") / n - below
        distances[index] = max(above.max(), beneath.max(), 0.0)
    lowest = np.minimum(reference.values[:, 0], sorted_window[:, 0])
    highest = np.maximum(reference.values[:, -1], sorted_window[:, -1])
    return distances, lowest < highest


def label_p_value(reference: NDArray[np.floating], window: NDArray[np.floating]) -> float:
    """p-value of chi-square on predicted labels; 1 when there are too few records of all but one class."""
    classes = reference.shape[1]
    counts = np.stack([np.bincount(side.argmax(axis=1), minlength=classes) for side in (reference, window)])
    totals = counts.sum(axis=1)
    rare = counts.sum(axis=0) * totals.min() / totals.sum() < MIN_EXPECTED
    together = counts[:, rare].sum(axis=1, keepdims=True) if rare.any() else counts[:, :0]
    cells = np.column_stack([counts[:, ~rare], together])
    expected = cells.sum(axis=0) * totals[:, None] / totals.sum()
    enough = expected.min(axis=0) >= MIN_EXPECTED
    if enough.sum() < 2:
        return 1.0
    statistic = ((cells - expected) ** 2 / np.where(expected > 0, expected, 1.0))[:, enough].sum()
    # A last cell that is still too rare is left out but keeps its degree of freedom: the p-value only grows.
    return float(chdtrc(cells.shape[1] - 1, statistic))


def prior_shift(answers: Answers) -> float | None:
    """Total variation between the classes' shares in the reference and in the window.

    None without a confusion matrix, or when the matrix is singular.
    """
    if answers.confusion is None:
        return None
    joint = answers.confusion.T / answers.confusion.sum()
    prior = joint.sum(axis=0)
    known = prior > 0
    joint = joint[:, known]
    if np.linalg.matrix_rank(joint) < known.sum():
        return None
    share = np.bincount(answers.window.argmax(axis=1), minlength=len(joint)) / len(answers.window)
    weights, *_ = np.linalg.lstsq(joint, share, rcond=None)
    shares = np.clip(weights, 0.0, None) * prior[known]
    if not shares.sum() > 0:
        return None
    return float(0.5 * np.abs(shares / shares.sum() - prior[known]).sum())


def estimated_accuracy(answers: Answers) -> float | None:
    """Accuracy on the window, by how much less sure the model is there; None without its known accuracy."""
    if answers.accuracy is None:
        return None
    lost = answers.reference.max(axis=1).mean() - answers.window.max(axis=1).mean()
    return float(np.clip(answers.accuracy - lost, 0.0, 1.0))


def subsample(sample: NDArray[Scalar], records: int) -> NDArray[Scalar]:
    """At most so many of the records (n, ...), the same ones for the same n, in order."""
    if len(sample) <= records:
        return sample
    indices = np.random.default_rng(len(sample)).choice(len(sample), records, replace=False)
    indices.sort()
    return sample[indices]


def _corrected(distances: NDArray[np.float64], comparisons: int, reference: int, window: int) -> float:
    """The p-value of the largest distance, which is the smallest of all, times the comparisons."""
    if not comparisons:
        return 1.0
    return min(1.0, comparisons * ks_p_value(float(distances.max()), reference, window))
