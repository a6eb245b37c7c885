"""Texts that neither a database nor a file system can hold are refused here, wherever they come in.

PostgreSQL stores no NUL, a file's name ends at one, and half a surrogate pair has no UTF-8. Records have
rules of their own for their texts (`streams.records`), since what a source sends is kept as a dead letter.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import invalid, refusal

NUL = "holds a NUL character: send plain text"
SURROGATE = "holds a lone surrogate: send plain text"
NOT_UTF8 = "is not UTF-8: send plain text"

_SURROGATE = re.compile("[\ud800-\udfff]")


def fault(text: str) -> str | None:
    """What is wrong with a text; None: nothing."""
    if "\0" in text:
        return NUL
    return SURROGATE if _SURROGATE.search(text) else None


def faults(document: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Where texts of a JSON document cannot be stored, keys of objects too, and why.

    It looks at what the parser has made of it, which is nested no deeper than the parser goes itself.
    """
    if isinstance(document, str):
        if problem := fault(document):
            yield where or "the body", problem
    elif isinstance(document, dict):
        for key, value in document.items():
            if problem := fault(key):
                yield where or "the body", f"has a field whose name {problem}"
            else:
                yield from faults(value, f"{where}.{key}" if where else key)
    elif isinstance(document, list):
        for place, value in enumerate(document):
            yield from faults(value, f"{where}.{place}" if where else str(place))


class PlainAddresses:
    """Middleware that refuses a path or a query that holds such a text, percent-encoded."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = list(_in_address(scope)) if scope["type"] == "http" else []
        await (refusal(invalid(found)) if found else self._app)(scope, receive, send)


def _in_address(scope: Scope) -> Iterator[tuple[str, str]]:
    if problem := _encoded_fault(scope.get("raw_path") or scope["path"].encode()):
        yield "the path", problem
    for part in scope["query_string"].split(b"&"):
        if problem := _encoded_fault(part):
            name = unquote_to_bytes(part.partition(b"=")[0]).decode(errors="replace").replace("\0", "\ufffd")
            yield f"query {name[:100]}", problem


def _encoded_fault(encoded: bytes) -> str | None:
    # Without an escape, the server has let only plain characters through.
    if b"%" not in encoded:
        return None
    try:
        return fault(unquote_to_bytes(encoded).decode())
    except UnicodeDecodeError:
        return NOT_UTF8
