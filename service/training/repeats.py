"""An update that is learnt with several seeds at once: the challenger, and its repeats beside it.

The repeats run on trainers of their own where some are idle, else one after the other. They leave folders
beside the challenger's, which a second attempt finds again; they are removed once the decision is recorded.
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
"""Does a task on a trainer, and leaves the result in its folder."""

STAGE = "learning with other seeds"
BEAT_SECONDS = 1.0
"""How often a wait tells that it still waits, and so hears that it is for nothing."""


class _UnneededError(Exception):
    """Ends a repeat whose challenger came to nothing."""


def learn(train: Train, task: Task, on_progress: OnProgress, *, repeats: int) -> None:
    """Do `task`, and that many repeats of it with other seeds beside it.

    The repeats begin when the challenger learns: its trainer comes first, and a batch that is stopped before
    it is learnt costs no repeat.

    Raises:
        What `train` and `on_progress` raise; every other run is then told to stop.
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
        # They end by themselves; what went wrong is told now.
        threads.shutdown(wait=False, cancel_futures=True)


def _await(running: list[Future[None]], on_progress: OnProgress) -> None:
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, timeout=BEAT_SECONDS)
        for each in done:
            each.result()
        on_progress({"stage": STAGE, "left": len(waiting)})


def evidence(folder: Path, result: Result, *, repeats: int) -> tuple[Repeat, ...]:
    """What the gate is told of the repeats of the update in `folder`; those that are missing are left out."""
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
    """Where a repeat of the update in `folder` leaves its answers."""
    return folder.with_name(f"{folder.name}-seed-{number}")


def remove(folder: Path) -> None:
    """Take away what the repeats of the update in `folder` left, whole or not."""
    for left in folder.parent.glob(f"{folder.name}-seed-*"):
        shutil.rmtree(left, ignore_errors=True)
