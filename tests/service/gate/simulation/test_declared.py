"""The plan of a declared gate: one line, numbers that are the gate's own, and what is refused as hopeless."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.gate.base import GateConfig
from service.gate.simulation.asked import CHURNS, asked
from service.gate.simulation.declared import DeclaredPlan, declared_plan
from service.gate.simulation.planning import plan
from tests.service.test_cli import refused
from tests.support.commands import holdfast


def planned(
    records: int | None, *, fewest: int | None = None, audit: float = 0.2, gate: float = 0.25, **fields: Any
) -> DeclaredPlan:
    """The plan for a trigger of so many records; with `fewest`, of at least those and at most `records`."""
    least = fewest or records or 1
    config = GateConfig.model_validate(fields)
    return declared_plan(config, gate=gate, audit=audit, fewest=least, most=records)


@pytest.mark.parametrize("records", [200, 500, 1000, 2000, 12_500])
def test_the_numbers_are_those_of_the_plan_and_of_the_table(records: int) -> None:
    found = planned(records)
    sized = plan(GateConfig(), gate=0.25, audit=0.2, records=records).sized
    assert sized is not None
    assert (found.records, found.gate_records, found.sealed_records) == (
        records,
        sized.gate_records,
        sized.sealed_records,
    )
    assert found.unseen_loss == (sized.single_margin if sized.unseen is None else sized.unseen)
    assert found.asked == tuple(
        (churn, asked(GateConfig(), gate=sized.gate_records, sealed=sized.sealed_records, churn=churn))
        for churn in CHURNS
    )
    assert (found.hopeless, found.remedy) == (None, None)


def test_the_line_says_how_often_it_asks_what_may_be_lost_and_what_would_halve_both() -> None:
    found = planned(200)
    assert found.sentence == (
        f"With 200 records an experience, about {found.asked[0][1].mean:.0f} of 100 harmless updates that "
        "flip 6 % of the answers will ask you, and one experience may lose 47 points unseen; "
        f"{found.halved_at:,} records would halve both."
    )


@pytest.mark.parametrize("records", [100, 200, 350])
def test_the_records_that_halve_both_do_and_a_tenth_less_do_not(records: int) -> None:
    before = planned(records)
    assert before.halved_at is not None
    assert before.unseen_loss is not None
    limits = before.asked[0][1].mean / 2, before.unseen_loss / 2
    after, less = planned(before.halved_at), planned(round(before.halved_at * 0.9))
    assert _at_most(after, *limits)
    assert not _at_most(less, *limits)


def _at_most(found: DeclaredPlan, asks: float, loss: float) -> bool:
    assert found.unseen_loss is not None
    return found.asked[0][1].mean <= asks and found.unseen_loss <= loss


def test_settings_without_a_figure_get_none_and_are_never_refused_for_it() -> None:
    found = planned(50, alpha=0.03)
    assert found.asked == ()
    assert "no figure says how often these settings ask: holdfast gate questions gives one" in found.sentence
    assert found.hopeless is None


def test_without_a_number_of_records_the_line_says_from_how_many_on_what_holds() -> None:
    found = planned(None)
    assert (found.records, found.gate_records, found.unseen_loss, found.asked) == (None, None, None, ())
    assert found.sentence.startswith("The trigger declares no number of records: from 812 records on, ")
    assert found.hopeless is None
    hardly = planned(None, gate=5e-324).sentence
    assert "with split.gate 4.94066e-324, one experience may lose more than 15 points unseen" in hardly


def test_a_trigger_that_bounds_its_records_gets_limits() -> None:
    most, least = planned(1000, fewest=1), planned(None, fewest=1000)
    assert (most.asked[0][1].bound, least.asked[0][1].bound) == ("at least", "at most")
    assert "With 1,000 records or fewer an experience, at least" in most.sentence
    assert "may lose at least 13.4 points" in most.sentence
    assert "With 1,000 records or more an experience, at most" in least.sentence
    # How often larger experiences ask is no reason to refuse them.
    assert planned(None, fewest=20).hopeless is None
    assert planned(50, fewest=1).hopeless is not None


@pytest.mark.parametrize(
    ("records", "fields", "why", "remedy"),
    [
        (40, {}, "would wait for a person", "Declare larger experiences ("),
        (1, {}, "would wait for a person", "a larger split.gate, or wider margins"),
        (30, {}, "would wait for a person", "a larger split.gate, or gate: {preset: eager}"),
        (5, {"preset": "eager"}, "would wait for a person", "a larger split.gate, or wider margins"),
        (
            100,
            {"margin": 0.011, "learning_margin": 0.011},
            "would wait for a person",
            "or wider margins (gate.margin and gate.learning_margin)",
        ),
        (500, {"margin": 0.001, "budget": 0.01}, "at gate.margin 0.001", "Give a wider gate.margin"),
        (
            500,
            {"learning_margin": 0.001},
            "at gate.learning_margin 0.001",
            "Give a wider gate.learning_margin",
        ),
        (
            None,
            {"max_holdouts": 1, "archive_records": 10, "holdout_records": 100},
            "At most 110 gate records are ever judged together",
            "gate.max_holdouts, gate.holdout_records or gate.archive_records",
        ),
        (5000, {"max_holdouts": 1, "archive_records": 1, "holdout_records": 50}, "At most 51 gate", "let "),
    ],
)
def test_a_gate_that_most_harmless_updates_would_not_pass_is_hopeless(
    records: int | None, fields: dict[str, Any], why: str, remedy: str
) -> None:
    found = planned(records, **fields)
    assert found.hopeless is not None
    assert found.remedy is not None
    assert why in found.hopeless
    assert remedy in found.remedy


@pytest.mark.parametrize("records", [100, 200, 1000, 100_000])
@pytest.mark.parametrize("preset", ["cautious", "balanced", "eager"])
def test_a_preset_is_never_hopeless_from_100_records_on(records: int, preset: str) -> None:
    assert planned(records, preset=preset).hopeless is None


def test_what_can_never_be_held_is_noted() -> None:
    assert planned(1000).notes == ()
    assert planned(1000, audit=0).notes == (
        "Nothing is sealed (split.audit is 0), so the budget is never held.",
    )
    assert planned(200, small_margin=0.04).notes == (), "blocks of several are smaller then"
    block, budget = planned(40).notes
    assert block.startswith("No block is ever full: at most 5,500 gate records")
    assert budget.startswith("The budget is never held: at most 5,400 sealed records")


@pytest.mark.parametrize(
    "fields",
    [
        {"margin": 1e-12, "learning_margin": 1e-12, "budget": 1e-12, "single_margin": 1e-12},
        {"margin": 0.999, "learning_margin": 0.999, "budget": 0.999, "single_margin": 0.999},
        {"planned_churn": 0.5, "alpha": 1e-9, "alarm_alpha": 1e-9},
        {"holdout_records": 1, "archive_records": 1, "max_holdouts": 1},
        {"audits": 10_000, "holdout_looks": 1},
    ],
)
@pytest.mark.parametrize("records", [None, 1, 10_000_000])
def test_every_gate_that_can_be_declared_has_a_plan(records: int | None, fields: dict[str, Any]) -> None:
    found = planned(records, **fields)
    assert found.sentence.endswith(".")
    assert "nan" not in found.sentence


def test_the_commands_take_the_gate_of_a_pipelines_file(tmp_path: Path) -> None:
    file = tmp_path / "sensors.yaml"
    gate = {"preset": "eager", "single_margin": 0.3}
    file.write_text(yaml.safe_dump({"name": "x", "trigger": {"records": 320}, "gate": gate}))
    found = json.loads(holdfast("gate", "plan", "--pipeline", file, "--json").stdout)
    assert found["records"] == 320
    assert (found["gate"]["margin"], found["gate"]["single_margin"]) == (0.03, 0.3)
    few = ("gate", "questions", "--pipeline", file, "--updates", "3", "--lifetimes", "1", "--json")
    asked_of = json.loads(holdfast(*few).stdout)
    assert (asked_of["lifetime"]["records"], asked_of["gate"]["single_margin"]) == (320, 0.3)
    nearer = json.loads(holdfast(*few, "--margin", "0.01", "--records", "300").stdout)
    assert (nearer["lifetime"]["records"], nearer["gate"]["learning_margin"]) == (300, 0.01)
    file.write_text("gate: {margin: 7}")
    refused(holdfast("gate", "questions", "--pipeline", file), 1, "margin", "less than 1")
    refused(holdfast("gate", "plan", "--preset", "bold"), 1, "preset", "'cautious'")
