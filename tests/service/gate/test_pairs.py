"""Paired answers and their comparison: what can be paired, how columns are read, what is pooled."""

import numpy as np
import pytest

from service.gate import base
from service.gate.batch_evidence import ShiftEvidence
from service.gate.comparisons import floor, is_small, pooled, problem
from service.gate.config import GateConfig
from service.gate.pairs import Column, Details, PairedAnswers

RIGHT = np.ones(10, dtype=bool)


def test_every_value_of_the_gate_is_importable_from_its_base() -> None:
    assert (base.GateConfig, base.PairedAnswers) == (GateConfig, PairedAnswers)
    assert (base.ShiftEvidence, base.Column, base.Details) == (ShiftEvidence, Column, Details)


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (PairedAnswers(0, None, RIGHT), "baseline's answers are missing"),
        (PairedAnswers(0, RIGHT, None), "challenger's answers are missing"),
        (PairedAnswers(0, RIGHT.astype(float), RIGHT), "not right/wrong bits"),
        (PairedAnswers(0, RIGHT, RIGHT[None]), "not right/wrong bits"),
        (PairedAnswers(0, RIGHT, RIGHT[:9]), "10 answers of the baseline against 9"),
    ],
)
def test_answers_that_cannot_be_paired_say_why(pair: PairedAnswers, why: str) -> None:
    found = pair.problem()
    assert found is not None
    assert why in found
    assert "predict its holdout again" in found
    assert problem(pair, 0.02) == found


def test_answers_that_can_be_paired_have_no_problem() -> None:
    assert PairedAnswers(0, RIGHT, ~RIGHT).problem() is None
    assert PairedAnswers(0, RIGHT[:0], RIGHT[:0]).problem() is None
    assert problem(PairedAnswers(0, RIGHT, RIGHT), 1.5) is not None


def test_a_column_counts_each_value_and_refuses_an_unknown_one() -> None:
    column = Column.of(np.array(["b", "a", "b"]))
    assert column.values == ("a", "b")
    assert column.sizes.tolist() == [1, 2]
    assert column.indices.dtype == np.uint8
    with pytest.raises(ValueError, match="has a record with another"):
        Column(("a",), np.array([0, 1]))


def test_the_first_details_are_those_of_the_first_records() -> None:
    numbers = np.arange(5, dtype=np.float32)
    details = Details(numbers.astype(np.int32), numbers, numbers, numbers)
    first = details.first(2)
    assert len(first) == 2
    assert first.score is not None
    np.testing.assert_array_equal(first.score, [0, 1])


def test_the_smallest_full_holdout_fills_a_pool_that_is_too_small() -> None:
    enough = floor(0.05)
    needed = enough(0.1)
    small, full, larger = (
        PairedAnswers(index, np.ones(n, dtype=bool), np.ones(n, dtype=bool))
        for index, n in enumerate((5, needed, 2 * needed))
    )
    assert is_small(small, 0.1, enough=enough)
    assert not is_small(full, 0.1, enough=enough)
    pool = pooled([(each, 0.1) for each in (small, larger, full)], enough=enough, margin=0.1)
    assert (pool.small, pool.added, pool.n) == ((0,), (1,), 5 + needed)


@pytest.mark.parametrize(("on_shift", "halved"), [("strict", True), ("note", False), ("review", False)])
def test_only_a_strict_pipeline_halves_the_excesses_of_a_shifted_batch(on_shift: str, halved: bool) -> None:
    config = GateConfig.model_validate({"on_shift": on_shift})
    shift = ShiftEvidence("shifted", 0.001, {}, 0.5, 0, 500, 500, 0.0)
    assert config.for_shift(None) == config
    found = config.for_shift(shift)
    assert found.label_error_excess == config.label_error_excess / (2 if halved else 1)
    assert found.margin == config.margin
