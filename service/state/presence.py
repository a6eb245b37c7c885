"""Heartbeats of the service's processes, written to the database every few seconds."""

import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType

import sqlalchemy as sa
import structlog

from service.loops import Loop, Trouble
from service.state.database import now, roles

log = structlog.get_logger(__name__)

BEAT_SECONDS = 2.0
SILENT_SECONDS = 10.0
LEAVE_SECONDS = 3.0


@dataclass(frozen=True)
class Seen:
    """A process of a role, and the seconds since its last sign of life."""

    role: str
    instance: str
    seconds_ago: float
    troubles: Sequence[Trouble] = ()
    """Of its loops, at that time."""


def instance_name() -> str:
    """A name of this process that is unique among those that share the database."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Presence:
    """Records that a role is alive in this process, from entry to exit, and the troubles of its loops."""

    def __init__(
        self, engine: sa.Engine, role: str, troubles: Callable[[], Sequence[Trouble]] = tuple
    ) -> None:
        self._engine = engine
        self._role = role
        self._troubles = troubles
        self._instance = instance_name()
        self._left = threading.Event()
        # While the database is away, this role rightly looks absent.
        self._loop = Loop(f"presence-{role}", self._turn, self._left)
        self._thread = threading.Thread(target=self._loop.run, name=self._loop.name, daemon=True)

    def __enter__(self) -> "Presence":
        self._turn()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        self._loop.wake()
        self._thread.join(LEAVE_SECONDS)
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.delete(roles).where(self._mine))
        except sa.exc.SQLAlchemyError:
            log.warning("presence not taken back: it ends by itself", role=self._role)

    def _turn(self) -> float:
        troubles = [asdict(each) for each in self._troubles()]
        with self._engine.begin() as connection:
            moment = now(connection)
            seen = {"seen_at": moment, "troubles": troubles}
            present = connection.execute(sa.update(roles).where(self._mine).values(seen))
            if present.rowcount == 0:
                connection.execute(sa.insert(roles).values(role=self._role, instance=self._instance, **seen))
            # Instances that were killed leave their rows behind.
            connection.execute(sa.delete(roles).where(roles.c.seen_at < moment - 3600))
        return BEAT_SECONDS

    @property
    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(roles.c.role == self._role, roles.c.instance == self._instance)


def seen(connection: sa.Connection) -> list[Seen]:
    """Every process with a sign of life in the last `SILENT_SECONDS`."""
    moment = now(connection)
    rows = connection.execute(
        sa.select(roles).where(roles.c.seen_at > moment - SILENT_SECONDS).order_by(roles.c.role)
    )
    return [
        Seen(
            row.role,
            row.instance,
            round(moment - row.seen_at, 1),
            [Trouble(**each) for each in row.troubles],
        )
        for row in rows
    ]
