"""Heartbeats of the service's processes, written to the database every few seconds."""

import os
import socket
import threading
from dataclasses import dataclass
from types import TracebackType

import sqlalchemy as sa
import structlog

from service.state.database import now, roles

log = structlog.get_logger(__name__)

BEAT_SECONDS = 2.0
SILENT_SECONDS = 10.0


@dataclass(frozen=True)
class Seen:
    """A process of a role, and the seconds since its last sign of life."""

    role: str
    instance: str
    seconds_ago: float


def instance_name() -> str:
    """A name of this process that is unique among those that share the database."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Presence:
    """Records that a role is alive in this process, from entry to exit."""

    def __init__(self, engine: sa.Engine, role: str) -> None:
        self._engine = engine
        self._role = role
        self._instance = instance_name()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"presence-{role}", daemon=True)

    def __enter__(self) -> "Presence":
        self._record()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        self._thread.join()
        with self._engine.begin() as connection:
            connection.execute(sa.delete(roles).where(self._mine))

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            try:
                self._record()
            except sa.exc.OperationalError:
                # The database may come back; until then this role rightly looks absent.
                log.warning("presence not recorded", role=self._role, exc_info=True)

    def _record(self) -> None:
        with self._engine.begin() as connection:
            moment = now(connection)
            present = connection.execute(sa.update(roles).where(self._mine).values(seen_at=moment))
            if present.rowcount == 0:
                connection.execute(
                    sa.insert(roles).values(role=self._role, instance=self._instance, seen_at=moment)
                )
            # Instances that were killed leave their rows behind.
            connection.execute(sa.delete(roles).where(roles.c.seen_at < moment - 3600))

    @property
    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(roles.c.role == self._role, roles.c.instance == self._instance)


def seen(connection: sa.Connection) -> list[Seen]:
    """Every process with a sign of life in the last `SILENT_SECONDS`."""
    moment = now(connection)
    rows = connection.execute(
        sa.select(roles).where(roles.c.seen_at > moment - SILENT_SECONDS).order_by(roles.c.role)
    )
    return [Seen(row.role, row.instance, round(moment - row.seen_at, 1)) for row in rows]
