"""A PostgreSQL server of the tests' own: a temporary folder, a free port, stopped at the end."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from service.state.database import connect, migrate
from tests.support import needs
from tests.support.running import free_port

PACKAGE = "postgresql"
FOLDERS = ("/usr/lib/postgresql/*/bin",)
START_SECONDS = 60.0
TEMPLATE = "migrated"
OPTIONS = {
    # A crash of the machine may take these databases with it, so nothing waits for the disk.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "timezone": "UTC",
}


@dataclass
class Server:
    """A running server that trusts whoever connects from this machine."""

    port: int
    made: int = 0

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def empty_database(self) -> str:
        """The URL of a new database without tables."""
        return self._create("template0")

    def migrated_database(self) -> str:
        """The URL of a new database with all tables."""
        return self._create(TEMPLATE)

    def drop(self, url: str) -> None:
        self._execute(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")

    def make_template(self) -> None:
        self._execute(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
        engine = connect(self.url(TEMPLATE))
        migrate(engine)
        engine.dispose()

    def answers(self) -> bool:
        try:
            self._execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _create(self, template: str) -> str:
        self.made += 1
        name = f"test_{self.made}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def server() -> Iterator[Server]:
    """A server until the block ends; the test is skipped where PostgreSQL is not installed."""
    initdb = needs.program("initdb", package=PACKAGE, folders=FOLDERS)
    postgres = needs.program("postgres", package=PACKAGE, folders=FOLDERS)
    as_user = _unprivileged()
    home = Path(tempfile.mkdtemp(prefix="holdfast-postgres-"))
    if as_user:
        shutil.chown(home, as_user["user"], as_user["group"])
    data, port = home / "data", free_port()
    try:
        setup = [
            str(initdb),
            "-D",
            str(data),
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-sync",
        ]
        subprocess.run(setup, check=True, capture_output=True, cwd=home, **as_user)
        options = {**OPTIONS, "listen_addresses": "127.0.0.1", "unix_socket_directories": str(home)}
        flags = [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]
        command = [str(postgres), "-D", str(data), "-p", str(port), *flags]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home, **as_user)
        try:
            found = Server(port)
            _wait(found, process, home / "log")
            found.make_template()
            yield found
        finally:
            # Its "fast" shutdown: connections are closed, and no client is waited for.
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(home)


def _unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: the user that its package makes."""
    if os.getuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        needs.missing("the user 'postgres'", package=PACKAGE)
    return {"user": user.pw_name, "group": user.pw_gid, "extra_groups": []}


def _wait(found: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not found.answers():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}")
        time.sleep(0.05)
