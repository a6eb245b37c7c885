"""CPU time of each test, its child processes included, and the budget that none may pass.

Wall time depends on what else the machine does; CPU time does less, though two busy threads of one core can
double it. A test not marked slow that uses more
than BUDGET_SECONDS fails the run, and is named with what it used. A fixture that several tests share, such as
a started service, counts by itself: the test that happens to ask for it first is not charged with it.
"""

import os
import resource
from collections.abc import Generator
from pathlib import Path

import pytest

BUDGET_SECONDS = 60.0
SHARED_BUDGET_SECONDS = 180.0
"""Of one shared fixture, such as a run of the whole demo."""
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

    def __init__(self, *, budget_seconds: float = BUDGET_SECONDS, shown: int = 15) -> None:
        self.budget_seconds = budget_seconds
        self.shared_budget_seconds = budget_seconds * SHARED_BUDGET_SECONDS / BUDGET_SECONDS
        self.shown = shown
        self.used: dict[str, float] = {}
        self.over: dict[str, float] = {}
        self._in_shared = False
        self._item: pytest.Item | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note where the test's CPU time begins; what it set up for others counts as its own."""
        item.stash[_STARTED] = cpu_seconds()
        item.stash[_SHARED] = {}
        self._item = item
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: "pytest.FixtureDef[object]", request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Note what the outermost shared fixture used, with all that it set up in turn."""
        if fixturedef.scope not in ("module", "package", "session") or self._in_shared:
            return (yield)
        self._in_shared = True
        started = cpu_seconds()
        try:
            return (yield)
        finally:
            self._in_shared = False
            shared = self._item.stash[_SHARED] if self._item is not None else {}
            shared[f"{fixturedef.argname} ({fixturedef.scope})"] = cpu_seconds() - started

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Hand the figure to the process that reports: with xdist, another one than runs the test."""
        report = yield
        if call.when == "teardown":
            shared = item.stash[_SHARED]
            used = cpu_seconds() - item.stash[_STARTED] - sum(shared.values())
            report.user_properties.append((PROPERTY, max(0.0, used)))
            report.user_properties.append(("shared", shared))
            report.user_properties.append(("slow", item.get_closest_marker("slow") is not None))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what each test used, wherever it ran."""
        properties = dict(report.user_properties)
        seconds = properties.get(PROPERTY)
        if report.when != "teardown" or not isinstance(seconds, float):
            return
        self.used[report.nodeid] = seconds
        slow = bool(properties["slow"])
        if seconds > self.budget_seconds and not slow:
            self.over[report.nodeid] = seconds
        shared = properties["shared"]
        assert isinstance(shared, dict)
        for name, its_seconds in shared.items():
            fixture = f"fixture {name}, set up for {report.nodeid}"
            self.used[fixture] = its_seconds
            if its_seconds > self.shared_budget_seconds and not slow:
                self.over[fixture] = its_seconds

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
                f"FAILED: {name} used {seconds:.0f} s of CPU, more than it may. "
                "Make it shorter, share what it starts, or mark it slow and leave a short form."
            )


_STARTED: pytest.StashKey[float] = pytest.StashKey()
_SHARED: pytest.StashKey[dict[str, float]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Take the budget from HOLDFAST_TEST_CPU_BUDGET, in seconds, where it is set."""
    budget = float(os.environ.get("HOLDFAST_TEST_CPU_BUDGET", BUDGET_SECONDS))
    config.pluginmanager.register(CpuBudget(budget_seconds=budget), "cpu-budget")
