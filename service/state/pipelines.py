"""Rows of pipelines: stored when they are declared, read by every role."""

import sqlalchemy as sa
from pydantic import ValidationError

from service.errors import PipelineExistsError, PipelineUnknownError, PipelineUnreadableError
from service.pipelines import PipelineSpec, describe
from service.state.database import now, pipelines


def create(connection: sa.Connection, spec: PipelineSpec) -> None:
    """Store a new pipeline.

    Raises:
        PipelineExistsError: the name is taken.
    """
    document = spec.model_dump(mode="json", by_alias=True)
    row = {"name": spec.name, "spec": document, "created_at": now(connection)}
    try:
        # Only the insert itself can decide: another caller may declare the same name at this moment.
        with connection.begin_nested():
            connection.execute(sa.insert(pipelines).values(row))
    except sa.exc.IntegrityError as error:
        raise PipelineExistsError(
            f"There is a pipeline {spec.name!r} already; it was not changed.",
            fix="Choose another name, or go on with the pipeline that exists.",
        ) from error


def load_spec(connection: sa.Connection, name: str) -> PipelineSpec:
    """One pipeline's spec.

    Raises:
        PipelineUnknownError: there is none of that name.
        PipelineUnreadableError: what an earlier release stored, this one does not understand.
    """
    document = None
    # PostgreSQL refuses a query with a text that holds a NUL.
    if "\0" not in name:
        document = connection.execute(sa.select(pipelines.c.spec).where(pipelines.c.name == name)).scalar()
    if document is None:
        raise PipelineUnknownError(
            f"There is no pipeline {name!r}.",
            fix="Create it with POST /v1/pipelines, or list what there is with GET /v1/pipelines.",
        )
    try:
        return PipelineSpec.model_validate(document)
    except ValidationError as error:
        first = describe(error)[0]
        raise PipelineUnreadableError(
            f"The stored pipeline {name!r} does not fit this release: {first['where']}: {first['problem']}.",
            fix="Go back to the release that it was declared with, and read the CHANGELOG.",
        ) from error


def names(connection: sa.Connection) -> list[str]:
    """Names of all pipelines, in order."""
    return [row.name for row in connection.execute(sa.select(pipelines.c.name).order_by(pipelines.c.name))]
