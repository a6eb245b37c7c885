"""One update learnt with several seeds at once: side by side, found again after a crash, stopped together."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from service.gate.base import GateConfig
from service.storage import StoreLocation
from service.training import repeats
from service.training.repeats import learn, repeat_folder
from service.training.tasks import LEARNING, RESULT_FILE, OnProgress, Task
from strategies.base import StreamInfo


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(
        update_id="u1",
        folder=tmp_path / "u1",
        store=StoreLocation(tmp_path / "store", bucket=None, cache_bytes=0),
        champion=None,
        strategy={"name": "naive"},
        stream=StreamInfo((2,), ("a", "b")),
        gate=GateConfig(seeds=3),
        learn=(),
        new_holdouts=(),
        past_holdouts=(),
        missing_baselines=(),
        references=(),
    )


def finish(task: Task, *, learnt: bool = True) -> None:
    """Leave what a trainer leaves."""
    made: dict[str, Any] = {"seed": task.repeat}
    if not task.repeat:
        report = {"experience": 0, "records": 1, "steps": 1, "seconds": 1.0, "losses": []}
        made = {"data": {"records": 1, "nonfinite_records": 0}, "stopped": [], "screens": {}}
        made |= {"report": report} if learnt else {}
    task.folder.mkdir(parents=True)
    (task.folder / RESULT_FILE).write_text(json.dumps(made))


def ignore(_progress: Any) -> None:
    """Nobody listens."""


def test_all_seeds_learn_at_the_same_time(task: Task) -> None:
    together = threading.Barrier(3, timeout=20)

    def train(each: Task, on_progress: OnProgress) -> None:
        on_progress({"stage": LEARNING})
        together.wait()
        finish(each)

    learn(train, task, ignore, repeats=2)
    assert all(repeat_folder(task.folder, number).exists() for number in (1, 2))
    repeats.remove(task.folder)
    assert [path.name for path in task.folder.parent.iterdir()] == ["u1"]


def test_a_second_attempt_learns_only_what_is_missing(task: Task) -> None:
    learnt: list[int] = []

    def train(each: Task, _on_progress: OnProgress) -> None:
        if each.repeat == 2 and 2 not in learnt:
            learnt.append(2)
            raise OSError("the trainer died")
        learnt.append(each.repeat)
        finish(each)

    with pytest.raises(OSError, match="died"):
        learn(train, task, ignore, repeats=2)
    learn(train, task, ignore, repeats=2)
    assert sorted(learnt) == [0, 1, 2, 2]


def until_stopped(_each: Task, on_progress: OnProgress) -> None:
    for _ in range(2000):
        on_progress({})
        time.sleep(0.01)
    raise AssertionError("nobody stopped it")


def test_repeats_end_with_a_challenger_that_came_to_nothing(task: Task) -> None:
    def train(each: Task, on_progress: OnProgress) -> None:
        if each.repeat:
            until_stopped(each, on_progress)
        on_progress({"stage": LEARNING})
        raise OSError("the trainer died")

    began = time.monotonic()
    with pytest.raises(OSError, match="died"):
        learn(train, task, ignore, repeats=2)
    assert time.monotonic() - began < 10


def test_a_batch_that_is_stopped_before_it_is_learnt_costs_no_repeat(task: Task) -> None:
    learnt: list[int] = []

    def train(each: Task, on_progress: OnProgress) -> None:
        learnt.append(each.repeat)
        on_progress({"stage": "screening"})
        finish(each, learnt=False)

    learn(train, task, ignore, repeats=2)
    assert learnt == [0]


def test_a_lost_lease_ends_the_repeats_too(task: Task) -> None:
    class LostError(Exception):
        pass

    def train(each: Task, on_progress: OnProgress) -> None:
        if each.repeat:
            until_stopped(each, on_progress)
        else:
            finish(each)

    def lost(progress: Any) -> None:
        assert progress["stage"] == repeats.STAGE
        raise LostError

    began = time.monotonic()
    with pytest.raises(LostError):
        learn(train, task, lost, repeats=2)
    assert time.monotonic() - began < 10
