"""Ids that are never trained on, because a golden set of the pipeline holds the records of these ids."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streams.duplicates import DuplicateWindow
from streams.records import text_column


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

    def sift(
        self, ids: pa.StringArray, window: DuplicateWindow
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(n,) which records are kept, and (n,) which are held out; the others are duplicates.

        Those held out are not added to the window, which counts records of experiences.
        """
        held = self.among(ids)
        kept = ~held
        if window.wanted and kept.any():
            kept[~held] = window.add(ids.filter(pa.array(kept)) if held.any() else ids)
        return kept, held
