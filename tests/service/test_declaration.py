"""What a declaration says of its gate, by its trigger, and which gates it refuses."""

from typing import Any

import pytest

from service.declaration import gate_plan, require_hope
from service.errors import PipelineHopelessError
from service.pipelines import PipelineSpec, parse


def declared(trigger: dict[str, Any], **gate: Any) -> PipelineSpec:
    return parse(
        {
            "name": "fraud",
            "schema": {"shape": [6], "classes": ["no", "yes"]},
            "trigger": trigger,
            "strategy": {"name": "replay"},
            "gate": gate,
        }
    )


ANY = {"kind": "any-of", "any": [{"records": 500}, {"kind": "shift"}]}


@pytest.mark.parametrize(
    ("trigger", "records", "bound"),
    [
        ({"records": 500}, 500, "about"),
        ({"kind": "seconds", "seconds": 60}, None, "at most"),
        ({"kind": "shift"}, None, "at most"),
        ({"kind": "performance"}, None, "at most"),
        ({"kind": "cost"}, None, "at most"),
        (ANY, 500, "at most"),
        ({**ANY, "min_records": 500}, 500, "about"),
        ({**ANY, "min_records": 2000}, 2000, "about"),
        ({**ANY, "min_records": 300}, 300, "at least"),
        ({**ANY, "min_records": 300, "max_seconds": 60}, 500, "at most"),
        ({**ANY, "min_seconds": 60}, None, "at most"),
        ({"kind": "any-of", "any": [{"kind": "shift"}], "min_records": 700}, 700, "at least"),
        ({"kind": "any-of", "any": [{"records": 900}, {"records": 700}]}, 700, "about"),
    ],
)
def test_records_follow_from_what_the_trigger_declares(
    trigger: dict[str, Any], records: int | None, bound: str
) -> None:
    found = gate_plan(declared(trigger))
    assert (found.records, found.records_bound) == (records, bound)


def test_a_hopeless_gate_is_refused_in_one_sentence_unless_its_owner_accepts_it() -> None:
    with pytest.raises(PipelineHopelessError) as refused:
        require_hope(declared({"records": 40}))
    assert "of 100 harmless updates would wait for a person." in refused.value.detail
    assert refused.value.fix.endswith("gate: {accept: true} declares it as it is.")
    require_hope(declared({"records": 40}, accept=True))
    require_hope(declared({"records": 200}))


def test_a_number_that_is_not_known_is_no_reason_to_refuse() -> None:
    require_hope(declared({"records": 40}, alpha=0.03))
    require_hope(declared({"kind": "seconds", "seconds": 1}))


def test_a_gate_keeps_its_preset_and_the_values_that_it_had_when_it_was_declared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = declared({"records": 500}, preset="cautious", budget=0.03)
    stored = spec.model_dump(mode="json", by_alias=True)
    assert (stored["gate"]["preset"], stored["gate"]["margin"], stored["gate"]["budget"]) == (
        "cautious",
        0.015,
        0.03,
    )
    monkeypatch.setattr("service.gate.presets.PRESETS", {"cautious": {"planned_churn": 0.2}})
    assert parse(stored) == spec
