"""Learns an update with several seeds in parallel: the challenger, and repeats of it with other seeds.

Repeats run on idle trainers, or one after the other. Their folders are next to the challenger's, where a
second attempt finds them; they are removed once the decision is recorded.
"""

import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.gate.base import Repeat
from service.training.tasks import LEARNING, OnProgress, Result, Task, is_done, read_repeated, read_result

Train = Callable[[Task, OnProgress], None]
"""Runs a task on a trainer, which leaves the result in the task's folder."""

STAGE = "learning with other seeds"
BEAT_SECONDS = 1.0
"""Interval of progress reports while waiting; the callback raises where the wait has become pointless."""


class _UnneededError(Exception):
    """Ends a repeat whose challenger failed or was stopped."""


def learn(train: Train, task: Task, on_progress: OnProgress, *, repeats: int) -> None:
    """Run `task`, and in parallel as many `repeats` of it with other seeds.

    The repeats begin when the challenger learns: its trainer comes first, and a batch that is stopped before
    it is learnt costs no repeat.

    Raises:
        What `train` and `on_progress` raise; every other run is then stopped.
    """
    unneeded = threading.Event()
    running: list[Future[None]] = []

    def listen(_progress: Mapping[str, Any]) -> None:
        if unneeded.is_set():
            raise _UnneededError

    threads = ThreadPoolExecutor(repeats, thread_name_prefix="repeat")

    def begin() -> None:
        for number in range(1, repeats + 1) if not running else ():
            each = replace(task, folder=repeat_folder(task.folder, number), repeat=number)
            if not is_done(each.folder):
                running.append(threads.submit(train, each, listen))

    def note(progress: Mapping[str, Any]) -> None:
        on_progress(progress)
        if progress.get("stage") == LEARNING:
            begin()

    try:
        if not is_done(task.folder):
            train(task, note)
        made = read_result(task.folder)
        if made is not None and made.learnt:
            begin()
            _await(running, on_progress)
    finally:
        unneeded.set()
        # They end by themselves; the error must not wait for them.
        threads.shutdown(wait=False, cancel_futures=True)


def _await(running: list[Future[None]], on_progress: OnProgress) -> None:
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, timeout=BEAT_SECONDS)
        for each in done:
            each.result()
        on_progress({"stage": STAGE, "left": len(waiting)})


def evidence(folder: Path, result: Result, *, repeats: int) -> tuple[Repeat, ...]:
    """The gate's evidence on the repeats of the update in `folder`; missing repeats are left out."""
    found = []
    for number in range(1, repeats + 1):
        made = read_repeated(repeat_folder(folder, number))
        if made is None:
            continue
        same = {
            index: predicted == details.predicted
            for index, predicted in made.predicted.items()
            if (details := result.challenger_details.get(index)) and len(details) == len(predicted)
        }
        found.append(Repeat(made.seed, made.right, same, made.failure))
    return tuple(found)


def repeat_folder(folder: Path, number: int) -> Path:
    """The folder of a repeat of the update in `folder`."""
    return folder.with_name(f"{folder.name}-seed-{number}")


def remove_stale(folder: Path, *, inputs: str) -> None:
    """Delete finished repeats of the update in `folder` that were made for other inputs than these."""
    for left in folder.parent.glob(f"{folder.name}-seed-*"):
        made = read_repeated(left)
        if made is not None and made.inputs != inputs:
            shutil.rmtree(left, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete the folders of the repeats of the update in `folder`, finished or not."""
    for left in folder.parent.glob(f"{folder.name}-seed-*"):
        shutil.rmtree(left, ignore_errors=True)
