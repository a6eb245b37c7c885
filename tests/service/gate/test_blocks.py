"""Blocks: members follow from order and numbers of records, and stay as they are when more is learnt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.gate.base import DataEvidence, Evidence, GateConfig, PairedAnswers, PastExperience
from service.gate.blocks import Pool, blocks_of, history_of, partition, pools_of, units_of
from service.gate.decide import decide
from service.gate.guards.retention import records_of_block, records_of_single
from tests.support.gate_parts import CONFIG, drawn, of_guard, paired

CLOSED = records_of_block(CONFIG, CONFIG.margin, alpha=CONFIG.alpha)
"""Records from which on a block is closed."""
THIRD = -(-CLOSED // 3)
"""Of so many records each, three experiences close a block and two do not."""


def past_of(*records: int, archived: int = 0) -> tuple[PastExperience, ...]:
    """Experiences with so many records, of which the first so many are archived."""
    return tuple(PastExperience(each, n, archived=each < archived) for each, n in enumerate(records))


def sizes_of(history: tuple[PastExperience, ...], *, without: tuple[int, ...] = ()) -> dict[int, int]:
    return {each.experience: each.records for each in history if each.experience not in without}


def pooled(history: tuple[PastExperience, ...], sizes: dict[int, int], enough: int) -> list[Pool]:
    return pools_of(blocks_of(history, sizes, enough), sizes, lambda _: enough)


def test_a_block_is_closed_by_the_experience_that_makes_it_enough() -> None:
    history = past_of(40, 50, 30, 20, 60, 10)
    assert blocks_of(history, sizes_of(history), 100) == [[0, 1, 2], [3, 4, 5]]
    assert blocks_of(history, sizes_of(history), 90) == [[0, 1], [2, 3, 4], [5]]


def test_an_experience_with_enough_is_alone_and_leaves_the_open_block_open() -> None:
    history = past_of(40, 200, 60, 100, 5)
    assert blocks_of(history, sizes_of(history), 100) == [[1], [0, 2], [3], [4]]
    # Enough for a block of several is not enough to be alone: it is closed with a neighbour.
    assert blocks_of(history, sizes_of(history), 100, alone=150) == [[1], [0, 2], [3, 4]]
    assert blocks_of(history, sizes_of(history), 90, alone=150) == [[1], [0, 2], [3, 4]]
    assert partition([], 10) == []


def test_the_order_is_that_of_learning_and_not_of_numbers() -> None:
    history = tuple(PastExperience(each, 50) for each in (3, 0, 2, 1))
    assert blocks_of(history, sizes_of(history), 100) == [[3, 0], [2, 1]]


def test_what_is_retired_moves_no_other() -> None:
    history = past_of(*[50] * 6)
    whole = blocks_of(history, sizes_of(history), 100)
    assert whole == [[0, 1], [2, 3], [4, 5]]
    assert blocks_of(history, sizes_of(history, without=(2,)), 100) == [[0, 1], [3], [4, 5]]
    assert blocks_of(history, sizes_of(history, without=(2, 3)), 100) == [[0, 1], [4, 5]]


def test_the_archive_is_one_block_and_the_first() -> None:
    history = past_of(5, 5, 50, 50, 50, archived=2)
    assert blocks_of(history, sizes_of(history), 100) == [[0, 1], [2, 3], [4]]
    late = (*past_of(50, 50), PastExperience(7, 5, archived=True))
    assert blocks_of(late, sizes_of(late), 100) == [[7], [0, 1]]
    assert blocks_of(late, sizes_of(late, without=(7,)), 100) == [[0, 1]]


def test_units_of_the_archive_follow_from_the_records_that_are_judged() -> None:
    history = (*(PastExperience(each, 1000, archived=True) for each in range(4)), *past_of()[4:])
    assert units_of(history, dict.fromkeys(range(4), 50), 100) == [[0, 1], [2, 3]]
    assert blocks_of(history, dict.fromkeys(range(4), 50), 100) == [[0, 1, 2, 3]]


def test_a_short_block_joins_those_before_it_then_those_after() -> None:
    sizes = dict(enumerate((100, 30, 100, 100)))
    blocks = [[0], [1], [2], [3]]
    assert pools_of(blocks, sizes, lambda _: 100)[1] == Pool((1,), (0,))
    first = dict(enumerate((10, 20, 100, 100)))
    assert pools_of(blocks, first, lambda _: 100) == [Pool((0, 1), (2,)), Pool((2,)), Pool((3,))]
    assert pools_of([[1], [2], [3]], sizes, lambda _: 100)[0] == Pool((1,), (2,))
    assert [each.members for each in pools_of([[1]], sizes, lambda _: 100)] == [(1,)], "there are no others"
    assert pools_of([], {}, lambda _: 100) == []


def test_blocks_that_come_to_the_same_records_are_one_pool() -> None:
    sizes = dict.fromkeys(range(3), 30)
    assert pools_of([[0], [1], [2]], sizes, lambda _: 90) == [Pool((0, 1, 2))]
    # The first two are the same 60 records; the newest is the last pool.
    assert pools_of([[0], [1], [2]], sizes, lambda _: 60) == [Pool((0, 1)), Pool((2,), (1,))]


def test_the_history_comes_first_and_what_is_not_in_it_after_by_number() -> None:
    history = (PastExperience(4, 10), PastExperience(1, 20))
    found = history_of(history, [paired(7, experience=9), paired(8, experience=4), paired(9, experience=3)])
    assert found == (*history, PastExperience(3, 9), PastExperience(9, 7))
    twice = (PastExperience(4, 10), PastExperience(1, 20), PastExperience(4, 30))
    assert history_of(twice, []) == twice[:2], "an experience that stands there twice counts once"


RECORDS = st.lists(st.integers(1, 300), min_size=1, max_size=25)


@settings(deadline=None, max_examples=200)
@given(RECORDS, st.integers(1, 400), st.integers(0, 25), st.data())
def test_blocks_whatever_the_sizes(
    records: list[int], enough: int, archived: int, data: st.DataObject
) -> None:
    history = past_of(*records, archived=archived)
    gone = tuple(data.draw(st.sets(st.integers(0, len(records) - 1))))
    sizes = sizes_of(history, without=gone)
    blocks = blocks_of(history, sizes, enough)
    assert sorted(each for block in blocks for each in block) == sorted(sizes), "no holdout is in no block"
    for pools in (
        pooled(history, sizes, enough),
        pools_of(units_of(history, sizes, enough), sizes, lambda _: enough),
    ):
        assert sorted(each for pool in pools for each in pool.own) == sorted(sizes)
        assert len({frozenset(pool.members) for pool in pools}) == len(pools)
        for pool in pools:
            assert not set(pool.own) & set(pool.joined)
            n = sum(sizes[each] for each in pool.members)
            assert n >= enough or len(pool.members) == len(sizes), "short only where there are no more"
            if pool.joined and len(pools) > 1:
                assert sum(sizes[each] for each in pool.own) < enough


@settings(deadline=None, max_examples=200)
@given(RECORDS, st.integers(1, 400), st.integers(1, 300), st.data())
def test_a_full_block_stays_when_more_is_learnt_and_when_others_are_retired(
    records: list[int], enough: int, more: int, data: st.DataObject
) -> None:
    history = past_of(*records)
    sizes = sizes_of(history)
    before = blocks_of(history, sizes, enough)
    later = past_of(*records, more)
    after = blocks_of(later, sizes_of(later), enough)
    closed = [block for block in before if sum(sizes[each] for each in block) >= enough]
    assert [block for block in after if block in closed] == closed
    gone = data.draw(st.integers(0, len(records) - 1))
    left = blocks_of(history, sizes_of(history, without=(gone,)), enough)
    expected = [[each for each in block if each != gone] for block in before]
    assert left == [block for block in expected if block]


def members(evidence: Evidence, config: GateConfig = CONFIG) -> list[tuple[object, ...]]:
    """What `decide` judges together: records, members and margin of each finding, without its answers."""
    found = of_guard(decide(evidence, config), "retention")
    return [
        (
            each.experience,
            *(each.numbers.get(name) for name in ("n", "margin", "pooled", "joined")),
        )
        for each in found
    ]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_what_is_judged_together_follows_from_no_answer(records: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    new = (paired(600, gained=60, experience=99),)
    still = tuple(paired(n, experience=each) for each, n in enumerate(records))
    # Little enough that no alarm adds a finding, so much that answers differ.
    flips = [random.integers(0, [3, 9]).tolist() if n > 50 else (0, 0) for n in records]
    churned = tuple(
        paired(n, lost=lost, gained=gained, experience=each)
        for each, (n, (lost, gained)) in enumerate(zip(records, flips, strict=True))
    )
    batch = DataEvidence(600, 0)
    assert members(Evidence(batch, past=still, new=new)) == members(Evidence(batch, past=churned, new=new))


def blocks_found(past: tuple[PairedAnswers, ...], history: tuple[PastExperience, ...]) -> set[str]:
    found = of_guard(decide(Evidence(DataEvidence(600, 0), past=past, history=history), CONFIG), "retention")
    return {each.sentence.split(" kept ")[0] for each in found if "pooled" in each.numbers}


def test_decide_keeps_blocks_when_one_is_retired_and_another_is_learnt() -> None:
    history = past_of(*[THIRD] * 9)
    past = tuple(paired(THIRD, experience=each) for each in range(9))
    assert blocks_found(past, history) == {"experiences 0 to 2", "experiences 3 to 5", "experiences 6 to 8"}
    without = tuple(each for each in past if each.experience != 4)
    assert blocks_found(without, history) == {
        "experiences 0 to 2",
        "experiences 3 and 5",
        "experiences 6 to 8",
    }
    more = (*past, paired(THIRD, experience=9))
    assert blocks_found(more, past_of(*[THIRD] * 10)) == {
        "experiences 0 to 2",
        "experiences 3 to 5",
        "experiences 6 to 8",
        "experience 9",
    }


def test_decide_judges_the_archive_as_one_block() -> None:
    history = past_of(*[THIRD] * 23, archived=20)
    archived = -(-CLOSED // 20)
    past = tuple(paired(archived if each < 20 else THIRD, experience=each) for each in range(23))
    assert "experiences 0 to 19" in blocks_found(past, history)
    # The block of 18 to 20 was closed before two of them were archived.
    assert {"experience 20", "experiences 21 and 22"} <= blocks_found(past, history)


@pytest.mark.parametrize("seed", range(5))
def test_every_past_holdout_is_in_a_block_and_every_large_one_is_judged_by_itself_too(seed: int) -> None:
    random = np.random.default_rng(seed)
    records = random.integers(1, 1500, 15).tolist()
    past = tuple(drawn(random, n, loss=0.0, churn=0.02, experience=each) for each, n in enumerate(records))
    found = of_guard(decide(Evidence(DataEvidence(600, 0), past=past), CONFIG), "retention")
    alone = [each.experience for each in found if "pooled" not in each.numbers]
    least = records_of_single(CONFIG, alpha=CONFIG.alpha)
    assert {each for each, n in enumerate(records) if n >= least} <= set(alone)
    blocks = sum(
        int(each.numbers["pooled"])
        for each in found
        if "pooled" in each.numbers and "too small" not in each.sentence
    )
    assert blocks + sum(n >= CLOSED for n in records) == len(records)
