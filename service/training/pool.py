"""Warm trainers on Ray: the only file that imports ray.

A trainer is an actor that has paid for its imports. It keeps nothing between updates but that warmth, so
a dead trainer costs one attempt and no state.
"""

import os
import queue
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import structlog

from service.errors import TrainerDiedError, TrainerStoppedError
from service.settings import Settings
from service.training import trainer
from service.training.tasks import OnProgress, Task
from strategies.base import StreamInfo

# Ray must neither phone home, nor rebuild an environment in each worker because of how we were started.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A call that comes after the end must fail, not start a cluster of its own.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Its handler answers SIGTERM with a stack trace and an abort, where we mean to stop cleanly.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
if "HOLDFAST_RAY_ADDRESS" not in os.environ:
    # A local cluster is this process's own: nobody else needs its token. Ray reads these at its import.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Nor need others reach it: without this, Ray replaces a node's loopback address by an outer one, and each
    # of its processes then listens on every interface. The name is misleading, it holds on Linux as well.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import ray

log = structlog.get_logger(__name__)

LOOPBACK = "127.0.0.1"
PROGRESS_SECONDS = 0.5
CANCEL_SECONDS = 10.0
"""Time for a trainer to stop between two batches; then it is killed, and another one started."""
REPLACE_SECONDS = 60.0
"""Time for a new trainer to warm up; a busy machine needs about twenty seconds."""


class _CancelledError(Exception):
    """Ends a cancelled run inside a trainer."""


class Trainer:
    """The actor. One thread learns; a second answers questions about progress, and cancels."""

    def __init__(self) -> None:
        self._progress: Mapping[str, Any] = {}
        self._cancelled = ""

    def warm_up(self) -> int:
        """Import and compile what learning needs; returns the process id."""
        import torch

        # One trainer has the CPUs Ray gave it; more threads than that fight each other.
        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
        trainer.warm_up(StreamInfo(shape=(4,), classes=("a", "b")))
        return os.getpid()

    def run(self, task: Task, run_id: str) -> None:
        self._progress = {}

        def note(progress: Mapping[str, Any]) -> None:
            self._progress = progress
            if self._cancelled == run_id:
                raise _CancelledError

        trainer.run(task, note)

    def progress(self) -> Mapping[str, Any]:
        return self._progress

    def cancel(self, run_id: str) -> None:
        """End that run, and no later one, when it next reports progress."""
        self._cancelled = run_id


class TrainerPool:
    """As many warm trainers as the settings say. Thread-safe; use it as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = settings.ray_address is None
        self._idle: queue.Queue[Any] = queue.Queue()
        self._stopping = threading.Event()
        self._lost = threading.Event()

    def __enter__(self) -> "TrainerPool":
        with _own_signal_handlers():
            self._connect()
        started = [self._start() for _ in range(self._settings.trainers)]
        ray.get([actor.warm_up.remote() for actor in started])
        for actor in started:
            self._idle.put(actor)
        return self

    def _connect(self) -> None:
        if self._local:
            ray.init(
                num_cpus=self._settings.trainers,
                include_dashboard=False,
                dashboard_host=LOOPBACK,
                _node_ip_address=LOOPBACK,
                object_store_memory=100 * 2**20,
                namespace="holdfast",
                log_to_driver=False,
            )
        else:
            ray.init(address=self._settings.ray_address, namespace="holdfast", log_to_driver=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
        ray.shutdown()

    def release(self) -> None:
        """Make every `run` that waits for its trainer raise `TrainerStoppedError` soon."""
        self._stopping.set()

    @property
    def lost(self) -> bool:
        """Whether Ray itself is gone, or a dead trainer could not be replaced: only a new process helps."""
        return self._lost.is_set() or not any(node["Alive"] for node in ray.nodes())

    def run(self, task: Task, on_progress: OnProgress) -> None:
        """Run a task on an idle trainer; its result is in `task.folder` afterwards.

        Where `on_progress` raises, the trainer stops soon and is idle again, and the error goes on.

        Raises:
            StreamError, StrategyError: as `service.training.trainer.run`.
            TrainerDiedError: the trainer's process ended; another one replaces it.
            TrainerStoppedError: this pool is about to close.
        """
        actor = self._borrow(on_progress)
        run_id = secrets.token_hex(8)
        running = actor.run.remote(task, run_id)
        try:
            self._watch(actor, running, on_progress)
        except ray.exceptions.RayTaskError as error:
            self._idle.put(actor)
            raise error.cause from error
        except ray.exceptions.RayActorError as error:
            if not self._stopping.is_set():
                self._replace()
            raise TrainerDiedError(
                f"The trainer of update {task.update_id} died.",
                fix="The update is tried again; see Ray's logs for why the process ended.",
            ) from error
        except TrainerStoppedError:
            # Ray's end is the trainer's.
            raise
        except Exception:
            self._take_back(actor, running, run_id)
            raise
        else:
            self._idle.put(actor)

    def _take_back(self, actor: Any, running: Any, run_id: str) -> None:
        """Cancel the run of a trainer and make the trainer idle; one that does not stop is replaced."""
        try:
            actor.cancel.remote(run_id)
            done, _ = ray.wait([running], timeout=CANCEL_SECONDS)
            if done:
                ray.get(running)
        except ray.exceptions.RayTaskError:
            # It stopped as asked; or it failed by itself, which changes nothing now.
            pass
        except ray.exceptions.RayError:
            done = []
        if done:
            self._idle.put(actor)
        elif not self._stopping.is_set():
            log.warning("a cancelled trainer does not stop, killing it")
            ray.kill(actor)
            self._replace()

    def _borrow(self, on_progress: OnProgress) -> Any:
        while True:
            if self._stopping.is_set():
                raise _stopped()
            try:
                return self._idle.get(timeout=PROGRESS_SECONDS)
            except queue.Empty:
                # The callback raises where the wait has become pointless.
                on_progress({"stage": "waiting for a trainer"})

    def _watch(self, actor: Any, running: Any, on_progress: OnProgress) -> None:
        while True:
            done, _ = ray.wait([running], timeout=PROGRESS_SECONDS)
            if done:
                ray.get(running)
                return
            if self._stopping.is_set():
                raise _stopped()
            on_progress(ray.get(actor.progress.remote()))

    def _start(self) -> Any:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= self._settings.trainers else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=2)(Trainer)
        return remote.remote()

    def _replace(self) -> None:
        log.warning("trainer died, starting another")
        try:
            actor = self._start()
            ray.get(actor.warm_up.remote(), timeout=REPLACE_SECONDS)
        except ray.exceptions.RayError:
            log.exception("no other trainer could be started")
            self._lost.set()
        else:
            self._idle.put(actor)


def _stopped() -> TrainerStoppedError:
    return TrainerStoppedError(
        "The dispatcher stops.", fix="The update goes on when a dispatcher runs again."
    )


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Restore our signal handlers, which Ray's start replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
