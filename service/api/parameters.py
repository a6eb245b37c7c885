"""Parameters of routes: names in the path, headers, and pages of a list."""

from typing import Annotated

import sqlalchemy as sa
from fastapi import Depends, Header, Path, Query, Request

from service.errors import PipelineUnknownError, UpdateUnknownError
from service.settings import Settings

MAX_INTEGER = 2**31 - 1
"""The largest that every database's INTEGER holds."""

IdempotencyKey = Annotated[
    str | None,
    # Printable ASCII, so that it means the same to every database and in every log.
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[!-~]+$",
        description="Makes a retry safe: 1 to 200 printable characters without spaces.",
    ),
]


def engine_of(request: Request) -> sa.Engine:
    engine: sa.Engine = request.app.state.engine
    return engine


def settings_of(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def named(pipeline: Annotated[str, Path(description="The pipeline's name.")]) -> str:
    """A pipeline's name from the path; one that no pipeline can have does not reach the database."""
    if not _plain(pipeline, 63):
        raise PipelineUnknownError(
            f"There is no pipeline {pipeline[:100]!r}.",
            fix="Names are up to 63 of a-z, 0-9 and -; GET /v1/pipelines lists what there is.",
        )
    return pipeline


def known(update: Annotated[str, Path(description="The update's id, such as u-0f3c5d7e9a1b2c4d.")]) -> str:
    """An update's id from the path; one that no update can have does not reach the database."""
    if not _plain(update, 40):
        raise UpdateUnknownError(
            f"There is no update {update[:100]!r}.",
            fix="List a pipeline's updates with GET /v1/pipelines/{pipeline}/updates.",
        )
    return update


def _plain(text: str, longest: int) -> bool:
    return text.isascii() and text.isprintable() and len(text) <= longest


Engine = Annotated[sa.Engine, Depends(engine_of)]
Configured = Annotated[Settings, Depends(settings_of)]
PipelineName = Annotated[str, Depends(named)]
UpdateId = Annotated[str, Depends(known)]
Limit = Annotated[int, Query(ge=1, le=1000, description="At most this many.")]
