"""The shape, classes and feature type of a stream, as a learner must know them. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class StreamInfo:
    """Properties of a stream that a learner needs before the first experience."""

    shape: tuple[int, ...]
    """Shape of one record's features."""
    classes: tuple[str, ...]
    """Class names; a label's dense class id is its index here."""
    dtype: Literal["float32", "uint8"] = "float32"
