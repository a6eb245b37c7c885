"""Log lines of a process: one form for all of them, and no local variable in a traceback."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import logging, sys
import structlog
from service.logs import configure
from service.settings import Settings

configure(Settings(log_format=sys.argv[1], log_level=sys.argv[2]))
log = structlog.get_logger("service.test")
structlog.contextvars.bind_contextvars(update="u-1")
log.debug("too quiet")
log.info("experience cut", experience=3)
logging.getLogger("some.library").warning("a library says %s", "this")
logging.getLogger("httpx").info("a request that nobody needs")
try:
    password = "hunter" + "2"
    raise ValueError("no luck")
except ValueError:
    log.exception("it failed")
"""


def lines(form: str, level: str = "INFO") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, form, level], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert "hunter2" not in done.stderr
    return done.stderr.splitlines()


def test_json_lines_are_objects_with_time_level_and_context() -> None:
    ours, library, failed = map(json.loads, lines("json"))
    assert (ours["event"], ours["experience"], ours["update"]) == ("experience cut", 3, "u-1")
    assert (ours["level"], ours["logger"]) == ("info", "service.test")
    assert ours["timestamp"].endswith("Z")
    assert (library["event"], library["level"]) == ("a library says this", "warning")
    assert "ValueError: no luck" in failed["exception"]


def test_text_lines_hold_the_same_for_people() -> None:
    ours, library, failed, *traceback = lines("text")
    assert "experience cut" in ours
    assert "experience=3" in ours
    assert "a library says this" in library
    assert "it failed" in failed
    assert traceback[-1] == "ValueError: no luck"


@pytest.mark.parametrize(("level", "events"), [("DEBUG", 4), ("WARNING", 2), ("ERROR", 1)])
def test_nothing_below_the_level_is_logged(level: str, events: int) -> None:
    assert len(lines("json", level)) == events
