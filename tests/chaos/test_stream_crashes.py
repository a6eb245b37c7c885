"""The central promise, by crashes: every record is in one experience, whatever dies at any time."""

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from tests.chaos.crashes.points import MOST, STATEMENT, UPLOADS
from tests.support import needs, postgres, redis_server
from tests.support.repository import ROOT

COMBINATIONS = 8
STATEMENTS = (
    "UPDATE stream_states",
    "UPDATE offsets",
    "SELECT dead_letters",
    "INSERT dead_letters",
    "SELECT experiences",
    "UPDATE trigger_states",
)
"""Those of every commit, or nearly."""


def crashed(*arguments: str, seconds: float) -> dict[str, Any]:
    """Run the harness in a process of its own; its table goes to the output, its totals are the answer."""
    needs.program("initdb", package=postgres.PACKAGE, folders=postgres.FOLDERS)
    needs.program("redis-server", package=redis_server.PACKAGE)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.stream_crashes", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # it stops what it started
        process.wait(60)
        raise
    sys.stdout.write(output)
    totals: dict[str, Any] = json.loads(output.splitlines()[-1])
    return totals


def assert_the_promise_was_kept(totals: dict[str, Any]) -> None:
    assert totals["problems"] == []
    assert totals["records_in_experiences"] == totals["records_produced"] > 0
    assert (totals["duplicates"], totals["lost"], totals["foreign"]) == (0, 0, 0)
    assert totals["dead_letters_found"] == totals["dead_letters_expected"] > 0
    assert totals["copies_dropped"] == totals["copies_sent"] > 0
    assert totals["orphans_collected"] > 0
    assert totals["fenced"] > 0, "two processes at once were never in each other's way"


def boundaries_of(run: dict[str, Any]) -> Counter[str]:
    """By boundary, with all statements as one."""
    found: Counter[str] = Counter()
    for name, count in run["boundaries"].items():
        found[STATEMENT if name.startswith("statement: ") else name] += count
    return found


@pytest.mark.timeout(400)
def test_nothing_is_lost_or_taken_twice_whatever_dies_at_any_write_boundary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    totals = crashed("--crashes", "9", seconds=380)
    with capsys.disabled():
        counts = {name: value for name, value in totals.items() if isinstance(value, int | float)}
        sys.stdout.write(f"\n{json.dumps(counts)}\n")
    assert_the_promise_was_kept(totals)
    assert len(totals["runs"]) == COMBINATIONS
    assert all(run["exits"] + run["kills"] >= 9 for run in totals["runs"])
    died = sum((boundaries_of(run) for run in totals["runs"]), Counter[str]())
    assert set(MOST) <= set(died), "a boundary was never reached"


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_nothing_is_lost_or_taken_twice_in_200_crashes_of_every_source_on_every_database() -> None:
    totals = crashed("--crashes", "200", "--every-variant", seconds=2300)
    assert_the_promise_was_kept(totals)
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in totals["runs"]:
        runs.setdefault(run["run"].rpartition(" ")[0], []).append(run)
    assert len(runs) == COMBINATIONS
    for name, variants in runs.items():
        assert sum(run["exits"] + run["kills"] for run in variants) >= 200, name
        died = sum((boundaries_of(run) for run in variants), Counter[str]())
        assert all(died[boundary] >= 2 for boundary in (*MOST, *UPLOADS)), (name, died)
    assert all(totals["by_boundary"][f"statement: {statement}"] >= 5 for statement in STATEMENTS)
