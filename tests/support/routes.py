"""Every route of the API, as the app itself has them: what must hold at one is tested at all."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi.routing import iter_route_contexts

from service.api.app import create_app
from service.settings import Settings

FILLED = {
    "{pipeline}": "here",
    "{update}": "u-1",
    "{dead_letter}": "0123456789abcdef",
    "{experience}": "0",
    "{name}": "here",
    "{marking}": "retire",
}
ASKED = {"margin": "0.1"}
"""Query parameters that a route wants without saying so in its description, and what they are."""
SAFE = {"GET", "HEAD", "OPTIONS"}


@cache
def described() -> Mapping[tuple[str, str], Mapping[str, Any]]:
    """Each route's operation in the API's description; the page under /docs and its files have none."""
    with TemporaryDirectory() as home:
        app = create_app(Settings(home=Path(home)))
        paths = app.openapi()["paths"]
        found = {}
        for route in iter_route_contexts(app.routes):
            for method in sorted(route.methods or ()):
                operation = paths.get(route.path, {}).get(method.lower(), {})
                found[method, filled(str(route.path)) + query(operation)] = operation
    assert len(found) > 30
    return found


def filled(path: str) -> str:
    """A path with a value for each parameter; a new parameter must get one here."""
    for parameter, value in FILLED.items():
        path = path.replace(parameter, value)
    assert "{" not in path, path
    return path


def query(operation: Mapping[str, Any]) -> str:
    """The query parameters that an operation wants, after a question mark."""
    wanted = [
        f"{each['name']}={ASKED.get(each['name'], 'here')}"
        for each in operation.get("parameters", [])
        if each["in"] == "query" and (each.get("required") or each["name"] in ASKED)
    ]
    return f"?{'&'.join(wanted)}" if wanted else ""


ROUTES = list(described())
"""Method and path, ready to be asked."""
UNSAFE_ROUTES = [(method, path) for method, path in ROUTES if method not in SAFE]
