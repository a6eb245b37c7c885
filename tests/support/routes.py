"""Every route of the API, as the app itself has them: what must hold at one is tested at all."""

from pathlib import Path
from tempfile import TemporaryDirectory

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
SAFE = {"GET", "HEAD", "OPTIONS"}


def every_route() -> list[tuple[str, str]]:
    """Method and path template of all that the app answers, the page under /docs and its files included."""
    with TemporaryDirectory() as home:
        app = create_app(Settings(home=Path(home)))
        found = [
            (method, str(route.path))
            for route in iter_route_contexts(app.routes)
            for method in sorted(route.methods or ())
        ]
    assert len(found) > 30
    return found


def filled(path: str) -> str:
    """A path with a value for each parameter; a new parameter must get one here."""
    for parameter, value in FILLED.items():
        path = path.replace(parameter, value)
    assert "{" not in path, path
    return path


ROUTES = [(method, filled(path)) for method, path in every_route()]
"""Method and path, ready to be asked."""
UNSAFE_ROUTES = [(method, path) for method, path in ROUTES if method not in SAFE]
