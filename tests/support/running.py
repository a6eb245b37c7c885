"""A whole service as a user starts it, for tests that kill parts of it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import psutil

from service.client import Client
from tests.support.repository import ROOT

T = TypeVar("T")
HOLD = "hold"
"""A file in the home; while it is there, networks of `SLOWED` wait in every step."""
SLOWED = {"name": "replay", "capacity": 1200, "epochs": 60, "network": {"name": "own", "of": "slowed"}}
"""A strategy whose learning a test can stretch, so that it is caught in the middle on any machine."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: Callable[[], T | None], *, seconds: float, hint: str) -> T:
    deadline = time.monotonic() + seconds
    pause = 0.05
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(pause)
        # Long waits are for work on the same cores: looking often would slow it down.
        pause = min(0.25, 1.2 * pause)
    raise AssertionError(f"within {seconds:.0f} seconds there was no {hint}")


@dataclass
class Service:
    """`holdfast up` in one home. Started anew in the same home, it goes on where it was."""

    home: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    mlflow_store: Path | None = None
    """A store with its schema, to begin with a copy of; None: the service makes its own."""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOLDFAST_HOME": str(self.home),
            "HOLDFAST_PORT": str(self.port),
            "HOLDFAST_MLFLOW_UI": "false",
            "HOLDFAST_NETWORKS": "slowed=tests.support.own_networks:slowed",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            **self.settings,
        }

    @property
    def log(self) -> Path:
        return self.home / "test.log"

    @contextmanager
    def learning_slowly(self) -> Iterator[None]:
        """While the block runs, updates with the network of `SLOWED` take a long time to learn."""
        hold = self.home / HOLD
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        if self.mlflow_store is not None and not (self.home / "mlflow.db").exists():
            shutil.copy(self.mlflow_store, self.home / "mlflow.db")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "up"],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        with self.process.stdout:
            line = self.process.stdout.readline().decode()
        assert "holdfast is up" in line, self.log.read_text()

    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}")

    def store(self) -> mlflow.MlflowClient:
        """The MLflow store of this home, whatever store other tests of this process work with."""
        where = f"sqlite:///{self.home}/mlflow.db"
        return mlflow.MlflowClient(tracking_uri=where, registry_uri=where)

    def processes(self) -> list[psutil.Process]:
        """Every living process that was started for this home, Ray's among them."""
        mine = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOLDFAST_HOME") == str(self.home) and process.pid != os.getpid():
                    mine.append(process)
            except psutil.Error:
                continue
        return [process for process in mine if alive(process)]

    def role(self, name: str) -> psutil.Process | None:
        return next((process for process in self.processes() if is_role(process, name)), None)

    def kill(self, name: str) -> int:
        """SIGKILL one role; its process id."""
        found = wait_for(lambda: self.role(name), seconds=10, hint=f"role {name}")
        found.send_signal(signal.SIGKILL)
        return int(found.pid)

    def kill_everything(self) -> None:
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        wait_for(lambda: not self.processes(), seconds=20, hint="end of all processes")
        if self.process is not None:
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM to `holdfast up`; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Address and port of every socket on which a process, or one that it started, waits for others."""
    found = set()
    for each in [process, *process.children(recursive=True)]:
        for connection in each.net_connections(kind="inet"):
            # A UDP socket without a peer hears everybody; one of TCP has to listen.
            if connection.status == psutil.CONN_LISTEN or (
                connection.type == socket.SOCK_DGRAM and not connection.raddr
            ):
                found.add((connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port))
    return found


def is_role(process: psutil.Process, name: str) -> bool:
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return line[1:5] == ["-m", "service.cli", "serve", name]


@contextmanager
def running(
    home: Path, settings: Mapping[str, str] | None = None, *, mlflow_store: Path | None = None
) -> Iterator[Service]:
    """A service that is up; whatever happens, nothing of it is left."""
    service = Service(home, settings or {}, mlflow_store)
    try:
        service.start()
        yield service
        service.stop()
    finally:
        service.kill_everything()


def ended(client: Client, pipeline: str, *, experience: int, seconds: float = 120.0) -> dict[str, Any]:
    """The update that took an experience, once it has ended or awaits a decision."""

    def look() -> dict[str, Any] | None:
        for update in client.get(f"/v1/pipelines/{pipeline}/updates"):
            if experience in update["experiences"] and update["state"] in ("done", "review", "failed"):
                return dict(update)
        return None

    return wait_for(look, seconds=seconds, hint=f"end of the update of experience {experience}")
