"""The duplicate window, against lists: what it knows, where it ends, and that a restart knows the same."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import duplicates
from streams.duplicates import DuplicateWindow
from streams.records import text_column


@dataclass
class Model:
    """The rule in its plainest form."""

    window: int
    experiences: list[list[str]] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    def recalled(self) -> list[list[str]]:
        """The latest experiences that together hold at least `window` records."""
        held, count = [], 0
        for experience in reversed(self.experiences):
            if count >= self.window:
                break
            held.append(experience)
            count += len(experience)
        return held[::-1]

    def known(self) -> set[str]:
        return {*self.pending, *(name for experience in self.recalled() for name in experience)}

    def add(self, names: list[str]) -> list[bool]:
        new = []
        for name in names:
            new.append(name not in self.known())
            if new[-1]:
                self.pending.append(name)
        return new

    def commit(self, rows: int) -> int:
        rows = min(rows, len(self.pending))
        self.experiences.append(self.pending[:rows])
        self.pending = self.pending[rows:]
        return rows


def restarted(model: Model) -> DuplicateWindow:
    """A window that recalls what is committed, and then reads on: what is pending comes again."""
    window = DuplicateWindow(model.window)
    for experience in model.recalled():
        # The parts of an experience are recalled one after the other: the order within is another.
        for part in (sorted(experience)[::2], sorted(experience)[1::2]):
            window.add(text_column(part))
        window.committed(len(experience))
    window.add(text_column(model.pending))
    return window


def recognised(window: DuplicateWindow, names: list[str]) -> list[bool]:
    return [bool(known) for known in window.knows(text_column(names))]


IDS = [f"r{number}" for number in range(12)]
TURNS = st.one_of(st.lists(st.sampled_from(IDS), max_size=8), st.integers(1, 9))


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 15), st.lists(TURNS, max_size=25))
def test_it_knows_what_the_rule_says_and_a_restart_knows_the_same(
    size: int, turns: list[list[str] | int]
) -> None:
    model, window = Model(size), DuplicateWindow(size)
    for turn in turns:
        if isinstance(turn, int):
            rows = model.commit(turn)
            if not rows:
                model.experiences.pop()  # a cut takes one record at least
                continue
            window.committed(rows)
        else:
            assert window.add(text_column(turn)).tolist() == model.add(turn)
        known = [name in model.known() for name in IDS]
        assert recognised(window, IDS) == known
        assert recognised(restarted(model), IDS) == known


def test_of_equal_ids_within_one_batch_the_first_is_new() -> None:
    window = DuplicateWindow(10)
    assert window.add(text_column(["a", "b", "a", "a", "c", "b"])).tolist() == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    assert recognised(window, ["a", "d"]) == [True, False]


def test_the_window_ends_at_the_border_of_an_experience() -> None:
    window = DuplicateWindow(5)
    window.add(text_column(["a", "b", "c", "d"]))
    window.committed(4)
    window.add(text_column(["e", "f", "g", "h"]))
    window.committed(4)
    assert recognised(window, list("abcdefgh")) == [True] * 8, (
        "4 are fewer than 5: both experiences reach into it"
    )
    window.add(text_column(["i"]))
    assert recognised(window, ["a"]) == [True], "what is not cut moves no border"
    window.committed(1)
    assert recognised(window, list("abcdefghi")) == [False] * 4 + [True] * 5


def test_an_id_that_came_back_after_its_time_is_known_by_its_later_place() -> None:
    window = DuplicateWindow(3)
    for turn in range(50):
        assert window.add(text_column(["again", f"x{turn}", f"y{turn}"])).tolist() == [
            turn % 2 == 0,
            True,
            True,
        ]
        window.committed(3 if turn % 2 == 0 else 2)
        if turn % 2:
            window.add(text_column([f"z{turn}"]))
            window.committed(1)
    # Of what is long gone only the hashes of about a window are kept.
    assert sum(len(run[0]) for run in window._runs) <= 12
    assert len(window._ends) <= 4


def test_a_window_of_nothing_knows_nothing_and_is_not_asked() -> None:
    window = DuplicateWindow(0)
    assert not window.wanted
    window.committed(3)
    assert window._ends == []


def test_records_that_cannot_be_recalled_still_fill_their_window() -> None:
    # The retention policy removed a train part: its 8 ids are unknown, but they count.
    window = DuplicateWindow(10)
    window.add(text_column(["a", "b"]))
    window.committed(10)
    window.add(text_column(["c"]))
    window.committed(1)
    assert recognised(window, ["a", "b", "c"]) == [True] * 3
    window.add(text_column([f"d{number}" for number in range(9)]))
    window.committed(9)
    assert recognised(window, ["a", "b", "c"]) == [False, False, True]


def test_both_hashes_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_alike(ids: object) -> tuple[np.ndarray, np.ndarray]:
        first, second = hashes(ids)
        return np.zeros_like(first), second

    hashes = duplicates._hashes
    monkeypatch.setattr(duplicates, "_hashes", first_alike)
    window = DuplicateWindow(10)
    assert window.add(text_column(["a", "b", "a"])).tolist() == [True, True, False]


def test_it_costs_memory_and_time_for_the_window_alone() -> None:
    window = DuplicateWindow(1_000)
    for turn in range(400):
        window.add(text_column([f"{turn}-{row}" for row in range(50)]))
        window.committed(50)
    assert sum(len(run[0]) for run in window._runs) <= 2 * 1_100
    assert len(window._runs) <= 12
    assert len(window._ends) <= 22
    assert recognised(window, ["379-0", "380-0", "399-49"]) == [False, True, True]
