"""Readers of the real data under tests/data/. Each folder's README names origin and licence."""

import gzip
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.repository import ROOT

DATA = ROOT / "tests" / "data"


@cache
def mnist_test() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """MNIST's test set: images (10000, 28, 28) uint8, and digits (10000,)."""
    images = _idx(DATA / "mnist" / "t10k-images-idx3-ubyte.gz", header_bytes=16)
    labels = _idx(DATA / "mnist" / "t10k-labels-idx1-ubyte.gz", header_bytes=8)
    return images.reshape(-1, 28, 28), labels.astype(np.int64)


@cache
def elec2() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Elec2 in time order: six features (45312, 6) float32 in 0..1, and up or down (45312,) as 1 or 0."""
    with gzip.open(DATA / "elec2" / "elec.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.float64)
    return table[:, :6].astype(np.float32), table[:, 6].astype(np.int64)


def _idx(path: Path, *, header_bytes: int) -> NDArray[np.uint8]:
    with gzip.open(path, "rb") as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=header_bytes)
