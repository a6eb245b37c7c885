"""The dispatcher: claims updates, keeps their leases, and runs each on a warm trainer."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any

import sqlalchemy as sa
import structlog

from service.errors import ChampionMovedError, LostLeaseError, TrainerDiedError, TrainerStoppedError
from service.incidents import tell
from service.loops import Loops, for_all
from service.registry import Registry, warm_up
from service.settings import Settings
from service.state import claims, endings, pipelines
from service.state.database import connect
from service.state.jobs import Update
from service.state.presence import Presence, instance_name
from service.training.pool import TrainerPool
from service.updates.update import Updater, aliases, project
from strategies.base import StrategyError
from streams.base import StreamError
from streams.state.tables import reading

log = structlog.get_logger(__name__)

PROJECT_SECONDS = 1.0
REFUSED_SECONDS = 5.0
REPAIR_SECONDS = 30.0
RETRY_SECONDS = 2.0
STOP_SECONDS = 5.0
LOST_LOOK_SECONDS = 2.0


BEAT_SECONDS = 1.0
"""Longest time between two heartbeats, however long the lease: a lost lease is noticed this soon."""


class Heartbeat:
    """Keeps an update's lease while its work goes on, and records progress."""

    def __init__(self, engine: sa.Engine, update: Update, lease_seconds: float) -> None:
        self._engine = engine
        self._update = update
        self._lease_seconds = lease_seconds
        self._progress: Mapping[str, Any] = {"stage": "starting"}
        self._lost: LostLeaseError | None = None
        self._recording = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{update.id}", daemon=True)

    def note(self, progress: Mapping[str, Any]) -> None:
        """Set the progress that the next beat records. After this returns, no beat records older progress.

        Raises:
            LostLeaseError: the lease is lost, so the work has no effect.
        """
        with self._recording:
            self._progress = progress
        if self._lost is not None:
            raise self._lost

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(min(BEAT_SECONDS, self._lease_seconds / 3)):
            try:
                with self._recording:
                    claims.heartbeat(
                        self._engine, self._update, lease_seconds=self._lease_seconds, progress=self._progress
                    )
            except LostLeaseError as lost:
                # The settlement is fenced, so more work changes nothing; the next note ends it.
                self._lost = lost
                return
            except Exception:
                # The lease ends by itself if no beat comes through; until then the next one may.
                log.warning("heartbeat not recorded", update=self._update.id, exc_info=True)


def serve(settings: Settings, stop: threading.Event) -> None:
    """Run updates until `stop` is set; updates that still run are queued again.

    Raises:
        TrainerDiedError: Ray itself has died; only a new process can start it again.
    """
    engine = connect(settings.database)
    loops = Loops(stop)
    with ThreadPoolExecutor(1, thread_name_prefix="warm-up") as background:
        # MLflow's imports and schema take as long as Ray's start: do both at once.
        warming = background.submit(warm_up, settings)
        with TrainerPool(settings) as pool:
            registry = warming.result()
            updater = Updater(engine, settings, train=pool.run, registry=registry)
            for number in range(settings.trainers):
                name = f"updater-{number}"
                loops.start(name, partial(_work, engine, settings, updater, f"{instance_name()}:{name}"))
            loops.start("projector", Projector(engine, registry).turn)
            with Presence(engine, "dispatch", loops.troubles):
                log.info("dispatcher ready", trainers=settings.trainers)
                while not stop.wait(LOST_LOOK_SECONDS) and not pool.lost:
                    loops.tend()
            lost = not stop.is_set()
            stop.set()
            # While Ray still runs: leave time for running updates to be queued again.
            pool.release()
            for name in loops.join(STOP_SECONDS):
                log.warning("loop did not end in time", loop=name)
    engine.dispose()
    if lost:
        raise TrainerDiedError(
            "Ray is gone, and no trainer can be started.",
            fix="`holdfast up` starts the dispatcher again; where it runs apart, its supervisor must.",
        )


def _work(engine: sa.Engine, settings: Settings, updater: Updater, owner: str) -> float:
    """Run one update, if any may run; seconds until it is worth looking again."""
    update = claims.claim(
        engine, owner, lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts
    )
    if update is None:
        return settings.poll_seconds
    _run_one(engine, settings, updater, update)
    return 0.0


def _run_one(engine: sa.Engine, settings: Settings, updater: Updater, update: Update) -> None:
    context = {"update": update.id, "pipeline": update.pipeline, "attempt": update.attempt}
    structlog.contextvars.bind_contextvars(**context)
    log.info("update started")
    try:
        with Heartbeat(engine, update, settings.lease_seconds) as heartbeat:
            verdict = updater.run(update, heartbeat.note)
        log.info("update ended", outcome=verdict.outcome if verdict else "nothing to learn")
    except LostLeaseError:
        _abandon(updater, update)
    except ChampionMovedError as moved:
        log.warning("champion moved during the update, starting over")
        _unless_lost(updater, update, partial(updater.start_over, update, moved))
    except (StrategyError, StreamError) as error:
        # The same data and learner would fail the same way again.
        log.exception("update failed")
        _unless_lost(updater, update, partial(updater.fail, update, error))
    except TrainerStoppedError:
        log.info("update given back, because this dispatcher stops")
        _unless_lost(updater, update, partial(endings.release, engine, update))
    except Exception as error:
        # Any other failure must not end the dispatcher: it is recorded, and tried again in bounds.
        told = tell(error, role="dispatch")
        log.exception("update attempt failed", incident=told.incident)
        _unless_lost(
            updater,
            update,
            partial(
                endings.retry,
                engine,
                update,
                error=told.text,
                max_attempts=settings.max_attempts,
                pause_seconds=RETRY_SECONDS,
            ),
        )
    finally:
        structlog.contextvars.unbind_contextvars(*context)


def _unless_lost(updater: Updater, update: Update, record: Callable[[], object]) -> None:
    try:
        record()
    except LostLeaseError:
        _abandon(updater, update)


def _abandon(updater: Updater, update: Update) -> None:
    """Stop work on an update whose lease is lost; nothing more is written about it."""
    if updater.clear_cancelled(update):
        log.info("update cancelled")
    else:
        log.warning("lease lost, another worker goes on")


class Projector:
    """Makes MLflow's aliases follow every champion, and restores those moved by hand every 30 seconds."""

    def __init__(self, engine: sa.Engine, registry: Registry) -> None:
        self._engine = engine
        self._registry = registry
        self._known: dict[str, tuple[int | None, int | None]] = {}
        self._repair_at = 0.0

    def turn(self) -> float:
        """Project the pipelines whose versions have moved; seconds until the next turn.

        One whose aliases MLflow refuses keeps no other from being projected; the champion row is the truth,
        and its aliases follow later.
        """
        if time.monotonic() > self._repair_at:
            self._known, self._repair_at = {}, time.monotonic() + REPAIR_SECONDS
        with reading(self._engine) as connection:
            wanted = {name: aliases(connection, name) for name in pipelines.names(connection)}
        moved = [name for name, pair in wanted.items() if self._known.get(name) != pair]
        failed = for_all(moved, partial(project, self._engine, self._registry), what="pipeline's aliases")
        self._known |= {name: wanted[name] for name in moved if name not in failed}
        return REFUSED_SECONDS if failed else PROJECT_SECONDS
