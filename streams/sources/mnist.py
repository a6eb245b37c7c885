"""MNIST from local IDX files, gzipped or not, as its authors publish them.

LeCun, Cortes & Burges, "The MNIST database of handwritten digits". Nothing is downloaded.
"""

import gzip
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streams.base import SourceError

Part = Literal["train", "test"]

IMAGES: dict[Part, int] = {"train": 60_000, "test": 10_000}
"""Images in each part."""

RAREST_PAIR: dict[Part, int] = {"train": 11_263, "test": 1_867}
"""Images of the digits 4 and 5; the other pairs have up to 12,665 and 2,123."""

SIDE = 28

_PREFIX: dict[Part, str] = {"train": "train", "test": "t10k"}
_IMAGES_HEADER, _LABELS_HEADER = 16, 8


@lru_cache(maxsize=2)
def mnist(folder: str, part: Part) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 28, 28) of values 0..255, and their digits (n,), both read-only.

    Raises:
        SourceError: a file is missing, cannot be read, or is not the one of MNIST.
    """
    count, prefix = IMAGES[part], _PREFIX[part]
    pixels = _idx(Path(folder), f"{prefix}-images-idx3-ubyte", (count, SIDE, SIDE), header=_IMAGES_HEADER)
    digits = _idx(Path(folder), f"{prefix}-labels-idx1-ubyte", (count,), header=_LABELS_HEADER)
    if digits.max() > 9 or np.bincount(digits // 2, minlength=5).min() != RAREST_PAIR[part]:
        raise SourceError(f"The labels in {folder} are not MNIST's: some digits are rarer or more frequent.")
    labels = digits.astype(np.int64)
    labels.flags.writeable = False
    return pixels, labels


def _idx(folder: Path, name: str, shape: tuple[int, ...], *, header: int) -> NDArray[np.uint8]:
    """The values of an IDX file of bytes, which must have this shape."""
    path = next((path for path in (folder / f"{name}.gz", folder / name) if _is_inside(path, folder)), None)
    if path is None:
        raise SourceError(f"There is no {name}.gz and no {name} in {folder}: put MNIST's files there.")
    size = header + int(np.prod(shape))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found = file.read(size + 1)  # no more, whatever a file unpacks to
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} cannot be read: {type(error).__name__}.") from error
    # Magic number: two zeros, 8 for unsigned bytes, how many dimensions; then each of these, big-endian.
    expected = bytes((0, 0, 8, len(shape))) + np.array(shape, dtype=">u4").tobytes()
    if len(found) != size or found[:header] != expected:
        raise SourceError(f"{path} is not MNIST's file of shape {list(shape)}: fetch it again.")
    return np.frombuffer(found, dtype=np.uint8, offset=header).reshape(shape)


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether it is a file; a link may lead to one in the same folder, and to nothing else."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())
