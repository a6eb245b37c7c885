"""Built-in stream of real digits that changes: scikit-learn's 1,797 images of 8x8 pixels, and MNIST.

Three standard protocols: rotated (the same images under one angle a step), permuted (the same images, their
pixels in one other order a step) and split (two classes a step). The steps of a stream have the same size, so
that a trigger that counts records cuts one experience a step. Everything is a function of the config and of
MNIST's published files, so that a run can be repeated.
"""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from streams.allowed import Allowed
from streams.base import LazyTexts, RawBatch, RecordSchema, SourceConfig, SourceContext, SourceError
from streams.records import Records, text_column
from streams.sources.mnist import IMAGES, RAREST_PAIR, mnist
from streams.wire.decode import encode_batch, encode_json

PARTITION = "digits"
Angle = Annotated[float, Field(ge=-360.0, le=360.0, allow_inf_nan=False)]

DIGITS_SCHEMA = RecordSchema(
    shape=(8, 8),
    dtype="float32",
    classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    minimum=0.0,
    maximum=16.0,
)
"""Schema of the digits streams' records."""

MNIST_SCHEMA = RecordSchema(shape=(28, 28), dtype="uint8", classes=DIGITS_SCHEMA.classes)
"""Schema of the MNIST streams' records."""

BLOCK_RECORDS = 5_000
"""Records that are made at a time; a poll gives some of one block."""

_ALL_DIGITS = 1797
_RAREST_PAIR_OF_DIGITS = 354
"""Images of the digits 8 and 9; the other pairs have up to 363."""

_PERMUTING = 1
"""Separates the random numbers of the pixels' order from those of the records' order."""


class DatasetsConfig(SourceConfig):
    """A built-in stream of real digits."""

    kind: Literal["datasets"] = "datasets"
    protocol: Literal[
        "rotated-digits", "split-digits", "permuted-digits", "rotated-mnist", "split-mnist", "permuted-mnist"
    ] = Field("rotated-digits", description="One angle, two classes, or one order of the pixels a step.")
    angles: tuple[Angle, ...] = Field(
        (0.0, 25.0, 50.0, 75.0, 100.0),
        min_length=1,
        description="Rotated protocols only: degrees of each step.",
    )
    permutations: int = Field(
        5,
        ge=1,
        le=1000,
        description="Permuted protocols only: how many steps; the first leaves the pixels in place.",
    )
    folder: str | None = Field(
        None, description="MNIST only: where the ingest role finds its IDX files, gzipped or not."
    )
    images: Literal["train", "test"] = Field(
        "train", description="MNIST only: its 60,000 training images, or its 10,000 test images."
    )
    seed: int = Field(
        0,
        ge=0,
        description="Seed of the order of a step's records, of its pixels when permuted, and of the few "
        "records that split leaves out.",
    )

    @model_validator(mode="after")
    def _names_its_files(self) -> Self:
        if self.of_mnist != (self.folder is not None):
            raise ValueError("folder must say where MNIST's files are, and is for MNIST only")
        return self

    def refusal(self, allowed: Allowed) -> str | None:
        """See `SourceConfig`."""
        if self.folder is None or allowed.reads(self.folder):
            return None
        return allowed.path_refusal("The folder", self.folder)

    @property
    def of_mnist(self) -> bool:
        """Whether the images are MNIST's."""
        return self.protocol.endswith("mnist")

    @property
    def steps(self) -> int:
        """How many steps the stream has."""
        if self.protocol.startswith("rotated"):
            return len(self.angles)
        if self.protocol.startswith("permuted"):
            return self.permutations
        return len(DIGITS_SCHEMA.classes) // 2

    @property
    def records_per_step(self) -> int:
        """How many records every step has: what a trigger must count to cut one experience a step."""
        if self.protocol.startswith("split"):
            return RAREST_PAIR[self.images] if self.of_mnist else _RAREST_PAIR_OF_DIGITS
        return IMAGES[self.images] if self.of_mnist else _ALL_DIGITS

    def problem(self, schema: RecordSchema) -> str | None:
        """See `SourceConfig`."""
        wanted, name = (MNIST_SCHEMA, "MNIST's") if self.of_mnist else (DIGITS_SCHEMA, "The built-in")
        if (schema.shape, schema.classes, schema.groups) != (wanted.shape, wanted.classes, wanted.groups):
            return (
                f"{name} digits have shape {list(wanted.shape)}, the classes {', '.join(wanted.classes)} and "
                "no groups: declare the schema so."
            )
        if schema.dtype != wanted.dtype:
            why = "whole numbers from 0 to 255" if self.of_mnist else "fractions once they turn"
            return f"{name} digits have {why}: declare dtype {wanted.dtype}."
        lowest, highest = 0.0, 255.0 if self.of_mnist else 16.0
        too_high = schema.minimum is not None and schema.minimum > lowest
        too_low = schema.maximum is not None and schema.maximum < highest
        if too_high or too_low:
            return (
                f"{name} digits have features from {lowest:g} to {highest:g}: the minimum "
                "and maximum of the schema must let all of them pass, or be left out."
            )
        return None


def digits_step(config: DatasetsConfig, step: int) -> Records:
    """All records of one step, 0 <= step < config.steps, in the stream's order.

    The split key is the image, so that no angle or permutation of a held-out image is ever trained on.

    Raises:
        SourceError: MNIST's files are missing or damaged.
    """
    return _records(config, step, _order(config, step))


class DatasetsSource:
    """All steps of a config, one after the other, then nothing more. Cursors count records."""

    def __init__(
        self, config: DatasetsConfig, schema: RecordSchema | None = None, *, allowed: Allowed | None = None
    ) -> None:
        """`schema` is the pipeline's, by default that of the images."""
        self._config = config
        self._allowed = allowed or Allowed()
        self._schema = schema or (MNIST_SCHEMA if config.of_mnist else DIGITS_SCHEMA)
        self._total = config.steps * config.records_per_step
        self._position: int | None = None
        self._block: tuple[int, Records, bytes] | None = None

    def partitions(self) -> Sequence[str]:
        """The one partition."""
        return [PARTITION]

    def open(self, cursors: Mapping[str, str]) -> None:
        """Resume just after the cursor.

        Raises:
            SourceError: the cursor is not a position in this stream, or MNIST's files are missing or damaged.
            SourceStoppedError: the installation does not allow the folder.
        """
        self._config.require_allowed(self._allowed)
        cursor = cursors.get(PARTITION, "") or "0"
        if not (cursor.isdecimal() and int(cursor) <= self._total):
            raise SourceError(
                f"{cursor[:80]!r} is not a position in this stream of {self._total} records: the "
                "pipeline's source was changed; make a new pipeline for it."
            )
        _images(self._config)
        self._position = int(cursor)

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        """The next records, of one block at most, as JSON or, of MNIST, as Arrow; at the end it waits.

        Raises:
            SourceError: the source was not opened.
        """
        if self._position is None:
            raise SourceError("The source was polled before it was opened.")
        start = self._position
        if start == self._total:
            time.sleep(timeout_seconds)
            return []
        first, records, payload = self._block_at(start)
        stop = min(start + max_records, first + len(records))
        self._position = stop
        chosen = slice(start - first, stop - first)
        return [
            RawBatch(
                partition=PARTITION,
                start=str(start) if start else "",
                payloads=[payload] if payload else encode_json(records.take(chosen), self._schema),
                positions=LazyTexts(str, range(start + 1, stop + 1)),
                wire="arrow" if payload else "json",
                skip=chosen.start if payload else 0,
            )
        ]

    def close(self) -> None:
        """Release the images."""
        self._position = self._block = None

    def _block_at(self, position: int) -> tuple[int, Records, bytes]:
        """The block of a position: its first position, its records, and their payload if they share one."""
        step, within = divmod(position, self._config.records_per_step)
        begin = within - within % BLOCK_RECORDS
        first = position - within + begin
        if self._block is None or self._block[0] != first:
            order = _order(self._config, step)[begin : begin + BLOCK_RECORDS]
            records = _records(self._config, step, order)
            payload = encode_batch(records, self._schema) if self._config.of_mnist else b""
            self._block = first, records, payload
        return self._block


def build(config: DatasetsConfig, context: SourceContext) -> DatasetsSource:
    """The source that the catalog names."""
    return DatasetsSource(config, context.schema, allowed=context.allowed)


def _images(config: DatasetsConfig) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Images (n, side, side), and their digits (n,)."""
    return _digits() if config.folder is None else mnist(config.folder, config.images)


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (1797, 8, 8) of values 0..16, and their digits (1797,)."""
    from sklearn.datasets import load_digits  # heavy: only a stream of digits loads it

    found = load_digits()
    images = np.asarray(found.images, dtype=np.float32)
    labels = np.asarray(found.target, dtype=np.int64)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def _order(config: DatasetsConfig, step: int) -> NDArray[np.int64]:
    """(records_per_step,) indices of the images that a step shows, in its order."""
    _, labels = _images(config)
    split = config.protocol.startswith("split")
    chosen = np.flatnonzero(labels // 2 == step) if split else np.arange(len(labels))
    order = np.random.default_rng([config.seed, step]).permutation(len(chosen))[: config.records_per_step]
    return np.asarray(chosen[order], dtype=np.int64)


def _records(config: DatasetsConfig, step: int, indices: NDArray[np.int64]) -> Records:
    """The images at these indices as a step shows them."""
    images, labels = _images(config)
    features, suffix = images[indices], ""
    if config.protocol.startswith("rotated"):
        features, suffix = _rotated(features, config.angles[step]), f"@{config.angles[step]:g}"
    elif config.protocol.startswith("permuted"):
        features, suffix = _permuted(features, config.seed, step), f"@p{step}"
    prefix = f"{config.images}-" if config.of_mnist else "image-"
    digits = len(str(len(labels) - 1))
    keys = [f"{prefix}{index:0{digits}d}" for index in indices.tolist()]
    return Records(
        ids=text_column([key + suffix for key in keys]),
        features=features,
        labels=labels[indices],
        times=np.full(len(indices), np.nan),
        split_keys=text_column(keys),
        groups={},
    )


def _permuted(images: NDArray[Any], seed: int, step: int) -> NDArray[Any]:
    if step == 0:
        return images
    size = images.shape[1] * images.shape[2]
    order = np.random.default_rng([seed, step, _PERMUTING]).permutation(size)
    permuted: NDArray[Any] = images.reshape(-1, size).take(order, axis=1)
    return permuted.reshape(images.shape)


def _rotated(images: NDArray[Any], angle: float) -> NDArray[Any]:
    if angle == 0:
        return images
    if images.dtype == np.uint8:
        size = images.shape[1] * images.shape[2]
        turned = _rotation(images.shape[1], angle) @ images.reshape(-1, size).T.astype(np.float32)
        whole: NDArray[np.uint8] = np.clip(np.rint(turned), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(whole.T).reshape(images.shape)
    from scipy.ndimage import rotate

    smooth: NDArray[np.float32] = rotate(images, angle, axes=(2, 1), reshape=False, order=1)
    return np.clip(smooth, 0, 16).astype(np.float32)


@lru_cache(maxsize=8)
def _rotation(side: int, angle: float) -> Any:
    """The same rotation as one sparse matrix over the pixels: turning is linear, and this is much faster.

    Sparse and not dense, so that every pixel is summed in the same order on every machine.
    """
    from scipy.ndimage import rotate
    from scipy.sparse import csr_array

    each_pixel = np.eye(side * side, dtype=np.float32).reshape(-1, side, side)
    turned = rotate(each_pixel, angle, axes=(2, 1), reshape=False, order=1)
    return csr_array(np.ascontiguousarray(turned.reshape(side * side, -1).T))
