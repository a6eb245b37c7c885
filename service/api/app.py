"""The API process: every answer comes from SQL, so it starts fast and imports neither torch nor ray."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from fastapi import APIRouter, FastAPI

from service.api import golden, holdouts, pipelines, problems, records, reference, streams, updates
from service.api.bodies.health import Alive, Ready, RoleView, TroubleView
from service.api.limits import BodiesInFlight, SecureAnswers
from service.api.methods import HeadAsGet
from service.api.origins import OwnCallers, OwnHosts
from service.api.pace import Pace, SlowBodies
from service.api.parameters import Engine
from service.api.texts import PlainAddresses
from service.settings import Settings
from service.state import presence
from service.state.database import connect, migrate
from streams.state.tables import reading

DESCRIPTION = """
Holdfast keeps a torch model learning from a live stream and never lets a worse model out.

Every error is an RFC 9457 problem document with a `fix` member that says what to do.
"""

health = APIRouter(tags=["health"])


def create_app(settings: Settings, pace: Pace | None = None) -> FastAPI:
    """The ASGI app; it owns its database engine for as long as it runs.

    Args:
        pace: how long bodies may take to arrive.

    Raises:
        SettingsError: the database is of a kind that is not supported, or its driver is missing.
    """
    engine = connect(settings.database)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        migrate(engine)
        app.state.engine = engine
        app.state.settings = settings
        app.state.bodies_in_flight = BodiesInFlight(settings.max_bytes_in_flight)
        yield
        engine.dispose()

    app = FastAPI(
        title="Holdfast",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # A redirect would send a body to wherever the Host header points; the problem names the right path.
        redirect_slashes=False,
    )
    problems.install(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(PlainAddresses)
    app.add_middleware(SlowBodies, pace=pace or Pace())
    app.add_middleware(OwnCallers, hosts=OwnHosts(settings))
    app.add_middleware(SecureAnswers)
    for part in (pipelines, golden, holdouts, records, streams, updates, reference):
        app.include_router(part.router)
    app.include_router(health)
    app.openapi = lambda: reference.describe(app)  # type: ignore[method-assign]  # FastAPI's documented hook
    return app


@health.get("/healthz", summary="Liveness")
def healthz() -> Alive:
    """Whether the process answers; it does not use the database."""
    return Alive()


@health.get("/readyz", summary="Readiness")
def readyz(engine: Engine) -> Ready:
    """200 when the database answers, else 503; `roles` are the other processes that are alive."""
    with reading(engine) as connection:
        present = presence.seen(connection)
    return Ready(
        roles=[
            RoleView(
                role=role.role,
                instance=role.instance,
                seconds_ago=role.seconds_ago,
                troubles=[TroubleView(**asdict(each)) for each in role.troubles],
            )
            for role in present
        ]
    )
