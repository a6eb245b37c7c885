"""Request limits and response headers: media types, sizes of bodies, security headers."""

import json
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import texts
from service.api.problems import SECURITY_HEADERS, SHOWN_ERRORS, RefusedError, invalid, not_json
from service.ingest.bodies import MAX_BODY_BYTES, MEDIA_TYPES

ANNOUNCED_CHUNK = "announced_chunk"
"""Key of a request's state: the size of the chunk of its body that comes now, where the server tells it."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Hold = Callable[[int], None]
"""Notes that so many more bytes of a body are held; raises where that is too much."""


class StrictRequest(Request):
    """A request whose JSON is RFC 8259's: Python's reader would let NaN and Infinity through."""

    async def json(self) -> Any:
        """The body as JSON.

        Raises:
            RefusedError: it is not, or holds a text that cannot be stored.
        """
        try:
            text = (await self.body()).decode()
            document = json.loads(
                text, parse_constant=_refuse_number, parse_float=_finite, object_pairs_hook=_once
            )
            # In JSON, only an escape can write what cannot be stored.
            if "\\u" in text and (found := list(islice(texts.faults(document), SHOWN_ERRORS))):
                raise invalid(found)
            return document
        except UnicodeDecodeError as error:
            raise not_json(f"it is not UTF-8, at byte {error.start}") from error
        except json.JSONDecodeError as error:
            position = f"line {error.lineno}, column {error.colno}"
            raise not_json(f"{error.msg[0].lower()}{error.msg[1:]}, at {position}") from error
        except RecursionError as error:
            raise not_json("it is nested too deeply") from error
        except ValueError as error:
            # Python refuses whole numbers of more than 4,300 digits.
            raise not_json("it holds a number with too many digits") from error


class JsonRoute(APIRoute):
    """A route whose body, where it has one, is JSON of modest size.

    The media type must be named: browsers let any page send bodies of other types, or of none, to any
    address, so otherwise a foreign page could command a service that listens on this machine.
    """

    media_types: ClassVar[tuple[str, ...]] = ("application/json",)
    limit_bytes: ClassVar[int] = 2**20

    def get_route_handler(self) -> Handler:
        """See `fastapi.routing.APIRoute`."""
        inside = super().get_route_handler()

        async def handler(request: Request) -> Response:
            _check_media_type(request, self.media_types)
            _check_announced(request, self.limit_bytes)
            with self.held(request) as hold:
                receive = _bounded(request, self.limit_bytes, hold)
                return await inside(StrictRequest(request.scope, receive))

        return handler

    @contextmanager
    def held(self, request: Request) -> Iterator[Hold]:
        """What notes each piece of a body that is held; a modest body needs none."""
        yield lambda size: None


class RecordsRoute(JsonRoute):
    """A route that takes records, many of them at a time."""

    media_types: ClassVar[tuple[str, ...]] = tuple(MEDIA_TYPES)
    limit_bytes: ClassVar[int] = MAX_BODY_BYTES

    @contextmanager
    def held(self, request: Request) -> Iterator[Hold]:
        """See `JsonRoute`. The bytes count until the answer: decoded, they take as much and more."""
        bodies: BodiesInFlight = request.app.state.bodies_in_flight
        with bodies.one() as hold:
            yield hold


class BodiesInFlight:
    """The bytes of all bodies of records that are held now. Used on the event loop alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0

    @contextmanager
    def one(self) -> Iterator[Hold]:
        """What notes the pieces of one body; its bytes count until the end of the block."""
        mine = 0

        def hold(size: int) -> None:
            nonlocal mine
            if self._held + size > self._limit:
                raise _busy()
            mine += size
            self._held += size

        try:
            yield hold
        finally:
            self._held -= mine


def _busy() -> RefusedError:
    return RefusedError(
        503,
        slug="busy",
        title="Too many bytes of requests are held",
        detail="The bodies of the requests that are being answered fill HOLDFAST_MAX_BYTES_IN_FLIGHT.",
        fix="Send the request again later, or fewer large ones at a time.",
        # What is left of the body is not read, so the connection cannot be used again.
        headers={"Connection": "close", "Retry-After": "5"},
    )


def _once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, in which the last of two fields with one name would win in silence."""
    found = dict(fields)
    if len(found) < len(fields):
        counted = Counter(name for name, _ in fields)
        repeated = next(name for name, times in counted.items() if times > 1)
        raise not_json(f"the field {repeated[:100]!r} stands twice in one object")
    return found


def _refuse_number(text: str) -> float:
    raise not_json(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text[:50])


def _check_media_type(request: Request, accepted: tuple[str, ...]) -> None:
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    named = headers.get("content-type", "").split(";")[0].strip().lower()
    if named not in accepted:
        raise RefusedError(
            415,
            slug="media-type",
            title="The body is of a type that is not taken here",
            detail=f"The Content-Type is {named[:100]!r}." if named else "The request names no Content-Type.",
            fix=f"Send {' or '.join(accepted)}, and name it in the header Content-Type.",
        )


def _check_announced(request: Request, limit_bytes: int) -> None:
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)


def _bounded(request: Request, limit_bytes: int, hold: Hold) -> Receive:
    """The same body, refused as soon as it passes a limit: no more than that is ever held."""
    seen = 0
    state = request.scope.get("state", {})

    async def bounded() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if max(seen, state.get(ANNOUNCED_CHUNK, 0)) > limit_bytes:
            raise _too_large(limit_bytes)
        hold(len(message.get("body", b"")))
        return message

    return bounded


def _too_large(limit_bytes: int) -> RefusedError:
    return RefusedError(
        413,
        slug="body-too-large",
        title="The body is too large",
        detail=f"The body is larger than {limit_bytes:,} bytes, the most that is taken here.",
        fix="Send less at a time: records can be spread over several requests.",
        # What is left of the body is not read, so the connection cannot be used again.
        headers={"Connection": "close"},
    )


class SecureAnswers:
    """Middleware that adds the security headers that an answer does not set itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, secured)
