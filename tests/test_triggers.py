"""Triggers decide by the records alone, however these arrive."""

import pytest
from pydantic import ValidationError

from streams.triggers import CountTrigger, Cut, RecordsTrigger
from tests.stream_parts import records

CHUNKS = [records(["a", "b"]), records(["c"]), records(["d", "e", "f"])]


def test_cuts_at_the_count_and_not_before() -> None:
    trigger = CountTrigger(4)
    assert trigger.decide(CHUNKS[:2], {}) is None
    assert trigger.decide(CHUNKS, {}) == Cut("4 records have arrived.", 4)
    assert trigger.decide([], {}) is None


def test_a_forced_cut_takes_all() -> None:
    assert CountTrigger(100).forced(CHUNKS, {}, reason="Now.") == Cut("Now.", 6)


def test_a_decision_keeps_the_state_it_was_given() -> None:
    cut = CountTrigger(1).decide(CHUNKS, {"since": 3})
    assert cut is not None
    assert cut.state == {"since": 3}


def test_the_config_builds_the_trigger() -> None:
    assert RecordsTrigger(records=500).build() == CountTrigger(500)
    assert RecordsTrigger.model_validate({"kind": "records", "records": 1}).records == 1


@pytest.mark.parametrize(
    "wrong", [{"records": 0}, {"records": 5, "kind": "seconds"}, {}, {"records": 5, "x": 1}]
)
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RecordsTrigger.model_validate(wrong)
