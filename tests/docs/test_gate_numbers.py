"""The numbers by which a person chooses a margin are the gate's own, and tables are what commands print."""

import re
import shlex
from typing import Any

import pytest
from typer.testing import CliRunner

from service import cli
from service.gate import sentences as say
from service.gate.base import GateConfig
from service.gate.simulation import planning
from streams.split import Split
from tests.support.doc_pages import page

MARGINS = page("how-to/choose-margins.md")
STATISTICS = page("explanation/gate-statistics.md")
SIMULATED = re.findall(
    r"^```sh\n(holdfast gate [^`]*?)\n```\n+```text\n([^`]*?)^```", MARGINS + STATISTICS, flags=re.M | re.S
)


def planned(*, records: int | None = None, **knobs: Any) -> planning.Plan:
    return planning.plan(GateConfig(**knobs), gate=Split().gate, audit=Split().audit, records=records)


def test_what_the_defaults_give_is_the_gates_own() -> None:
    table = MARGINS.split("\n| records of an experience | gate records |")[1].split("\n\n")[0]
    found = re.findall(r"^\| ([\d,]+) \| (\d.*) \|$", table, flags=re.M)
    assert len(found) >= 5
    for records, shown in found:
        plan = planned(records=int(records.replace(",", "")))
        sized = plan.sized
        assert sized is not None
        assert sized.audited_margin is not None
        full = "" if sized.judged_records >= plan.block_records else ", never full"
        alone = say.points(sized.single_margin)
        if sized.unseen is not None:
            alone = f"{say.points(sized.unseen)} could go unseen"
        assert shown.split(" | ") == [
            f"{sized.gate_records:,}",
            f"{sized.block_experiences}{full}",
            alone,
            str(sized.budget_from),
            f"{say.points(sized.audited_margin)} from {sized.audited_from} on",
        ]


def test_the_records_of_a_block_are_the_gates_own() -> None:
    found = re.findall(r"^\| (\d) points? \| (\d+) \| (.*) \|$", MARGINS, flags=re.M)
    assert len(found) >= 3
    for margin, least, blocks in found:
        each = [planned(margin=int(margin) / 100, planned_churn=churn) for churn in (0.03, 0.06, 0.12, 0.2)]
        assert int(least) == each[0].least_records
        assert blocks.split(" | ") == [f"{its.block_records:,}" for its in each]


@pytest.mark.parametrize(
    ("command", "shown"), SIMULATED, ids=[" ".join(command.split()) for command, _ in SIMULATED]
)
def test_the_simulated_tables_are_what_their_commands_print(command: str, shown: str) -> None:
    done = CliRunner().invoke(cli.app, shlex.split(command.replace("\\\n", " "))[1:])
    assert done.exit_code == 0, done.output
    assert done.output == shown


def test_every_simulation_is_followed_by_what_it_prints() -> None:
    assert {command.split()[2] for command, _ in SIMULATED} == {"plan", "presets", "questions", "simulate"}
    shown = re.findall(
        r"^holdfast gate (?:simulate|plan|presets|questions)\b", MARGINS + STATISTICS, flags=re.M
    )
    assert len(shown) == len(SIMULATED)
