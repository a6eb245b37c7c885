"""The API process: all it answers comes from SQL, so it starts fast and imports neither torch nor ray."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from service import roles
from service.api import pipelines, problems, updates
from service.database import connect, migrate
from service.settings import Settings

DESCRIPTION = """
Holdfast keeps a torch model learning from a live stream and never lets a worse model out.

Every error is an RFC 9457 problem document with a `fix` member that says what to do.
"""


def create_app(settings: Settings) -> FastAPI:
    """The ASGI app; it owns its database engine for as long as it runs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = connect(settings.database)
        migrate(engine)
        app.state.engine = engine
        app.state.settings = settings
        yield
        engine.dispose()

    app = FastAPI(title="Holdfast", version="1", description=DESCRIPTION, lifespan=lifespan, redoc_url=None)
    problems.install(app)
    app.include_router(pipelines.router)
    app.include_router(updates.router)
    app.add_api_route("/healthz", _healthz, methods=["GET"], tags=["health"], summary="The process lives")
    app.add_api_route("/readyz", _readyz, methods=["GET"], tags=["health"], summary="Requests are answered")
    return app


def _healthz() -> dict[str, str]:
    return {"status": "alive"}


def _readyz(request: Request) -> JSONResponse:
    """200 when the database answers; `roles` lists the other parts that were heard of lately."""
    try:
        with request.app.state.engine.begin() as connection:
            present = roles.seen(connection)
    except sa.exc.SQLAlchemyError:
        return problems.problem(
            503,
            slug="database-away",
            title="The database does not answer",
            detail="The API is up, and its database does not answer.",
            fix="See the API's log, and check HOLDFAST_DATABASE_URL.",
        )
    heard = [
        {"role": role.role, "instance": role.instance, "seconds_ago": role.seconds_ago} for role in present
    ]
    return JSONResponse({"status": "ready", "roles": heard})
