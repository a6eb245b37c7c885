"""Ids that are never trained on, because a golden set of the pipeline holds the records of these ids."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streams.duplicates import DuplicateWindow
from streams.records import Records, text_column
from streams.split import PARTS, Split, parts_of

HELD_OUT = len(PARTS)
"""The part of a record that is in no part of an experience: it is dropped when the others are cut."""


class HeldOut:
    """The ids of all golden sets of one pipeline."""

    def __init__(self, ids: Sequence[pa.StringArray] = ()) -> None:
        """`ids` (n,) of each golden set."""
        self._ids = pa.concat_arrays(ids) if ids else text_column([])

    def among(self, ids: pa.StringArray) -> NDArray[np.bool_]:
        """(n,) whether each id is held out."""
        if not len(self._ids):
            return np.zeros(len(ids), dtype=np.bool_)
        found: NDArray[np.bool_] = pc.is_in(ids, value_set=self._ids).to_numpy(zero_copy_only=False)
        return found

    def new(self, ids: pa.StringArray, window: DuplicateWindow) -> NDArray[np.bool_]:
        """(n,) whether each id is new to the window. Those held out always are, and are not added to it:
        the window counts records of experiences."""
        held = self.among(ids)
        if not held.any():
            return window.add(ids)
        new = np.ones(len(ids), dtype=np.bool_)
        new[~held] = window.add(ids.filter(pa.array(~held)))
        return new

    def parts(self, records: Records, split: Split) -> NDArray[np.uint8]:
        """(n,) the part of each record, as its index in `PARTS`, or `HELD_OUT`."""
        parts = parts_of(records.split_keys, split)
        parts[self.among(records.ids)] = HELD_OUT
        return parts
