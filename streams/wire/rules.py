"""Validates records of any wire format, whole columns at a time.

A decoder makes a `Draft` of everything that was sent, one row a record. A row that cannot be read has
placeholder values, and an entry in the faults. `examine` checks numbers and groups, `accept` checks ids and
labels, and returns the records of the rows that break no rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streams.base import RecordInvalidError, RecordSchema
from streams.records import (
    COMPLETE,
    FEATURES_ONLY,
    LABEL_ONLY,
    MAX_TEXT_LENGTH,
    ON_SCALE,
    UNLABELLED,
    LabelMap,
    Records,
    check_texts,
    on_scale,
    text_column,
)
from streams.wire.base import Faults

_UNKNOWN = -2
"""Marks a label that has no id, while the labels of a batch are looked up."""


@dataclass(frozen=True)
class Draft:
    """Records that are not validated yet, one row each. Texts that were not sent are null."""

    records: Records
    """The labels are ids where `names` is None, else they are placeholders."""
    names: pa.StringArray | None
    """(n,) the labels as texts, null where there is none."""
    faults: Faults

    def rows(self, start: int, stop: int) -> "Draft":
        """A range of the rows, with a copy of their faults."""
        return Draft(
            self.records.take(slice(start, stop)),
            None if self.names is None else self.names.slice(start, stop - start),
            self.faults.within(start, stop),
        )

    def named(self, ids: Sequence[str]) -> "Draft":
        """These rows with ids that the source gave them."""
        records, column = self.records, text_column(list(ids))
        keys = column if records.split_keys is records.ids else records.split_keys
        return replace(self, records=replace(records, ids=column, split_keys=keys))


def nulls(column: Any) -> NDArray[np.bool_]:
    """(n,) where an Arrow column holds nothing."""
    if not column.null_count:
        return np.zeros(len(column), dtype=np.bool_)
    found: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return found


def stored(
    values: NDArray[Any], schema: RecordSchema, faults: Faults, *, first: int = 0
) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Convert values (n, size) to the stored type; rows that do not fit are refused.

    `first` is the row of the first value.
    """
    if values.dtype == schema.dtype:
        return values
    if schema.dtype == "float32":
        with np.errstate(over="ignore"):
            return values.astype(np.float32)
    with np.errstate(invalid="ignore"):
        fits = (values >= 0) & (values <= 255) & (values == np.floor(values))
    if not fits.all():
        finite = np.isfinite(values).all(axis=1)
        faults.add_where(~finite, "not-finite", "A feature is not a finite number.", first=first)
        bad = ~fits.all(axis=1)
        faults.add_where(bad, "out-of-range", "A feature is not a whole number from 0 to 255.", first=first)
        values = np.where(fits, values, 0)
    return values.astype(np.uint8)


def carried(
    labelled: NDArray[np.bool_], featured: NDArray[np.bool_], schema: RecordSchema, faults: Faults
) -> NDArray[np.uint8] | None:
    """(n,) what each row holds, None where all must be complete; rows that lack too much are refused."""
    if not schema.late_labels:
        hint = "only a pipeline that declares labels_within_seconds takes it later"
        faults.add_where(~labelled, "malformed", f"The record has no label: send it along; {hint}.")
        faults.add_where(~featured, "malformed", f"The record has no features: send them along; {hint}.")
        return None
    nothing = ~labelled & ~featured
    faults.add_where(nothing, "malformed", "The record has neither features nor a label: send one of them.")
    found = np.full(len(labelled), COMPLETE, dtype=np.uint8)
    found[~labelled] = FEATURES_ONLY
    found[~featured] = LABEL_ONLY
    return found


def examine(draft: Draft, schema: RecordSchema) -> Draft:
    """Check groups, times and features: the same rows, with their faults added."""
    records, faults = draft.records, draft.faults
    if not len(records):
        return draft
    alone = None if records.carries is None else records.carries == LABEL_ONLY
    groups = {}
    for name, column in records.groups.items():
        if alone is not None and alone.any():
            # Groups sent with a label alone are not kept: those sent with the features are.
            column = pc.if_else(pa.array(alone), pa.scalar("", pa.string()), column)
        _check_column(
            column, f"group {name!r}", faults, bad="bad-group", missing="missing-group", exempt=alone
        )
        groups[name] = column
    bad_times = np.isinf(records.times)
    if bad_times.any():
        faults.add_where(bad_times, "bad-time", "The time is not a finite number of seconds.")
    _check_values(records.features.reshape(len(records), -1), schema, faults, exempt=alone)
    if schema.open_classes and draft.names is not None:
        _check_column(draft.names, "label", faults, bad="bad-label", missing=None)
    return replace(draft, records=replace(records, groups=groups))


def accept(draft: Draft, schema: RecordSchema, labels: LabelMap) -> tuple[Records, NDArray[np.int64]]:
    """Check ids and labels; the records of the rows without a fault, and the indices (n,) of these rows.

    Faults found here are added to the draft's. Only labels of accepted records become classes.
    """
    records, faults = draft.records, draft.faults
    _check_column(records.ids, "id", faults, bad="bad-id", missing="bad-id")
    keys = records.split_keys
    if keys is not records.ids:
        _check_column(keys, "split key", faults, bad="bad-split-key", missing="bad-split-key")
    rows = np.arange(len(records)) if not faults else faults.good(len(records))
    names = draft.names
    if faults:
        records = records.take(rows)
        names = None if names is None else names.take(pa.array(rows))
    ids = _known_ids(records, schema, labels) if names is None else _ids_of(names, labels)
    unknown = ids == _UNKNOWN
    if unknown.any():
        _refuse_scales(draft, rows[unknown])
        faults.add_where(_at(rows[unknown], len(draft.records)), *_unknown_label(draft, schema, labels))
        rows, ids, records = rows[~unknown], ids[~unknown], records.take(~unknown)
    return replace(records, labels=ids), rows


def _at(rows: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    mask = np.zeros(count, dtype=np.bool_)
    mask[rows] = True
    return mask


def _ids_of(names: pa.StringArray, labels: LabelMap) -> NDArray[np.int64]:
    """(n,) the class ids of names, in their order; `UNLABELLED` for null."""
    coded = names.dictionary_encode()
    table = [labels.id_of(name) for name in coded.dictionary.to_pylist()]
    ids = np.array([_UNKNOWN if found is None else found for found in table] + [UNLABELLED], dtype=np.int64)
    # The last entry of the table is for null.
    indices = coded.indices.fill_null(len(table)) if names.null_count else coded.indices
    found: NDArray[np.int64] = ids[indices.to_numpy()]
    return found


def _known_ids(records: Records, schema: RecordSchema, labels: LabelMap) -> NDArray[np.int64]:
    lowest = 0 if records.carries is None else UNLABELLED
    ids = records.labels
    known = schema.max_classes if schema.open_classes else len(labels)
    if not len(ids) or (ids.min() >= lowest and ids.max() < known):
        return ids
    return np.where((ids >= lowest) & (ids < known), ids, _UNKNOWN)


def _refuse_scales(draft: Draft, rows: NDArray[np.int64]) -> None:
    """Refuse labels that are numbers on a scale with words of their own: no more classes would help."""
    names = draft.names
    if names is None:
        return
    for row in rows.tolist():
        if on_scale(names[row].as_py()):
            error = RecordInvalidError(f"The label {_shown(names, row)} {ON_SCALE}.", "bad-label")
            draft.faults.add(row, error)


def _unknown_label(draft: Draft, schema: RecordSchema, labels: LabelMap) -> tuple[str, Any]:
    names = draft.names
    if names is None:
        return "unknown-label", "A label is not the id of a declared class."
    if schema.open_classes:
        return (
            "too-many-classes",
            lambda row: (
                f"The label {_shown(names, row)} would be a class beyond max_classes, {schema.max_classes}: "
                "correct it, or declare a pipeline with more."
            ),
        )
    return (
        "unknown-label",
        lambda row: f"The label {_shown(names, row)} is not one of the {len(labels)} declared classes.",
    )


def _shown(names: pa.StringArray, row: int) -> str:
    return repr(names[row].as_py()[:100])


def _check_column(
    column: pa.StringArray,
    what: str,
    faults: Faults,
    *,
    bad: str,
    missing: str | None,
    exempt: NDArray[np.bool_] | None = None,
) -> None:
    """Refuse the rows whose text breaks a rule, or is missing where it is required."""
    if missing is not None and column.null_count:
        faults.add_where(nulls(column), missing, f"The {what} is missing.")
    if column.null_count == len(column):
        return
    try:
        check_texts(column, what=what, reason=bad)
        return
    except RecordInvalidError:
        lengths = pc.utf8_length(column).fill_null(1).to_numpy()
    nul = pc.match_substring(column, "\0").fill_null(False).to_numpy(zero_copy_only=False)
    wrong = (lengths < 1) | (lengths > MAX_TEXT_LENGTH) | nul
    if exempt is not None:
        wrong &= ~exempt

    def detail(row: int) -> str:
        try:
            check_texts(column.slice(row, 1), what=what, reason=bad)
        except RecordInvalidError as error:
            return str(error)
        raise AssertionError("a text that breaks a rule among others breaks it alone")

    faults.add_where(wrong, bad, detail)


def _check_values(
    features: NDArray[Any], schema: RecordSchema, faults: Faults, *, exempt: NDArray[np.bool_] | None
) -> None:
    stored_type = np.dtype(schema.dtype)
    # Compared in the stored type: a float32 sent as decimal text must pass a limit it equals.
    minimum = None if schema.minimum is None else _limit(schema.minimum, stored_type)
    maximum = None if schema.maximum is None else _limit(schema.maximum, stored_type)
    # Sums and extremes need no extra memory, and show for most batches that nothing is wrong.
    with np.errstate(invalid="ignore", over="ignore"):
        if (
            (stored_type == np.uint8 or np.isfinite(features.sum()))
            and (minimum is None or features.min() >= minimum)
            and (maximum is None or features.max() <= maximum)
        ):
            return
    if stored_type != np.uint8:
        bad = ~np.isfinite(features).all(axis=1)
        faults.add_where(bad, "not-finite", f"A feature is not finite, or too large for {schema.dtype}.")
    for limit, beyond, where in ((minimum, np.less, "below"), (maximum, np.greater, "above")):
        if limit is None:
            continue
        declared = schema.minimum if where == "below" else schema.maximum
        kind = "minimum" if where == "below" else "maximum"
        bad = beyond(features, limit).any(axis=1)
        if exempt is not None:
            bad &= ~exempt
        faults.add_where(bad, "out-of-range", f"A feature is {where} the declared {kind} {declared}.")


def _limit(value: float, stored_type: np.dtype[Any]) -> float:
    if stored_type != np.float32:
        return value
    with np.errstate(over="ignore"):
        return float(np.float32(value))
