"""Real trainers on a real Ray: one whose run nobody waits for any more is idle again, or replaced."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.settings import Settings
from service.state import jobs
from service.state.ledger import By
from service.training import pool
from service.training.pool import TrainerPool
from service.training.tasks import Task
from service.updates import decisions, dispatcher
from service.updates.update import Updater
from tests.support.homes import Home, digits, home
from tests.support.running import listening

LONG = {"epochs": 10_000}
"""Minutes of learning."""


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerPool]:
    with TrainerPool(Settings(home=tmp_path_factory.mktemp("pool"))) as started:
        yield started


@pytest.fixture
def make(tmp_path: Path, mlflow_store: Path) -> Iterator[Callable[..., Home]]:
    with ExitStack() as stack:
        folders = iter(tmp_path / f"home-{number}" for number in range(3))
        yield lambda **changes: stack.enter_context(home(next(folders), mlflow_store, **changes))


def dispatch(
    each: Home, trainers: TrainerPool, *, at: str = "", act: Callable[[], object] = int
) -> jobs.Update:
    """Run the next update on a trainer as the dispatcher does; `act` once, when it is at that stage."""
    waiting = [act]

    def train(task: Task, on_progress: Callable[[Mapping[str, Any]], None]) -> None:
        def note(progress: Mapping[str, Any]) -> None:
            if progress.get("stage") == at and waiting:
                waiting.pop()()
            on_progress(progress)

        trainers.run(task, note)

    claimed = each.claim()
    updater = Updater(each.engine, each.settings, train=train, registry=each.registry)
    dispatcher._run_one(each.engine, each.settings, updater, claimed)
    return each.read(claimed.id)


def process_of(trainers: TrainerPool) -> int:
    """The process id of the one trainer, which must be idle."""
    assert trainers._idle.qsize() == 1
    (found,) = [each for each in psutil.Process().children(recursive=True) if "ray::Trainer" in each.name()]
    return int(found.pid)


def cancel_newest(each: Home) -> None:
    decisions.cancel(each.engine, each.updates()[-1].id, by=By("Ada", "wrong settings"))


def take_over(each: Home) -> None:
    """As another worker would after a long silence of this one."""
    newest = each.updates()[-1]
    with each.engine.begin() as connection:
        jobs.write(connection, newest, {"attempt": newest.attempt + 1})


def test_every_socket_of_the_local_cluster_is_on_loopback(trainers: TrainerPool) -> None:
    names = {each.name() for each in psutil.Process().children(recursive=True)}
    assert {"gcs_server", "raylet"} <= names, "the cluster that is looked at must be running"
    process_of(trainers)
    found = listening(psutil.Process())
    assert len(found) >= 5
    assert {address for address, _ in found} == {"127.0.0.1"}


@pytest.mark.parametrize("lose", [cancel_newest, take_over])
def test_a_trainer_whose_update_is_lost_is_idle_again_and_learns_the_next_one(
    lose: Callable[[Home], None], trainers: TrainerPool, make: Callable[..., Home]
) -> None:
    lost, other = make(strategy=LONG), make()
    before = process_of(trainers)
    lost.arrive(digits(0))
    ended = dispatch(lost, trainers, at="learning", act=partial(lose, lost))
    assert ended.state == ("failed" if ended.cancelled else "running")
    assert list(lost.settings.checkpoints.iterdir()) == []
    assert process_of(trainers) == before
    other.arrive(digits(0))
    assert dispatch(other, trainers).outcome == "promote"
    assert process_of(trainers) == before


def test_a_trainer_that_does_not_stop_is_killed_and_replaced(
    trainers: TrainerPool, make: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn, other = make(strategy=LONG), make()
    before = process_of(trainers)
    stubborn.arrive(digits(0))
    with monkeypatch.context() as patch:
        patch.setattr(pool, "CANCEL_SECONDS", 0.0)
        ended = dispatch(stubborn, trainers, at="learning", act=partial(cancel_newest, stubborn))
    assert ended.cancelled
    assert list(stubborn.settings.checkpoints.iterdir()) == []
    assert process_of(trainers) != before
    assert not trainers.lost
    other.arrive(digits(0))
    assert dispatch(other, trainers).outcome == "promote"
