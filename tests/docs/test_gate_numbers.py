"""The numbers by which a person chooses a margin are the gate's own, and tables are what commands print."""

import re
import shlex

import pytest
from typer.testing import CliRunner

from service import cli
from service.gate import stats
from service.gate.simulation import planning
from tests.support.doc_pages import page

MARGINS = page("how-to/choose-margins.md")
STATISTICS = page("explanation/gate-statistics.md")
SIMULATED = re.findall(
    r"^```sh\n(holdfast gate [^`]*?)\n```\n+```text\n([^`]*?)^```", MARGINS + STATISTICS, flags=re.M | re.S
)


def test_the_numbers_that_help_to_choose_a_margin_are_the_gates_own() -> None:
    found = re.findall(r"^\| (\d+) points? \| (\d+) \| ([\d,]+) \| ([\d,]+) \|$", MARGINS, flags=re.M)
    assert len(found) >= 3
    first_attempt = stats.spent(0.05, 1)
    for margin_points, floor, few, many in found:
        margin = int(margin_points) / 100
        assert int(floor) == int(stats.floor_n(margin, first_attempt))
        for churn, shown in ((0.02, few), (0.06, many)):
            assert int(shown.replace(",", "")) == int(
                stats.needed_n(margin, first_attempt, churn=churn, power=0.8)
            )


@pytest.mark.parametrize(
    ("command", "shown"), SIMULATED, ids=[" ".join(command.split()) for command, _ in SIMULATED]
)
def test_the_simulated_tables_are_what_their_commands_print(command: str, shown: str) -> None:
    done = CliRunner().invoke(cli.app, shlex.split(command.replace("\\\n", " "))[1:])
    assert done.exit_code == 0, done.output
    assert done.output == shown


def test_every_simulation_is_followed_by_what_it_prints() -> None:
    """But for the one that takes many minutes; its row stands in a table of `make bench AREA=gate`."""
    assert {command.split()[2] for command, _ in SIMULATED} == {"plan", "questions", "simulate"}
    shown = re.findall(r"^holdfast gate (?:simulate|plan|questions) ", MARGINS + STATISTICS, flags=re.M)
    assert len(shown) == len(SIMULATED) + 1
    assert MARGINS.count("--audit 2500 ") == 1


def test_the_planned_records_are_the_gates_own() -> None:
    table = MARGINS.split("\n| margin | 3 % flip, 1 holdout |")[1].split("\n\n")[0]
    found = re.findall(r"^\| (\d) points \| (.*) \|$", table, flags=re.M)
    assert len(found) >= 3
    first = stats.spent(0.05, 1)
    for margin, shown in found:
        planned = [
            planning.needed_records(
                margin=int(margin) / 100, alpha=first, churn=churn, power=planning.power_each(0.9, holdouts)
            )
            for churn in (0.03, 0.06)
            for holdouts in (1, 5, 20)
        ]
        assert [int(each.replace(",", "")) for each in shown.split(" | ")] == planned


def test_records_a_day_times_days_are_the_records_of_an_experience() -> None:
    """The table by records a day follows from the one of the default shares."""
    settled = {
        int(margin): int(records.replace(",", ""))
        for records, margin in re.findall(r"^\| ([\d,]+) \| (\d) points \| ", MARGINS, flags=re.M)
    }
    assert sorted(settled) == [2, 3, 5]
    table = MARGINS.split("| records a day |")[1].split("\n\n")[0]
    lines = re.findall(r"^\| ([\d,]+) \| (.*) \|$", table, flags=re.M)
    assert len(lines) >= 5
    for a_day, cells in lines:
        for days, cell in zip((1, 7, 28), cells.split(" | "), strict=True):
            records = int(a_day.replace(",", "")) * days
            margins = [margin for margin, needed in settled.items() if records >= needed]
            assert cell == (f"{min(margins)} points ({records:,})" if margins else "-")
