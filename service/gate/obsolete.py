"""Detects obsolete holdouts: records whose near duplicates in the new data carry another label.

A loss on an obsolete holdout may be right. A *near duplicate* of a holdout record is a newly learnt record
that is at most as far from it as the holdout's own records usually are from each other (the median distance
to the nearest). Where the stream has merely moved (rotated, brighter), near duplicates are few or carry the
same label; where the concept has changed, they carry another.
"""

import numpy as np
from numpy.typing import NDArray

from service.gate.base import NearDuplicates, Relabelled

LOOKED_AT = 1000
"""Records of either side that are compared, at most."""


def near_duplicates(
    held: NDArray[np.generic],
    held_labels: NDArray[np.int64],
    learnt: NDArray[np.generic],
    learnt_labels: NDArray[np.int64],
) -> NearDuplicates:
    """Count the near duplicates of a holdout (n, *shape) among newly learnt records (m, *shape).

    Labels are (n,) and (m,).
    """
    if not len(held) or not len(learnt):
        return NearDuplicates(0, 0, 0.0)
    ours, our_labels = _some(held, held_labels)
    theirs, their_labels = _some(learnt, learnt_labels)
    if len(ours) < 2 or not len(theirs):
        return NearDuplicates(0, 0, 0.0)
    scale = ours.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    ours, theirs = ours / scale, theirs / scale
    among = _distances(ours, ours)
    np.fill_diagonal(among, np.inf)
    own = among.argmin(axis=1)
    usual = float(np.median(among[np.arange(len(ours)), own]))
    across = _distances(ours, theirs)
    nearest = across.argmin(axis=1)
    near = across[np.arange(len(ours)), nearest] <= usual
    other = their_labels[nearest] != our_labels
    apart = our_labels[own] != our_labels
    return NearDuplicates(
        records=int(near.sum()),
        relabelled=int((near & other).sum()),
        usual=float(apart.mean()),
        classes=tuple(
            Relabelled(
                int(label),
                int(near[its].sum()),
                int((near & other)[its].sum()),
                # The mean of all as well: a handful of records may have no such neighbour by chance.
                max(float(apart[its].mean()), float(apart.mean())),
            )
            for label, its in ((label, our_labels == label) for label in np.unique(our_labels))
        ),
    )


def _some(
    inputs: NDArray[np.generic], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """At most `LOOKED_AT` evenly spaced records, those with finite features, flat."""
    rows = np.arange(len(inputs))
    if len(inputs) > LOOKED_AT:
        rows = np.arange(LOOKED_AT) * len(inputs) // LOOKED_AT
    flat = np.asarray(inputs[rows], dtype=np.float64).reshape(len(rows), -1)
    finite = np.isfinite(flat).all(axis=1)
    return flat[finite], labels[rows][finite]


def _distances(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))
