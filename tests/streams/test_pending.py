"""What waits to be cut: divided at a record, with the duplicates on the side of the record before them."""

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streams.pending import Chunk, divide
from tests.support.stream_parts import records


def chunk(partition: str, kept: str, first: int = 0) -> Chunk:
    """A chunk written as text: a character is a record of that id, a dot is a duplicate that was dropped."""
    names = [name for name in kept if name != "."]
    dropped = [sum(name != "." for name in kept[:index]) for index, name in enumerate(kept) if name == "."]
    return Chunk(
        partition=partition,
        records=records(names),
        positions=[str(first + index + 1) for index, name in enumerate(kept) if name != "."],
        parts=np.zeros(len(names), dtype=np.uint8),
        arrived_at=np.nan,
        dropped=np.array(dropped, dtype=np.int64),
    )


def summary(chunks: list[Chunk]) -> list[str]:
    """The chunks as such texts."""
    found = []
    for each in chunks:
        names = each.records.ids.to_pylist()
        marks = ["." * int((each.dropped == index).sum()) for index in range(len(names) + 1)]
        text = "".join(mark + name for mark, name in zip(marks, [*names, ""], strict=True))
        found.append(f"{each.partition}:{text}")
    return found


def test_a_cut_within_a_chunk_leaves_the_duplicates_after_it() -> None:
    taken, left = divide([chunk("p", "a.b.c")], 2)
    assert (summary(taken), summary(left)) == (["p:a.b"], ["p:.c"])
    assert (taken[0].positions, left[0].positions) == (["1", "3"], ["5"])


def test_duplicates_at_the_end_of_a_chunk_stay_when_its_partition_ends_there() -> None:
    taken, left = divide([chunk("p", "ab.."), chunk("q", "cd")], 4)
    assert (summary(taken), summary(left)) == (["p:ab", "q:cd"], ["p:.."])


def test_duplicates_before_a_later_record_of_their_partition_go_with_it() -> None:
    taken, left = divide([chunk("p", "a."), chunk("p", ".."), chunk("q", "c"), chunk("p", ".b.")], 3)
    assert (summary(taken), summary(left)) == (["p:a.", "p:..", "q:c", "p:.b"], ["p:."])


def test_a_partition_of_duplicates_alone_stays() -> None:
    taken, left = divide([chunk("p", "..."), chunk("q", "ab"), chunk("r", "c")], 2)
    assert (summary(taken), summary(left)) == (["q:ab"], ["p:...", "r:c"])


def test_held_out_records_go_with_the_record_after_them_as_duplicates_do() -> None:
    # "g" marks: of a[g]b[g], the second came after the last record.
    marked = replace(chunk("p", "ab"), held_out=np.array([1, 2], dtype=np.int64))
    taken, left = divide([marked, chunk("q", "c")], 3)
    assert [each.held_out.tolist() for each in taken] == [[1], []]
    assert [(len(each), each.held_out.tolist()) for each in left] == [(0, [0])]
    taken, left = divide([marked], 1)
    assert [each.held_out.tolist() for each in taken] == [[]]
    assert [(summary([each]), each.held_out.tolist()) for each in left] == [(["p:b"], [0, 1])]


def test_more_than_there_is_takes_everything() -> None:
    taken, left = divide([chunk("p", "ab"), chunk("q", "c")], 10)
    assert (summary(taken), summary(left)) == (["p:ab", "q:c"], [])


def test_nothing_of_nothing_is_nothing() -> None:
    assert divide([], 0) == ([], [])
    assert divide([], 5) == ([], [])


TOLD = st.tuples(st.sampled_from("pq"), st.text(st.sampled_from("x."), min_size=1, max_size=6))


@given(st.lists(TOLD, max_size=6), st.integers(0, 20))
def test_each_partition_is_cut_at_a_record_and_nothing_is_lost(
    texts: list[tuple[str, str]], count: int
) -> None:
    firsts: Counter[str] = Counter()
    chunks = []
    for partition, text in texts:
        chunks.append(chunk(partition, text, firsts[partition]))
        firsts[partition] += len(text)
    total = sum(len(each) for each in chunks)
    taken, left = divide(chunks, count)
    assert sum(len(each) for each in taken) == min(count, total)
    for name in "pq":
        before, after = (
            "".join(text[2:] for text in summary(side) if text.startswith(name)) for side in (taken, left)
        )
        assert before + after == "".join(text for partition, text in texts if partition == name)
        assert not before.endswith("."), "what comes after the last record was not consumed"
    indices = [index for side in (taken, left) for each in side for index in each.positions]
    assert Counter(indices) == Counter(index for each in chunks for index in each.positions)
    ids = [name for side in (taken, left) for each in side for name in each.records.ids.to_pylist()]
    assert ids == [name for each in chunks for name in each.records.ids.to_pylist()]
