"""Which methods a path takes: all that its routes name, and HEAD wherever there is GET."""

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class HeadAsGet:
    """Middleware that answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        # A copy: the server must go on to treat the request as one for no body.
        await self._app({**scope, "method": "GET"}, receive, without_body)


def methods_at(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """The methods that the path of a request takes."""

    def takes(method: str) -> bool:
        asked = {**scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in routes)

    found = [method for method in METHODS if takes(method)]
    return sorted({*found, "HEAD"}, key=METHODS.index) if "GET" in found else found
