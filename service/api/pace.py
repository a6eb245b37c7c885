"""How long a request may take to arrive, and what happens when its sender hangs up."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import RefusedError

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Pace:
    """Seconds that a sender has. What takes longer is ended, so that it holds no connection for ever."""

    head: float = 20.0
    """For the request line and the headers, from the first byte on."""
    pause: float = 30.0
    """For the next piece of a body."""
    body: float = 900.0
    """For a whole body: 256 MiB at 2.4 Mbit/s."""


class SlowBodies:
    """Middleware that ends requests whose body does not arrive in time, or no more at all."""

    def __init__(self, app: ASGIApp, pace: Pace) -> None:
        self._app = app
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        # Nobody is left to answer.
        with suppress(ClientDisconnect):
            await self._app(scope, _in_time(scope, receive, self._pace), send)


def _in_time(scope: Scope, receive: Receive, pace: Pace) -> Receive:
    """The same body, refused as soon as it is late; there is no limit once all of it has come."""
    last = time.monotonic() + pace.body
    complete = False

    async def in_time() -> Message:
        nonlocal complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout(min(pace.pause, max(0.0, last - time.monotonic()))):
                message = await receive()
        except TimeoutError as error:
            raise too_slow("body") from error
        complete = not message.get("more_body", False)
        if message["type"] == "http.disconnect":
            log.debug("the sender hung up in its request", method=scope["method"], path=scope["path"])
        return message

    return in_time


def too_slow(part: str) -> RefusedError:
    """The error of a request of which a part did not come in time."""
    return RefusedError(
        408,
        slug="request-slow",
        title="The request did not arrive in time",
        detail=f"The {part} of the request stopped, or came too slowly to wait for its end.",
        fix="Send it again; spread many records over several requests.",
        # What is left of the request is not read, so the connection cannot be used again.
        headers={"Connection": "close"},
    )
