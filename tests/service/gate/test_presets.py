"""Presets: defaults under a name, which what is given wins over, and which a stored gate keeps."""

import pytest
from pydantic import ValidationError

from service.gate.base import GateConfig
from service.gate.presets import PRESETS
from service.gate.simulation.planning import one_experience


def test_balanced_is_what_a_gate_is_without_a_preset() -> None:
    assert GateConfig(preset="balanced") == GateConfig()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_its_fields_and_no_other(preset: str) -> None:
    gate = GateConfig.model_validate({"preset": preset})
    values = next(fields for name, fields in PRESETS.items() if name == preset)
    assert gate == GateConfig.model_validate({**values, "preset": preset})
    assert gate.model_dump(exclude={"preset", *values}) == GateConfig().model_dump(
        exclude={"preset", *values}
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_weakens_the_error_rate_of_a_promise(preset: str) -> None:
    gate = GateConfig.model_validate({"preset": preset})
    assert (gate.alpha, gate.alarm_alpha) == (GateConfig().alpha, GateConfig().alarm_alpha)
    assert gate.margin <= gate.budget


def test_fields_next_to_a_preset_win() -> None:
    gate = GateConfig.model_validate({"preset": "eager", "margin": 0.01})
    assert (gate.margin, gate.learning_margin, gate.preset) == (0.01, 0.03, "eager")


def test_a_stored_gate_keeps_its_values_whatever_its_preset_says_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declared = GateConfig(preset="eager")
    stored = declared.model_dump(mode="json")
    monkeypatch.setattr("service.gate.presets.PRESETS", {"eager": {"margin": 0.4, "alpha": 0.1}})
    assert GateConfig.model_validate(stored) == declared
    assert GateConfig(preset="eager").margin == 0.4


def test_a_gate_that_an_earlier_release_stored_is_the_same_gate() -> None:
    stored = GateConfig(margin=0.04).model_dump(mode="json", exclude={"preset", "accept"})
    assert GateConfig.model_validate(stored) == GateConfig(margin=0.04)


@pytest.mark.parametrize("wrong", ["bold", "", 1, None, ["eager"], {"eager": 1}])
def test_a_preset_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError, match=r"preset\n"):
        GateConfig.model_validate({"preset": wrong})


@pytest.mark.parametrize("records", [250, 500, 1250])
def test_what_one_experience_may_lose_is_less_under_cautious_and_never_less_under_eager(records: int) -> None:
    losses = {name: one_experience(GateConfig(preset=name), records).loss for name in PRESETS}
    assert losses["cautious"] < losses["balanced"] <= losses["eager"]
