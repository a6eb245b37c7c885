"""Ids that are held out: which records they keep out of every part, and out of the duplicate window."""

import numpy as np
import pyarrow as pa
import pytest

from streams.duplicates import DuplicateWindow
from streams.held_out import HELD_OUT, HeldOut
from streams.records import text_column
from streams.split import PARTS, Split, parts_of
from tests.support.stream_parts import records as make_records


def test_a_held_out_record_is_in_no_part_whatever_its_split_key() -> None:
    records = make_records([f"r{row}" for row in range(200)])
    split = Split(gate=0.3, audit=0.2)
    ids = records.ids.to_pylist()
    held = HeldOut([text_column(ids[:10]), text_column([ids[50], "elsewhere"])])
    parts = held.parts(records, split)
    chosen = np.isin(ids, [*ids[:10], ids[50]])
    assert (parts[chosen] == HELD_OUT).all()
    np.testing.assert_array_equal(parts[~chosen], parts_of(records.split_keys, split)[~chosen])
    assert len(PARTS) == HELD_OUT


@pytest.mark.parametrize("held", [HeldOut(), HeldOut([text_column([])])])
def test_nothing_is_held_out_by_no_ids(held: HeldOut) -> None:
    assert not held.among(text_column(["a", "b"])).any()
    assert held.among(text_column([])).tolist() == []
    window = DuplicateWindow(10)
    assert held.new(text_column(["a", "a", "b"]), window).tolist() == [True, False, True]


def test_held_out_ids_are_never_duplicates_and_take_no_room_in_the_window() -> None:
    held, window = HeldOut([pa.array(["g"])]), DuplicateWindow(2)
    assert held.new(text_column(["a", "g", "g", "b", "a"]), window).tolist() == [
        True,
        True,
        True,
        True,
        False,
    ]
    assert window.knows(text_column(["a", "g", "b"])).tolist() == [True, False, True]
    window.committed(2)
    assert window.knows(text_column(["a", "b"])).tolist() == [True, True]
