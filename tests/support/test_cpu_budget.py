"""The CPU budget of tests: what a run says and how it ends when one test costs too much."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cpu_budget import cpu_seconds
from tests.support.repository import ROOT

BURN = """
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""
TESTS = f"""
import subprocess, sys, time
import pytest

{BURN}

def test_cheap():
    burn(0.01)

def test_that_burns_in_a_child():
    code = "import time\\nend = time.process_time() + 1.5\\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", code], check=True)

@pytest.mark.slow
def test_slow_by_name():
    burn(1.5)

@pytest.fixture(scope="module")
def shared():
    burn(1.5)

def test_that_shares(shared):
    burn(0.01)
"""


def run(folder: Path, *options: str, budget: float) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow: takes long\n")
    (folder / "test_costs.py").write_text(TESTS)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.cpu_budget", *options, "test_costs.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOLDFAST_TEST_CPU_BUDGET": str(budget)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_a_test_over_budget_fails_the_run_and_is_named(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = run(tmp_path, *options, budget=1.0)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    (named,) = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert "test_costs.py::test_that_burns_in_a_child used 2 s of CPU, more than it may." in named
    assert "4 passed" in done.stdout


def test_a_run_within_budget_is_green_and_shows_what_it_cost(tmp_path: Path) -> None:
    done = run(tmp_path, budget=30.0)
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert "CPU time:" in done.stdout
    assert "test_costs.py::test_slow_by_name" in done.stdout
    assert "fixture shared (module), set up for test_costs.py::test_that_shares" in done.stdout


def test_cpu_time_counts_children_that_still_run() -> None:
    before = cpu_seconds()
    code = f"import time\n{BURN}\nburn(0.5)\nprint('burnt', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert cpu_seconds() - before >= 0.4
        child.communicate("\n")
