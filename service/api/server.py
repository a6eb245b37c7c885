"""The API's HTTP server: uvicorn with h11, on connections that end when their requests do not arrive."""

import asyncio
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.api.app import create_app
from service.api.limits import ANNOUNCED_CHUNK, JsonRoute
from service.api.pace import Pace, too_slow
from service.api.problems import refusal
from service.settings import Settings


def make_server(settings: Settings, pace: Pace | None = None) -> uvicorn.Server:
    """The server of the API, ready to run.

    Raises:
        SettingsError: as `create_app`.
    """
    pace = pace or Pace()
    config = uvicorn.Config(
        create_app(settings, pace),
        host=settings.host,
        port=settings.port,
        http=type("Connection", (Connection,), {"pace": pace}),
        # There is no route for them.
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    return uvicorn.Server(config)


class Connection(H11Protocol):
    """A connection whose sender has a time for each head, and that shows the app how long a chunk will be.

    uvicorn has a limit only for connections on which nothing comes at all.
    """

    pace: ClassVar[Pace]
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
            self._announce_chunk()
        elif self._late is None and not self.transport.is_closing():
            # The next head has begun, or what is left of a body whose request was answered already.
            self._watch()

    def _watch(self) -> None:
        self._late = self.loop.call_later(self.pace.head, self._end)

    def _stop_watching(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self._late = None
        if self.transport.is_closing():
            return
        begun, _ = self.conn.trailing_data
        if begun and self.conn.our_state is h11.IDLE:
            answer = refusal(too_slow("head"))
            head = h11.Response(status_code=answer.status_code, headers=answer.raw_headers)
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _announce_chunk(self) -> None:
        """Tell the app the size of a chunk that has begun, which it may not want to wait for."""
        # Not public in h11; without it, such a chunk is refused once too much of it has come.
        reader: Any = getattr(self.conn, "_reader", None)
        chunk = getattr(reader, "_bytes_in_chunk", 0)
        if chunk > JsonRoute.limit_bytes:
            self.scope["state"][ANNOUNCED_CHUNK] = chunk
            self.cycle.message_event.set()
