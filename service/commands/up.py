"""`holdfast up`: every role on one machine, started together, watched, and stopped cleanly.

Each role is a process of its own and holds one end of a pipe. When this process ends, however it ends, the
pipe closes and the roles stop by themselves: nothing is left behind after a kill -9.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import httpx
import structlog

from service.errors import SettingsError
from service.home import take_home
from service.settings import Settings, url_of

log = structlog.get_logger(__name__)

RESTART_SECONDS = 1.0
STOP_SECONDS = 20.0
LOCK_FILE = "up.lock"
LOOK_SECONDS = 2.0
"""Longest wait for the API's answer to one look."""


@dataclass
class Role:
    """A child process that is started again when it dies."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    not_before: float = 0.0
    lifeline: int = field(default=-1)


def run(settings: Settings, *, prepare: Callable[[], None], announce: Callable[[str], None]) -> None:
    """Run every role until SIGTERM or SIGINT.

    Args:
        prepare: migrates the database; called once it is certain that no other service is up in this home.

    Raises:
        SettingsError: another `holdfast up` holds this home, or it cannot be made.
    """
    take_home(settings)
    lock = _lock(settings)
    _check_port(settings)
    prepare()
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    names = ["api", "ingest", "dispatch"]
    if settings.mlflow_ui and settings.mlflow_tracking_uri is None:
        names.append("mlflow")
    supervisor = Supervisor(settings, names)
    try:
        supervisor.watch(stop, announce)
    finally:
        supervisor.stop()
        os.close(lock)


def _lock(settings: Settings) -> int:
    descriptor = os.open(settings.root / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SettingsError(
            f"A service is already up in {settings.root}.",
            fix="Stop it first, or choose another home with HOLDFAST_HOME.",
        ) from None
    return descriptor


def _check_port(settings: Settings) -> None:
    """Refuse an occupied port before any role starts, instead of restarting one for ever."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise SettingsError(
                f"The API cannot listen on {settings.host}:{settings.port}: {error.strerror}.",
                fix="Stop what listens there, or choose another port with HOLDFAST_PORT.",
            ) from error


class Supervisor:
    """Starts the roles, restarts those that die, and stops all."""

    def __init__(self, settings: Settings, names: list[str]) -> None:
        self._settings = settings
        self._roles = [Role(name) for name in names]
        # One for all looks: making a client, with its certificates, takes longer than an answer.
        self._http = httpx.Client(timeout=LOOK_SECONDS)

    def watch(self, stop: threading.Event, announce: Callable[[str], None]) -> None:
        """Keep every role running until `stop` is set; say so once all are ready."""
        announced = False
        while not stop.is_set():
            for role in self._roles:
                self._tend(role)
            if not announced and self._ready():
                announced = True
                announce(f"holdfast is up: API and its documentation on {api_url(self._settings)}/docs")
                if any(role.name == "mlflow" for role in self._roles):
                    announce(f"MLflow's pages follow in a moment on {mlflow_url(self._settings)}")
            stop.wait(0.2)

    def stop(self) -> None:
        """Close every role's lifeline, and kill roles that do not end in time.

        Not SIGTERM: Ray answers it with a stack trace of its own, which reads like a crash.
        """
        self._http.close()
        for role in self._roles:
            if role.process:
                os.close(role.lifeline)
        deadline = time.monotonic() + STOP_SECONDS
        for role in self._roles:
            if role.process is None:
                continue
            try:
                role.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("role did not stop in time, killed", role=role.name)
                role.process.kill()
                role.process.wait()

    def _tend(self, role: Role) -> None:
        if role.process is not None:
            status = role.process.poll()
            if status is None:
                return
            log.warning("role ended, starting it again", role=role.name, status=status)
            os.close(role.lifeline)
            role.process = None
            role.not_before = time.monotonic() + min(30.0, RESTART_SECONDS * role.starts)
        if time.monotonic() < role.not_before or not self._turn_of(role):
            return
        reading, role.lifeline = os.pipe()
        role.process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", role.name, "--lifeline", str(reading)],
            env={**os.environ, **environment(self._settings)},
            pass_fds=[reading],
            stdin=subprocess.DEVNULL,
        )
        os.close(reading)
        role.starts += 1

    def _turn_of(self, role: Role) -> bool:
        """Whether a role may start: MLflow's pages last, since nothing waits for them."""
        return role.name != "mlflow" or self._ready()

    def _ready(self) -> bool:
        """Whether the API answers and lists our own processes; it may still list killed ones too."""
        heard = answer(self._settings, self._http)
        if heard is None:
            return False
        processes = {role["instance"].rsplit(":", 1)[1] for role in heard["roles"]}
        mine = [role.process for role in self._roles if role.name in ("ingest", "dispatch")]
        return all(process is not None and str(process.pid) in processes for process in mine)


def environment(settings: Settings) -> Mapping[str, str]:
    """The settings as environment variables, for a child process."""
    values = {
        name: value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        for name, value in settings
        if value is not None
    }
    return {f"HOLDFAST_{name.upper()}": value for name, value in values.items()} | {
        "HOLDFAST_HOME": str(settings.root)
    }


def api_url(settings: Settings) -> str:
    """Where the API listens."""
    return url_of(settings.host, settings.port)


def mlflow_url(settings: Settings) -> str:
    """Where MLflow's pages are."""
    return url_of(settings.mlflow_host, settings.mlflow_port)


def answer(settings: Settings, http: httpx.Client) -> dict[str, Any] | None:
    """What /readyz says; None while the API does not answer."""
    try:
        response = http.get(f"{api_url(settings)}/readyz")
    except httpx.HTTPError:
        return None
    return dict(response.json()) if response.is_success else None


def follow_lifeline(descriptor: int, stop: threading.Event) -> None:
    """Set `stop` when the other end of the pipe closes: the process that started this one is gone."""

    def wait() -> None:
        os.read(descriptor, 1)
        stop.set()
        # A role that hangs while it stops must not outlive its parent for long.
        time.sleep(STOP_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
