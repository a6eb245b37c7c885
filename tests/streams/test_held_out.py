"""Ids that are held out: which records they drop, and that they take no room in the duplicate window."""

import pytest

from streams.duplicates import DuplicateWindow
from streams.held_out import HeldOut
from streams.records import text_column


@pytest.mark.parametrize("held", [HeldOut(), HeldOut([text_column([])])])
def test_nothing_is_held_out_by_no_ids(held: HeldOut) -> None:
    assert not held.among(text_column(["a", "b"])).any()
    assert held.among(text_column([])).tolist() == []
    kept, out = held.sift(text_column(["a", "a", "b"]), DuplicateWindow(10))
    assert (kept.tolist(), out.tolist()) == ([True, False, True], [False] * 3)


def test_ids_of_every_set_are_held_out() -> None:
    held = HeldOut([text_column(["a", "b"]), text_column(["d", "elsewhere"])])
    assert held.among(text_column(list("abcd"))).tolist() == [True, True, False, True]


@pytest.mark.parametrize("window", [0, 10])
def test_records_that_are_all_held_out_leave_none(window: int) -> None:
    held = HeldOut([text_column(["a", "b"])])
    kept, out = held.sift(text_column(["a", "b", "a"]), DuplicateWindow(window))
    assert (kept.tolist(), out.tolist()) == ([False] * 3, [True] * 3)
    kept, out = held.sift(text_column(["c", "a", "c"]), DuplicateWindow(window))
    assert (kept.tolist(), out.tolist()) == ([True, False, not window], [False, True, False])


def test_held_out_ids_are_never_duplicates_and_take_no_room_in_the_window() -> None:
    held, window = HeldOut([text_column(["g"])]), DuplicateWindow(2)
    kept, out = held.sift(text_column(["a", "g", "g", "b", "a"]), window)
    assert kept.tolist() == [True, False, False, True, False]
    assert out.tolist() == [False, True, True, False, False]
    assert window.knows(text_column(["a", "g", "b"])).tolist() == [True, False, True]
    window.committed(2)
    assert window.knows(text_column(["a", "b"])).tolist() == [True, True]
