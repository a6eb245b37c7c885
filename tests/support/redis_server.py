"""A Redis server of the tests' own: a temporary folder, a free port, durable writes, stopped at the end."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError
from redis.retry import Retry

from tests.support import needs
from tests.support.running import free_port

PACKAGE = "redis-server"
START_SECONDS = 30.0


@dataclass
class Server:
    """One server, which can be killed and started again over the same files."""

    program: Path
    folder: Path
    port: int = field(default_factory=free_port)
    password: str | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        """A client that does not try again by itself."""
        return Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))

    def start(self) -> None:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            # A write that was answered is on disk: what a killed server had confirmed must still be there.
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            **({"requirepass": self.password} if self.password else {}),
        }
        flags = [flag for name, value in options.items() for flag in (f"--{name}", value)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([str(self.program), *flags], stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Redis did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a crash would end it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.ping()
        except (ConnectionError, BusyLoadingError):
            return False
        return True


@contextmanager
def server(*, password: str | None = None) -> Iterator[Server]:
    """A server until the block ends; the test is skipped where Redis is not installed."""
    program = needs.program("redis-server", package=PACKAGE)
    folder = Path(tempfile.mkdtemp(prefix="holdfast-redis-"))
    found = Server(program, folder, password=password)
    try:
        found.start()
        yield found
    finally:
        found.kill()
        shutil.rmtree(folder)
