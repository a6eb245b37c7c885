"""Checks of an experience before a learner changes anything."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.base import ExperienceUnfitError, StreamInfo
from streams.base import Experience


def check_shape(inputs: NDArray[Any], stream_info: StreamInfo) -> None:
    """Raises ExperienceUnfitError unless `inputs` is (n, *shape)."""
    if inputs.ndim == 0 or inputs.shape[1:] != stream_info.shape:
        raise ExperienceUnfitError(
            f"the records come as {inputs.shape}; this learner takes (n, *shape) of shape {stream_info.shape}"
        )


def check_fits(experience: Experience, stream_info: StreamInfo) -> None:
    """Raises ExperienceUnfitError unless the experience can be learnt.

    Refused are: no records, another shape or type, another number of labels than of records, labels outside
    the declared classes, and features that are NaN or infinite.
    """
    inputs, labels, where = experience.inputs, experience.labels, f"experience {experience.index}"
    check_shape(inputs, stream_info)
    if len(labels) == 0 or len(labels) != len(inputs):
        raise ExperienceUnfitError(
            f"{where} has {len(inputs)} records and {len(labels)} labels; it needs at least one, and as many"
        )
    if inputs.dtype != np.dtype(stream_info.dtype):
        raise ExperienceUnfitError(f"{where} holds {inputs.dtype}, the stream {stream_info.dtype}")
    n_classes = len(stream_info.classes)
    unknown = labels[(labels < 0) | (labels >= n_classes)]
    if len(unknown):
        raise ExperienceUnfitError(
            f"{where} has label {unknown[0]}; the stream declares classes 0 to {n_classes - 1}"
        )
    if inputs.dtype != np.uint8 and not np.isfinite(inputs).all():
        raise ExperienceUnfitError(f"{where} holds features that are NaN or infinite; remove those records")
