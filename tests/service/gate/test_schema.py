"""The JSON form of a verdict: what its schema says is what the gate gives, whatever the evidence."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.gate.base import (
    Deviation,
    Evidence,
    Freeze,
    GateConfig,
    NearDuplicates,
    Running,
    Suspects,
    Verdict,
    WorstRecord,
)
from service.gate.decide import decide
from service.gate.schema import NUMBERS, schema
from tests.service.gate.guards.test_all_guards import ALL, GOOD, disturbed, repeated, sound
from tests.service.gate.guards.test_budget import answers as sealed
from tests.service.gate.guards.test_budget import evidence as audited
from tests.service.gate.guards.test_cost import TIMES, WHOLE
from tests.service.gate.guards.test_golden import answers as golden
from tests.service.gate.test_decide import SHIFTED
from tests.support.gate_parts import CLEAN, first

SPARSE = GateConfig(margin=0.05, learning_margin=0.05, on_shift="review")
STRICT = ALL.model_copy(update={"learning_gain": 0.01, "seeds_disagreement": 0.001})
FORGOTTEN = replace(sound(0), challenger=np.arange(600) % 3 != 0)
TOLD = replace(
    SHIFTED,
    p_values={"features": 1e-9, "probabilities": 0.2, "labels": 0.3},
    prior_shift=0.1,
    estimated_accuracy=0.8,
    reference_accuracy=0.9,
)
POISON = WorstRecord(
    "r-1", "planted", 3.5, "a mark in a corner", label=2, deviations=(Deviation(7, 9.0, 0.0, 1.0),)
)
POISONED = replace(
    CLEAN,
    suspects=Suspects(
        600,
        2000,
        rates={"planted": 0.2, "outliers": 0.0, "mislabelled": 0.0},
        expected_rates={"planted": 0.0, "outliers": 0.0, "mislabelled": 0.0},
        worst=(POISON,),
        dead_features=(3,),
    ),
)


def verdicts() -> Iterator[Verdict]:
    """Every guard with every answer that it can give."""
    nobody = Evidence(CLEAN)
    for evidence in (
        GOOD,
        nobody,
        replace(GOOD, past=(FORGOTTEN, sound(1)), shift=TOLD),
        replace(GOOD, past=(sound(0, n=40), sound(1, n=30)), new=(sound(2, n=50),), disturbed=disturbed(20)),
        replace(GOOD, past=(replace(FORGOTTEN, near_duplicates=NearDuplicates(300, 250, 0.02)), sound(1))),
        replace(GOOD, past=(replace(FORGOTTEN, traffic=0.01), sound(1))),
        replace(GOOD, past=(replace(sound(0), looks=9999), sound(1)), freeze=Freeze("u-1", 3)),
        replace(GOOD, running=replace(WHOLE, challenger_rounds=tuple(9 * each for each in TIMES))),
        replace(GOOD, running=Running(), repeats=()),
        replace(GOOD, repeats=(replace(repeated(0, 1, 2), failure="the loss is no number"),)),
        replace(GOOD, data=replace(CLEAN, label_error_rate=math.nan, anomaly_rate=math.inf)),
        replace(GOOD, data=replace(CLEAN, label_error_rate=0.9), learnt=False),
        replace(GOOD, data=replace(POISONED, sample=600), learnt=False),
        replace(GOOD, data=replace(CLEAN, records=0)),
        replace(GOOD, golden=(golden(600), golden(40, margin=None, number=1))),
        replace(GOOD, golden=(golden(600, lost=80), golden(30, lost=1, margin=None, number=1))),
        replace(GOOD, golden=(golden(30), golden(30, number=1, challenger=None))),
        Evidence(CLEAN, new=(first(600, majority=60, right=540),), first=True),
        Evidence(CLEAN, new=(first(600, majority=300, right=310),), first=True),
    ):
        yield from (decide(evidence, config) for config in (ALL, STRICT, SPARSE))
    for looked_at in (
        [sealed(0, 3000)],
        [sealed(0, 3000, lost=400)],
        [sealed(0, 30)],
        [sealed(0, 1400), sealed(1, 1400)],
        [sealed(0, 3000, looks=50)],
    ):
        yield decide(audited(*looked_at), SPARSE)


def test_every_verdict_has_the_form_that_the_schema_says() -> None:
    form = schema()
    jsonschema.Draft202012Validator.check_schema(form)
    validator = jsonschema.Draft202012Validator(form)
    given: dict[str, set[str]] = {}
    carried: set[str] = set()
    for verdict in verdicts():
        written = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
        validator.validate(written)
        for each in [*written["findings"], *written["notes"]]:
            carried |= set(each["numbers"])
            given.setdefault(each.get("guard", "note"), set()).add(each.get("answer", "note"))
    assert carried <= set(NUMBERS), carried - set(NUMBERS)
    assert set(NUMBERS) <= carried, f"no finding carries {set(NUMBERS) - carried}"
    assert len(given) > 20, given


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "promoted"},
        {"reason": ""},
        {"schema": "holdfast.verdict/2"},
        {"findings": [{"guard": "retention", "answer": "pass", "sentence": "kept", "experience": None}]},
        {"more": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_no_verdict_does_not_have_that_form(change: dict[str, Any]) -> None:
    written = decide(GOOD, ALL).as_dict()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(json.dumps({**written, **change})), schema())


def test_the_schema_is_printed() -> None:
    done = CliRunner().invoke(app, ["gate", "schema"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == schema()
