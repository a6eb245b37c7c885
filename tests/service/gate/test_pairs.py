"""Paired answers and their comparison: what can be paired, how columns are read, what is pooled."""

import numpy as np
import pytest

from service.gate import base
from service.gate.batch_evidence import ShiftEvidence
from service.gate.comparisons import pooled_counts, problem
from service.gate.config import GateConfig
from service.gate.pairs import Column, Details, PairedAnswers, counts

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
    found = pair.problem
    assert found is not None
    assert why in found
    assert "predict its holdout again" in found
    assert problem(pair, 0.02) == found


def test_answers_that_can_be_paired_have_no_problem() -> None:
    assert PairedAnswers(0, RIGHT, ~RIGHT).problem is None
    assert PairedAnswers(0, RIGHT[:0], RIGHT[:0]).problem is None
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


def test_counts_of_a_pool_are_the_sums_of_its_members() -> None:
    random = np.random.default_rng(0)
    answers = [PairedAnswers(each, *(random.random((2, n)) < 0.7)) for each, n in enumerate((5, 1, 40, 300))]
    counted = counts(answers)
    assert counted[:, 0].tolist() == [
        5,
        *(int(bits.sum()) for bits in (answers[0].baseline, answers[0].challenger) if bits is not None),
        int((answers[0].baseline & answers[0].challenger).sum()),  # type: ignore[operator]
    ]
    pools = [[2], [0, 3], [3, 1, 0], [2]]
    found = pooled_counts(counted, pools)
    assert found.shape == (4, 4)
    for column, members in enumerate(pools):
        assert found[:, column].tolist() == counted[:, members].sum(axis=1).tolist()


def test_failures_are_none_until_they_are_counted() -> None:
    pair = PairedAnswers(0, RIGHT, RIGHT)
    assert (pair.looks, pair.failures, pair.failure_runs) == (0, 0, 0)


@pytest.mark.parametrize(("on_shift", "halved"), [("strict", True), ("note", False), ("review", False)])
def test_only_a_strict_pipeline_halves_the_excesses_of_a_shifted_batch(on_shift: str, halved: bool) -> None:
    config = GateConfig.model_validate({"on_shift": on_shift})
    shift = ShiftEvidence("shifted", 0.001, {}, 0.5, 0, 500, 500, 0.0)
    assert config.for_shift(None) == config
    found = config.for_shift(shift)
    assert found.label_error_excess == config.label_error_excess / (2 if halved else 1)
    assert found.margin == config.margin
