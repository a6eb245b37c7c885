"""Real handwritten digits as a stream that changes: scikit-learn's 1,797 images of 8x8 pixels.

Two standard protocols: rotated digits (the same images under one angle a step) and split digits (two classes
a step). The steps of a stream have the same size, so that a trigger that counts records cuts one experience a
step. Everything is a function of the config, so that a run can be repeated.
"""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from streams.base import RawBatch, RecordSchema, SourceConfig, SourceContext, SourceError
from streams.records import Records, join_records, text_column
from streams.wire import encode_json

PARTITION = "digits"
Angle = Annotated[float, Field(ge=-360.0, le=360.0, allow_inf_nan=False)]

_DARKEST, _BRIGHTEST = 0.0, 16.0

DIGITS_SCHEMA = RecordSchema(
    shape=(8, 8),
    dtype="float32",
    classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    minimum=_DARKEST,
    maximum=_BRIGHTEST,
)
"""What every record of these streams looks like."""


_ALL_IMAGES = 1797
_RAREST_PAIR = 354
"""Images of the digits 8 and 9; the other pairs have up to 363."""


class DatasetsConfig(SourceConfig):
    """A built-in stream of real digits."""

    kind: Literal["datasets"] = "datasets"
    protocol: Literal["rotated-digits", "split-digits"] = Field(
        "rotated-digits", description="One angle a step, or two classes a step."
    )
    angles: tuple[Angle, ...] = Field(
        (0.0, 25.0, 50.0, 75.0, 100.0), min_length=1, description="Rotated digits only: degrees of each step."
    )
    seed: int = Field(
        0,
        ge=0,
        description="Seed of the order of a step's records, and of the few that split digits leave out.",
    )

    @property
    def steps(self) -> int:
        """How many steps the stream has."""
        return len(self.angles) if self.protocol == "rotated-digits" else len(DIGITS_SCHEMA.classes) // 2

    @property
    def records_per_step(self) -> int:
        """How many records every step has: what a trigger must count to cut one experience a step."""
        return _ALL_IMAGES if self.protocol == "rotated-digits" else _RAREST_PAIR

    def misfit(self, schema: RecordSchema) -> str | None:
        """See `SourceConfig`."""
        wanted = DIGITS_SCHEMA
        if (schema.shape, schema.classes, schema.groups) != (wanted.shape, wanted.classes, wanted.groups):
            return (
                f"The built-in digits have shape {list(wanted.shape)}, the classes "
                f"{', '.join(wanted.classes)} and no groups: declare the schema so."
            )
        if schema.dtype != "float32":
            return "The built-in digits have fractions once they turn: declare dtype float32."
        too_high = schema.minimum is not None and schema.minimum > _DARKEST
        too_low = schema.maximum is not None and schema.maximum < _BRIGHTEST
        if too_high or too_low:
            return (
                f"The built-in digits have features from {_DARKEST:g} to {_BRIGHTEST:g}: the minimum "
                "and maximum of the schema must let all of them pass, or be left out."
            )
        return None


def digits_step(config: DatasetsConfig, step: int) -> Records:
    """All records of one step, 0 <= step < config.steps, in the stream's order.

    The split key is the image, so that no angle of a held-out image is ever trained on.
    """
    images, labels = _digits()
    if config.protocol == "rotated-digits":
        angle = config.angles[step]
        chosen = np.arange(len(labels))
        features, suffix = _rotated(images, angle), f"@{angle:g}"
    else:
        chosen = np.flatnonzero(labels // 2 == step)
        features, suffix = images[chosen], ""
    order = np.random.default_rng([config.seed, step]).permutation(len(chosen))[: config.records_per_step]
    keys = [f"image-{place:04d}" for place in chosen[order]]
    return Records(
        ids=text_column([key + suffix for key in keys]),
        features=features[order],
        labels=labels[chosen][order],
        times=np.full(len(order), np.nan),
        split_keys=text_column(keys),
        groups={},
    )


class DatasetsSource:
    """All steps of a config, one after the other; then nothing more. Cursors count records."""

    def __init__(self, config: DatasetsConfig) -> None:
        self._config = config
        self._records: Records | None = None
        self._position = 0

    def partitions(self) -> Sequence[str]:
        """The one partition."""
        return [PARTITION]

    def open(self, cursors: Mapping[str, str]) -> None:
        """Resume just after the cursor.

        Raises:
            SourceError: the cursor is not a place in this stream.
        """
        if self._records is None:
            steps = [digits_step(self._config, step) for step in range(self._config.steps)]
            self._records = join_records(steps, DIGITS_SCHEMA)
        cursor = cursors.get(PARTITION, "") or "0"
        if not (cursor.isdecimal() and int(cursor) <= len(self._records)):
            raise SourceError(
                f"{cursor[:80]!r} is not a place in this stream of {len(self._records)} records: the "
                "pipeline's source was changed; make a new pipeline for it."
            )
        self._position = int(cursor)

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        """The next records as JSON; at the end it waits and gives nothing.

        Raises:
            SourceError: the source was not opened.
        """
        if self._records is None:
            raise SourceError("The source was polled before it was opened.")
        start = self._position
        stop = min(start + max_records, len(self._records))
        if start == stop:
            time.sleep(timeout_seconds)
            return []
        self._position = stop
        return [
            RawBatch(
                partition=PARTITION,
                start=str(start) if start else "",
                payloads=encode_json(self._records.take(slice(start, stop)), DIGITS_SCHEMA),
                positions=[str(place + 1) for place in range(start, stop)],
            )
        ]

    def close(self) -> None:
        """Let go of the images."""
        self._records = None


def build(config: DatasetsConfig, context: SourceContext) -> DatasetsSource:
    """The source that the catalog names."""
    return DatasetsSource(config)


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (1797, 8, 8) of values 0..16, and their digits (1797,)."""
    from sklearn.datasets import load_digits  # heavy: only who streams digits pays for it

    found = load_digits()
    images = np.asarray(found.images, dtype=np.float32)
    labels = np.asarray(found.target, dtype=np.int64)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def _rotated(images: NDArray[np.float32], angle: float) -> NDArray[np.float32]:
    if angle == 0:
        return images
    from scipy.ndimage import rotate

    turned = rotate(images, angle, axes=(2, 1), reshape=False, order=1)
    return np.clip(turned, _DARKEST, _BRIGHTEST).astype(np.float32)
