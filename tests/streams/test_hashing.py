"""The hash that splits and recognises records: the same for equal texts, for ever."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import hashing
from streams.hashing import hash_texts
from streams.records import compact, text_column

MASK = 2**64 - 1

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)

REFERENCE = {
    "": 0x0000000000000000,
    "a": 0xEDA3EBE27E2EDB64,
    "record-0": 0x99734F0B7288FEB7,
    "12345678": 0x43AD8D9C07C7735A,
    "123456789": 0x2547783136B5E943,
    "Grüße, 世界 🌍": 0x2513104AA418CA7D,
    "x" * 200: 0x629E1FBA71A7F0D2,
}
"""What was computed once. If one of these changes, records land in other parts: holdouts are trained on."""


def slowly(text: str, swapped: bool = False) -> int:
    """The function as the module's docstring tells it, a byte string at a time."""
    data = text.encode()
    state = len(data) * 0x9E3779B97F4A7C15 & MASK
    for index in range(0, len(data), 8):
        word = int.from_bytes(data[index : index + 8].ljust(8, b"\0"), "big" if swapped else "little")
        state = (state ^ word) * 0x9E3779B97F4A7C15 & MASK
        state ^= state >> 32
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def hashes(texts: Sequence[str], *, swapped: bool = False) -> list[int]:
    found: list[int] = hash_texts(text_column(texts), swapped=swapped).tolist()
    return found


def test_it_gives_what_it_always_gave() -> None:
    assert dict(zip(REFERENCE, hashes(list(REFERENCE)), strict=True)) == REFERENCE
    assert {text: hashes([text])[0] for text in REFERENCE} == REFERENCE, "alone as among others"


@given(st.lists(TEXTS, max_size=20), st.booleans())
def test_it_is_the_function_that_it_says_it_is(texts: list[str], swapped: bool) -> None:
    assert hashes(texts, swapped=swapped) == [slowly(text, swapped) for text in texts]


@given(st.integers(1, 40), st.lists(st.text("ab", min_size=40, max_size=40), min_size=1, max_size=9))
def test_texts_of_one_length_are_hashed_as_among_others(length: int, texts: list[str]) -> None:
    alike = [text[:length] for text in texts]
    assert hashes(alike) == hashes([*alike, "", "another length"])[: len(alike)]


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=20), st.data())
def test_equal_texts_have_equal_hashes_however_they_lie_in_memory(
    texts: list[str], data: st.DataObject
) -> None:
    column = text_column(texts)
    expected = hash_texts(column)
    first = data.draw(st.integers(0, len(texts)))
    last = data.draw(st.integers(first, len(texts)))
    indices = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1))), dtype=np.int64)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))))
    cut = column.slice(first, last - first)
    assert np.array_equal(hash_texts(cut), expected[first:last])
    assert np.array_equal(hash_texts(compact(cut)), expected[first:last])
    assert np.array_equal(hash_texts(column.take(pa.array(indices))), expected[indices])
    assert np.array_equal(hash_texts(column.filter(pa.array(mask))), expected[mask])
    whole = pa.concat_arrays([cut, column, column.slice(first)])
    assert np.array_equal(
        hash_texts(whole), np.concatenate([expected[first:last], expected, expected[first:]])
    )


def test_a_column_may_be_empty_and_texts_may_be() -> None:
    assert hashes([]) == []
    assert hashes(["", "", "a", ""]) == [slowly(""), slowly(""), slowly("a"), slowly("")]
    assert hash_texts(text_column(["a", "b"]).slice(2)).tolist() == []


@pytest.mark.parametrize("size", [1, 2, 7])
def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    texts = ["a", "bb" * 9, "", "ccc", "bb" * 9, "ddddd"] * 3
    expected = hashes(texts)
    monkeypatch.setattr(hashing, "_BLOCK", size)
    assert hashes(texts) == expected


def test_zeros_at_the_end_are_told_apart() -> None:
    assert len(set(hashes(["a", "a\0", "a\0\0", "\0", "\0\0", ""]))) == 6


def test_texts_that_share_one_hash_do_not_share_the_other() -> None:
    # 2^62 apart in the first word, and 2^62 and 2^30 in the second: half of such texts share the first hash.
    generator = np.random.default_rng(7)
    drawn = generator.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), size=(2_000, 16))
    one, other = drawn.copy(), drawn.copy()
    one[:, [7, 11, 15]] = "0"
    other[:, [7, 11, 15]] = "p"
    texts = ["".join(row) for row in one], ["".join(row) for row in other]
    first = np.array(hashes(texts[0])) == np.array(hashes(texts[1]))
    second = np.array(hashes(texts[0], swapped=True)) == np.array(hashes(texts[1], swapped=True))
    assert first.mean() > 0.4
    assert not second.any()


def test_similar_ids_share_no_hash_and_fill_all_parts_alike() -> None:
    ids = [f"record-{number}" for number in range(100_000)]
    found = hash_texts(text_column(ids))
    assert len(np.unique(found)) == len(ids)
    for bits in (56, 28, 0):  # the first bits decide the part, the last the place in a table
        counts = np.bincount((found >> np.uint64(bits)).astype(np.uint64) & np.uint64(0xFF), minlength=256)
        statistic = ((counts - len(ids) / 256) ** 2 / (len(ids) / 256)).sum()
        assert 130 < statistic < 410, "chi squared of 255 degrees of freedom, beyond 1e-9 on both sides"
