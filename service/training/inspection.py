"""Compares new records with past holdouts, using the champion: suspect records, and distribution shift."""

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.gate.base import MOST_WORST, DataEvidence, ShiftEvidence, Suspects, WorstRecord
from service.gate.suspects import MIN_RECORDS, MOST_RECORDS, Observed, find_suspects
from streams import shift as shifts
from streams.base import Experience

if TYPE_CHECKING:
    from strategies.base import Learner

Picture = str
"""A PNG as a data URI."""

ENOUGH_RECORDS = 500
"""Fewest records of the newest holdouts to test a shift against, where there are so many."""
LARGEST_PICTURE = 256
"""Width and height of a record that is shown as an image, at most."""
_PERCENTILES = (0.5, 99.5)
_ROWS_AT_ONCE = 4096


class Inspector:
    """Compares new records with a bounded sample of past holdouts. The champion answers, and never learns."""

    def __init__(self, champion: "Learner", holdouts: Sequence[Experience]) -> None:
        """`holdouts`: not empty, the newest first."""
        self._champion = champion
        share = max(1, MOST_RECORDS // len(holdouts))
        chosen = [(holdout, _some(holdout, share)) for holdout in holdouts]
        self._reference = self._observed([(part, rows) for part, rows in chosen])
        sizes = np.cumsum([len(rows) for _, rows in chosen])
        # One holdout by itself, unless it is smaller than what suspects can be found by.
        newest = min(int(np.searchsorted(sizes, MIN_RECORDS)), len(sizes) - 1)
        self._newest = np.arange(len(self._reference)) < sizes[newest]
        enough = int(np.searchsorted(np.cumsum([len(part) for part in holdouts]), ENOUGH_RECORDS)) + 1
        self._recent = self._observed(
            [(part, _some(part, MOST_RECORDS // enough)) for part in holdouts[:enough]]
        )

    @classmethod
    def of(cls, champion: "Learner | None", holdouts: Sequence[Experience]) -> "Inspector | None":
        """An inspector; None without a champion, or where its past holdouts are empty."""
        filled = [holdout for holdout in holdouts if len(holdout)]
        return cls(champion, filled) if champion and filled else None

    def suspects(self, part: Experience) -> Suspects:
        """Suspect records among at most `MOST_RECORDS` of an experience."""
        rows = _some(part, MOST_RECORDS)
        batch, ids = self._observed([(part, rows)]), [str(each) for each in part.record_ids[rows]]
        found = find_suspects(batch, self._reference, ids, newest=self._newest)
        return replace(found, worst=_confirmed(found.worst, batch, ids))

    def shift(self, parts: Sequence[Experience], *, alpha: float) -> ShiftEvidence:
        """Test new records for a shift against the newest holdouts, with the champion (`streams.shift`).

        `alpha` bounds the chance of a false alarm for the window, by Bonferroni over tests and features.
        """
        reference = self._recent
        share = max(1, MOST_RECORDS // len(parts))
        window = self._observed([(part, _some(part, share)) for part in parts])
        predicted = reference.probabilities.argmax(axis=1)
        classes = reference.probabilities.shape[1]
        confusion = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(confusion, (reference.labels, predicted), 1)
        accuracy = float((predicted == reference.labels).mean())
        found = shifts.battery(
            reference.inputs,
            window.inputs,
            alpha=alpha,
            answers=shifts.Answers(reference.probabilities, window.probabilities, confusion, accuracy),
        )
        return ShiftEvidence(
            verdict=found.verdict,
            alpha=alpha,
            p_values={str(test): p for test, p in found.p_values.items()},
            distance=found.distance,
            feature=found.feature,
            reference_records=found.reference_records,
            window_records=found.window_records,
            label_shift=float(
                0.5 * np.abs(_shares(window.labels, classes) - _shares(reference.labels, classes)).sum()
            ),
            prior_shift=found.prior_shift,
            estimated_accuracy=found.estimated_accuracy,
            reference_accuracy=accuracy,
        )

    def _observed(self, chosen: Sequence[tuple[Experience, NDArray[np.int64]]]) -> Observed:
        inputs = np.concatenate([part.inputs[rows] for part, rows in chosen])
        return Observed(
            inputs=inputs,
            labels=np.concatenate([part.labels[rows] for part, rows in chosen]),
            embedding=self._champion.embed(inputs),
            probabilities=self._champion.predict(inputs),
        )


def _some(part: Experience, records: int) -> NDArray[np.int64]:
    """Rows of at most `records` records, drawn uniformly and sorted: the experience may be memory-mapped."""
    if len(part) <= records:
        return np.arange(len(part))
    drawn = np.random.default_rng(part.index).choice(len(part), records, replace=False)
    return np.asarray(np.sort(drawn), dtype=np.int64)


def _shares(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    return np.asarray(np.bincount(labels, minlength=classes) / max(1, len(labels)), dtype=np.float64)


def _confirmed(
    worst: Sequence[WorstRecord], batch: Observed, record_ids: Sequence[str]
) -> tuple[WorstRecord, ...]:
    """Put mislabelled records that cleanlab confirms as label errors first, with a note in their reason.

    Northcutt et al. 2021 (arXiv:1911.00068). Without the extra `labels`, all stay as they are: it never
    decides. Classes that the champion never learnt are left out, it has no probability for them.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return tuple(worst)
    known = np.flatnonzero((batch.probabilities > 0).any(axis=0))
    judged = np.flatnonzero(np.isin(batch.labels, known))
    present = np.unique(batch.labels[judged])
    if len(present) < 2:
        return tuple(worst)
    probabilities = batch.probabilities[np.ix_(judged, present)].astype(np.float64) + 1e-12
    with warnings.catch_warnings():
        # It warns of classes with few records: of these it finds less, which decides nothing.
        warnings.simplefilter("ignore", UserWarning)
        issues = find_label_issues(
            np.searchsorted(present, batch.labels[judged]),
            probabilities / probabilities.sum(axis=1, keepdims=True),
            n_jobs=1,
        )
    errors = {record_ids[row] for row in judged[np.asarray(issues, dtype=bool)]}
    noted = [
        replace(each, reason=f"{each.reason}; cleanlab calls it a label error too")
        if each.kind == "mislabelled" and each.record in errors
        else each
        for each in worst
    ]
    order = list(dict.fromkeys(each.kind for each in noted))
    return tuple(sorted(noted, key=lambda each: (order.index(each.kind), each.record not in errors)))


def broken_records(part: Experience) -> tuple[WorstRecord, ...]:
    """The first records with a NaN or an infinite feature, at most `MOST_WORST`."""
    found: list[WorstRecord] = []
    for start in range(0, len(part), _ROWS_AT_ONCE):
        rows = part.inputs[start : start + _ROWS_AT_ONCE].reshape(-1, int(np.prod(part.inputs.shape[1:])))
        broken = (~np.isfinite(rows)).sum(axis=1)
        found += [
            WorstRecord(
                record=str(part.record_ids[start + row]),
                kind="values",
                score=float(broken[row]),
                reason=f"features that are NaN or infinite: {broken[row]}",
                label=int(part.labels[start + row]),
            )
            for row in np.flatnonzero(broken)
        ]
        if len(found) >= MOST_WORST:
            break
    return tuple(found[:MOST_WORST])


def pictures(part: Experience, data: DataEvidence) -> dict[str, Picture]:
    """The suspect records of an experience as images, where records are images."""
    if data.suspects is None or not data.suspects.worst or not _is_picture(part.inputs.shape[1:]):
        return {}
    wanted = {each.record for each in data.suspects.worst}
    rows = [row for row, record in enumerate(part.record_ids) if str(record) in wanted]
    low, high = np.percentile(part.inputs[_some(part, MOST_RECORDS)], _PERCENTILES)
    return {str(part.record_ids[row]): picture(part.inputs[row], low=low, high=high) for row in rows}


def _is_picture(shape: tuple[int, ...]) -> bool:
    sides = shape if len(shape) == 2 else shape[1:]
    colours = len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))
    return colours and all(4 <= side <= LARGEST_PICTURE for side in sides)


def picture(image: NDArray[Any], *, low: float, high: float) -> Picture:
    """(height, width), (1, height, width) or (3, height, width) as a PNG: `low` is black, `high` is white."""
    from PIL import Image

    scaled = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1) * 255
    pixels = np.rint(scaled).astype(np.uint8)
    if pixels.ndim == 3:
        pixels = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, 2))
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
