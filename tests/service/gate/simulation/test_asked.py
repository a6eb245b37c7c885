"""The kept table of questions: of this gate and its lifetimes, and scaled only where that is known."""

import json
from typing import Any

import numpy as np
import pytest

from service.commands.presets import module
from service.gate.base import GATE_VERSION, GateConfig
from service.gate.presets import PRESETS
from service.gate.simulation import asked_table
from service.gate.simulation.asked import (
    ADD,
    CHURNS,
    KEPT,
    LIMITS,
    MORE,
    NOT_ASKED,
    SCALED,
    SIZES,
    Cell,
    asked,
    simulated,
)
from tests.service.test_cli import refused
from tests.support.commands import holdfast
from tests.support.repository import ROOT

CHURN = CHURNS[0]


def rate(gate: int = 125, sealed: int = 100, **fields: Any) -> Any:
    return asked(GateConfig.model_validate(fields), gate=gate, sealed=sealed, churn=CHURN)


def mean(records: int, preset: str = "balanced") -> float:
    counted = asked_table.ASKED[preset, CHURN][records][0]
    return float(np.mean(counted)) * 100 / asked_table.UPDATES


def test_the_table_is_that_of_this_gate_and_whole() -> None:
    assert asked_table.OF_GATE == GATE_VERSION, "holdfast gate presets --simulate makes it again"
    assert set(asked_table.ASKED) == {(preset, churn) for preset in PRESETS for churn in CHURNS}
    for sizes in asked_table.ASKED.values():
        assert tuple(sizes) == SIZES
        for size, (counts, budget) in sizes.items():
            assert len(counts) == len(budget) == asked_table.LIFETIMES * MORE.get(size, 1)
            assert all(
                0 <= part <= of <= asked_table.UPDATES for part, of in zip(budget, counts, strict=True)
            )


@pytest.mark.parametrize(("preset", "records"), [("balanced", 50), ("eager", 100), ("cautious", 500)])
def test_a_lifetime_of_the_table_is_that_of_todays_gate(preset: Any, records: int) -> None:
    found = simulated(preset, CHURN, records, many=1, updates=asked_table.UPDATES, seed=asked_table.SEED)
    counts, budget = asked_table.ASKED[preset, CHURN][records]
    # A limit that is met to the last bit may be met on one machine alone.
    assert abs(found.asked[0] - counts[0]) <= 1
    assert abs(found.budget[0] - budget[0]) <= 1


def test_other_lifetimes_ask_as_often_within_the_error_of_both() -> None:
    found = simulated("balanced", CHURN, 100, many=2, updates=asked_table.UPDATES, seed=1000)
    counts = asked_table.ASKED["balanced", CHURN][100][0]
    error = np.std(counts, ddof=1) * np.sqrt(1 / len(counts) + 1 / 2)
    assert abs(np.mean(found.asked) - np.mean(counts)) <= 4 * error


def test_a_size_of_the_table_has_its_rate_and_another_one_lies_between() -> None:
    found = rate()
    assert found.mean == pytest.approx(mean(500))
    assert found.low < found.mean < found.high
    assert found.bound == "about"
    assert mean(1000) < rate(gate=190, sealed=152).mean < mean(500)


def test_beyond_the_table_a_rate_is_a_limit() -> None:
    assert rate(gate=5, sealed=4).bound == "about"
    assert rate(gate=2, sealed=2).bound == "at least"
    assert rate(gate=0, sealed=0).bound == "at least"
    many = rate(gate=5000, sealed=4000)
    assert (many.bound, many.mean) == ("at most", pytest.approx(mean(5000)))


def test_another_split_is_followed_by_gate_and_sealed_records_apart() -> None:
    without = rate(sealed=0)
    budget = float(np.mean(asked_table.ASKED["balanced", CHURN][500][1])) * 100 / asked_table.UPDATES
    assert without.mean == pytest.approx(mean(500) - budget)


def test_margins_are_scaled_by_their_square_between_half_and_twice_a_presets() -> None:
    halved = rate(gate=500, sealed=400, margin=0.01, learning_margin=0.01)
    assert halved.mean > 2 * rate(gate=500, sealed=400).mean
    assert halved.bound == "about"
    alone = rate(margin=0.03)
    assert (alone.bound, alone.mean) == ("at most", rate().mean)
    assert rate(margin=0.009, learning_margin=0.009) is None
    assert rate(margin=0.05, learning_margin=0.05) is None


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({"alpha": 0.03}, None),
        ({"planned_churn": 0.1}, None),
        ({"budget": 0.06}, None),
        ({"max_holdouts": 20}, None),
        ({"small_margin": 0.03}, None),
        ({"learning_gain": 0.01}, None),
        ({"holdout_looks": 50}, None),
        ({"holdout_records": 100}, None),
        ({"holdout_records": 200}, "about"),
        ({"holdout_looks": 400}, "about"),
        ({"suspect_excess": 0.1, "accept": True}, "about"),
        ({"preset": "eager"}, "about"),
        ({**PRESETS["eager"]}, "about"),
        ({"rare_classes": False}, "at most"),
        ({"groups": 0.05}, "at least"),
        ({"first_update": "review"}, "at least"),
        ({"groups": 0.05, "rare_classes": False}, None),
    ],
)
def test_a_setting_that_moves_the_rate_gives_a_limit_or_none(
    fields: dict[str, Any], bound: str | None
) -> None:
    found = rate(**fields)
    assert (None if found is None else found.bound) == bound


def test_every_field_of_a_gate_is_known_to_move_the_rate_or_not() -> None:
    known = [*SCALED, *ADD, *NOT_ASKED, *KEPT, *LIMITS]
    assert sorted(known) == sorted(GateConfig.model_fields)


def test_the_command_shows_every_preset() -> None:
    done = holdfast("gate", "presets")
    assert done.returncode == 0, done.stderr
    assert all(preset in done.stdout.splitlines()[0] for preset in PRESETS)
    document = json.loads(holdfast("gate", "presets", "--json").stdout)
    assert document["gate_version"] == GATE_VERSION
    (cell,) = (each for each in document["presets"]["balanced"]["sizes"] if each["records"] == 500)
    assert cell["asked"][0]["per_100"] == pytest.approx(mean(500))
    assert cell["unseen_loss"] == 0.21
    refused(holdfast("gate", "presets", "--simulate", "--lifetimes", "1"), 1, "--lifetimes")


def test_the_table_is_the_module_that_the_command_prints() -> None:
    cells: Any = {
        key: {records: Cell(*cell) for records, cell in sizes.items()}
        for key, sizes in asked_table.ASKED.items()
    }
    text = module(cells, lifetimes=asked_table.LIFETIMES, updates=asked_table.UPDATES, seed=asked_table.SEED)
    assert "\n".join(text) + "\n" == (ROOT / "service/gate/simulation/asked_table.py").read_text()
