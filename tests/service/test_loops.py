"""Loops survive every failure, show it, and are started again; one bad item ends no pass over all."""

import threading
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from service import loops
from service.loops import Loop, Loops, for_all
from tests.support.running import wait_for


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(loops, "LONGEST_PAUSE", 0.05)


@pytest.mark.parametrize("error", [ValueError("a"), KeyError(), MemoryError(), RecursionError(), OSError(5)])
def test_a_loop_survives_every_exception_and_says_so(stop: threading.Event, error: Exception) -> None:
    turns: list[int] = []

    def turn() -> float:
        turns.append(1)
        if len(turns) < 4:
            raise error
        return 0.01

    of_role = Loops(stop)
    of_role.start("upkeep", turn)
    wait_for(lambda: len(turns) >= 2, seconds=5, hint="second turn")
    found = of_role.troubles()
    if found:
        (trouble,) = found
        assert trouble.loop == "upkeep"
        assert trouble.reason.startswith(f"{type(error).__name__}, incident ")
    wait_for(lambda: len(turns) >= 6 and not of_role.troubles(), seconds=5, hint="turns that work again")


def test_what_the_exception_says_is_shown_nowhere(stop: threading.Event) -> None:
    loop = Loop("projector", lambda: _raise("http://user:S3KRET@host"), stop)
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    trouble = wait_for(loop.trouble, seconds=5, hint="a trouble")
    assert "S3KRET" not in str(trouble)


def _raise(text: str) -> float:
    raise RuntimeError(text)


def test_pauses_grow_up_to_the_longest(stop: threading.Event) -> None:
    with capture_logs() as lines:
        Loops(stop).start("database", lambda: _raise("away"))
        wait_for(lambda: len(lines) >= 6, seconds=5, hint="sixth failure")
        stop.set()
    assert [line["pause_seconds"] for line in lines[:6]] == [0.01, 0.02, 0.04, 0.05, 0.05, 0.05]
    assert [line["log_level"] for line in lines[:3]] == ["error", "warning", "warning"], "one traceback"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_started_again(stop: threading.Event) -> None:
    turns: list[int] = []

    def turn() -> float:
        turns.append(1)
        if len(turns) == 1:
            raise SystemExit
        return 0.01

    of_role = Loops(stop)
    of_role.start("updater", turn)
    wait_for(lambda: not of_role.is_running("updater"), seconds=5, hint="end of the thread")
    of_role.tend()
    wait_for(lambda: len(turns) >= 2, seconds=5, hint="a turn of the next thread")
    assert of_role.is_running("updater")


def test_a_loop_that_is_done_ends_and_is_not_started_again(stop: threading.Event) -> None:
    turns: list[int] = []

    def turn() -> None:
        turns.append(1)

    of_role = Loops(stop)
    of_role.start("ingest-p", turn)
    wait_for(lambda: not of_role.is_running("ingest-p"), seconds=5, hint="end of the loop")
    of_role.tend()
    assert (len(turns), of_role.is_running("ingest-p"), of_role.troubles()) == (1, False, [])
    of_role.start("ingest-p", turn)
    wait_for(lambda: len(turns) == 2, seconds=5, hint="a turn after it was started again")


def test_a_turn_that_hangs_is_shown_and_holds_up_no_stop(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "SLOW_SECONDS", 0.05)
    hangs = threading.Event()
    of_role = Loops(stop)
    of_role.start("ingest-silent", lambda: float(hangs.wait(20)))
    of_role.start("upkeep", lambda: 30.0)
    (trouble,) = wait_for(of_role.troubles, seconds=5, hint="the hanging turn")
    assert (trouble.loop, trouble.reason) == ("ingest-silent", "its turn has not ended yet")
    stop.set()
    assert of_role.join(0.3) == ["ingest-silent"], "the one that sleeps is woken and ends"
    hangs.set()


def test_one_bad_item_ends_no_pass_over_all() -> None:
    done: list[str] = []

    def project(name: str) -> None:
        if name in ("b", "d"):
            raise ValueError(name)
        done.append(name)

    assert for_all("abcde", project, what="pipeline") == ["b", "d"]
    assert done == ["a", "c", "e"]
