"""Findings on the batch itself, before anything is learnt, and how numbers read in every sentence."""

import math
from dataclasses import replace
from typing import Any

import pytest

from service.gate import sentences as say
from service.gate.base import DataEvidence
from service.gate.guards import batch as batch_guards
from tests.support.gate_parts import CLEAN, CONFIG


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (say.points(0.05), "5"),
        (say.points(0.0078), "0.8"),
        (say.points(-0.0001), "0"),
        (say.points(0.1), "10"),
        (say.with_unit(0.01), "1 point"),
        (say.percent(0.62), "62 %"),
        (say.percent(0.004), "0.4 %"),
        (say.percent(0.0), "0 %"),
        (say.percent(0.1), "10 %"),
        (say.records(1), "1 record"),
        (say.about(227), "about 230"),
        (say.about(7), "about 7"),
        (say.about(4114), "about 4100"),
        (say.listed([4]), "4"),
        (say.listed([1, 3, 8]), "1, 3 and 8"),
        (say.listed([4, 5, 6]), "4 to 6"),
        (say.experiences([4, 5]), "experiences 4 and 5"),
        (say.at_worst(0.0497, 0.05), "at worst 4.97 points lost"),
        (say.at_worst(0.01, 0.05), "at worst 1 point lost"),
        (say.at_worst(0.0001, 0.05), "at worst nothing lost"),
        (say.between(0.031, 0.078, 0.02), "between 3.1 and 7.8 points"),
        (say.between(0.0777, 0.0781, 0.02), "about 7.8 points"),
        (say.between(0.019, 0.020013, 0.02), "between 1.9 and 2.001 points"),
        (say.share(0.009967, 0.01), "0.00997"),
        (say.between(-0.001, 0.078, 0.02), "up to 7.8 points"),
        (say.were_allowed(0.01), "1 was allowed"),
        (say.were_allowed(0.02), "2 were allowed"),
    ],
)
def test_numbers_read_naturally(said: str, expected: str) -> None:
    assert said == expected


def test_clean_batch_passes() -> None:
    found = batch_guards.data(CLEAN, CONFIG)
    assert [(each.guard, each.answer) for each in found] == [
        ("values", "pass"),
        ("anomalies", "pass"),
        ("labels", "pass"),
    ]
    assert found[0].sentence == "values: all 600 records are whole"
    assert found[2].sentence == (
        "labels: 3 % of the batch disagree with their neighbours, 3 % did before, 10 points more allowed "
        "(512 records compared)"
    )


def test_shuffled_labels_and_broken_pixels_fail() -> None:
    found = batch_guards.data(replace(CLEAN, label_error_rate=0.62, anomaly_rate=0.4), CONFIG)
    assert [each.answer for each in found] == ["pass", "fail", "fail"]
    assert found[2].sentence == (
        "labels: 62 % of the batch disagree with their neighbours, 3 % did before, 10 points more allowed "
        "(512 records compared); "
        "the batch was not learnt: check how they were labelled"
    )
    assert found[1].sentence == (
        "anomalies: 40 % of the batch look like no other record, 1 % did before, 20 points more allowed "
        "(512 records compared); "
        "the batch was not learnt: check the features"
    )


def test_an_excess_that_chance_explains_passes() -> None:
    few = replace(CLEAN, sample=5, label_error_rate=0.4, reference_label_error_rate=0.25)
    assert batch_guards.data(few, CONFIG)[2].answer == "pass"


@pytest.mark.parametrize(
    ("changed", "answer", "sentence"),
    [
        (
            {"misshapen": "records have the shape (8,), (9,) was declared"},
            "fail",
            "values: records have the shape (8,), (9,) was declared; the batch was not learnt: "
            "correct the source or the pipeline",
        ),
        (
            {"nonfinite_records": 3},
            "fail",
            "values: 3 of 600 records hold a NaN or an infinite number; the batch was not learnt: "
            "correct the source",
        ),
        ({"records": 0}, "undecided", "values: the batch is empty; wait for records"),
        (
            {"nonfinite_records": 601},
            "undecided",
            "values: 601 broken records of 600 cannot be; count the batch again",
        ),
    ],
)
def test_broken_values(changed: dict[str, Any], answer: str, sentence: str) -> None:
    [found] = batch_guards.data(replace(CLEAN, **changed), CONFIG)
    assert (found.answer, found.sentence) == (answer, sentence)


@pytest.mark.parametrize("field", ["records", "nonfinite_records"])
@pytest.mark.parametrize("count", [math.nan, None, -1, math.inf, 2.5, "600"])
def test_counts_that_are_none_are_undecided(field: str, count: Any) -> None:
    changed: dict[str, Any] = {field: count}
    [found] = batch_guards.data(replace(CLEAN, **changed), CONFIG)
    assert found.answer == "undecided"
    assert found.sentence.endswith(" cannot be; count the batch again")
    assert all(math.isfinite(value) for value in found.numbers.values())


def test_first_batch_says_that_there_is_nothing_to_compare_with() -> None:
    [found] = batch_guards.data(DataEvidence(records=600, nonfinite_records=0), CONFIG)
    assert found.answer == "pass"
    assert found.sentence == (
        "values: all 600 records are whole; labels and anomalies have nothing to be compared with yet"
    )


def test_too_small_a_batch_is_undecided() -> None:
    found = batch_guards.data(DataEvidence(records=20, nonfinite_records=0, has_reference=True), CONFIG)
    assert [each.answer for each in found] == ["pass", "undecided", "undecided"]
    assert found[2].sentence == (
        "labels: 20 records are too few to compare with earlier batches; "
        "merge the batch with the next, or let a person look at it"
    )


@pytest.mark.parametrize(
    "field", ["label_error_rate", "reference_label_error_rate", "anomaly_rate", "sample"]
)
def test_rates_that_are_no_numbers_are_undecided(field: str) -> None:
    changed: dict[str, Any] = {field: math.nan}
    found = batch_guards.data(replace(CLEAN, **changed), CONFIG)
    assert "undecided" in {each.answer for each in found}
