"""CPU time of each test, its child processes included, and the budget that none may pass.

Wall time depends on what else the machine does; CPU time hardly does. A test not marked slow that uses more
than BUDGET_SECONDS fails the run, and is named with what it used.
"""

import os
import resource
from collections.abc import Generator
from pathlib import Path

import pytest

BUDGET_SECONDS = 60.0
PROPERTY = "cpu_seconds"
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """CPU time of this process, of its children that ended, and of all living descendants, in seconds."""
    own = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    ended = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    return own + ended + _of_descendants(os.getpid())


def _of_descendants(root: int) -> float:
    """CPU time of living descendants and of the children that these waited for; 0 without /proc."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        pid = int(folder.name)
        parents[pid] = int(after_name[1])
        used[pid] = sum(map(int, after_name[11:15])) / _TICKS
    found = {root}
    waiting = [root]
    while waiting:
        parent = waiting.pop()
        children = [pid for pid, its_parent in parents.items() if its_parent == parent and pid not in found]
        found.update(children)
        waiting += children
    return sum(used[pid] for pid in found - {root})


class CpuBudget:
    """Pytest plugin that measures every test and fails a run in which one is too expensive."""

    def __init__(self, *, budget_seconds: float = BUDGET_SECONDS, shown: int = 10) -> None:
        self.budget_seconds = budget_seconds
        self.shown = shown
        self.used: dict[str, float] = {}
        self.over: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note where the test's CPU time begins; what it set up for others counts as its own."""
        item.stash[_STARTED] = cpu_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Hand the figure to the process that reports: with xdist, another one than runs the test."""
        report = yield
        if call.when == "teardown":
            report.user_properties.append((PROPERTY, max(0.0, cpu_seconds() - item.stash[_STARTED])))
            report.user_properties.append(("slow", item.get_closest_marker("slow") is not None))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what each test used, wherever it ran."""
        properties = dict(report.user_properties)
        seconds = properties.get(PROPERTY)
        if report.when != "teardown" or not isinstance(seconds, float):
            return
        self.used[report.nodeid] = seconds
        if seconds > self.budget_seconds and not properties["slow"]:
            self.over[report.nodeid] = seconds

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Fail a run that is otherwise green where a test passed its budget."""
        if self.over and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name the most expensive tests, and those over budget."""
        if not self.used:
            return
        terminalreporter.section(f"CPU time: {sum(self.used.values()):.0f} s in all, most by test")
        for name, seconds in sorted(self.used.items(), key=lambda each: -each[1])[: self.shown]:
            terminalreporter.write_line(f"{seconds:7.1f} s  {name}")
        for name, seconds in self.over.items():
            terminalreporter.write_line(
                f"FAILED: {name} used {seconds:.0f} s of CPU, more than {self.budget_seconds:.0f} s. "
                "Make it shorter, share what it starts, or mark it slow and leave a short form."
            )


_STARTED: pytest.StashKey[float] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Take the budget from HOLDFAST_TEST_CPU_BUDGET, in seconds, where it is set."""
    budget = float(os.environ.get("HOLDFAST_TEST_CPU_BUDGET", BUDGET_SECONDS))
    config.pluginmanager.register(CpuBudget(budget_seconds=budget), "cpu-budget")
