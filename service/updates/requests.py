"""Requests to start an update now, from what has arrived or from named experiences."""

from collections.abc import Sequence

import sqlalchemy as sa

from service.errors import NothingToLearnError
from service.state import backlog, jobs, pipelines
from service.state.database import lock_pipeline
from streams.state.manifest import Manifest, removed_trains
from streams.state.tables import reading


def request_update(
    engine: sa.Engine,
    pipeline: str,
    *,
    by: str,
    request_key: str | None,
    experiences: Sequence[int] | None,
) -> str:
    """Queue an update that learns what has arrived, or what `experiences` names; returns its id.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        UpdateDuplicateError: the key was used before.
        NothingToLearnError: no record and no experience waits.
    """
    manifest = Manifest(engine)
    with reading(engine) as connection:
        spec = pipelines.load_spec(connection, pipeline)
    pushed = spec.source.kind == "pushed"
    # How many records another source holds is not known before it is read.
    pending = manifest.pending_records(pipeline) if pushed else None
    with engine.begin() as connection:
        # No named experience may be settled between the check of its state and the change.
        lock_pipeline(connection, pipeline)
        update_id = jobs.enqueue(
            connection,
            pipeline,
            requested_by=by,
            wants_cut=experiences is None and pending != 0,
            request_key=request_key,
            asked=experiences,
        )
        if experiences is not None:
            learn_again(connection, pipeline, experiences=experiences)
        elif pending == 0 and not backlog.to_learn(connection, pipeline, limit=1):
            raise NothingToLearnError(
                f"No record of {pipeline!r} waits to be learnt, so no update was started.",
                fix="Send records with POST /v1/pipelines/{pipeline}/records first.",
            )
    return update_id


def learn_again(connection: sa.Connection, pipeline: str, *, experiences: Sequence[int]) -> None:
    """Make parked or carried experiences wait again for the next update.

    Raises:
        NothingToLearnError: one of them is unknown, learnt already, in review, or its records are gone.
    """
    states = backlog.states(connection, pipeline)
    removed = removed_trains(connection, pipeline)
    for experience in experiences:
        if experience in removed:
            raise NothingToLearnError(
                f"The records of experience {experience} are gone: the retention policy removed them.",
                fix="Send them again, or learn without them; retention.keep_experiences says what is kept.",
            )
        state = states[experience][0] if experience in states else None
        if state not in ("parked", "carried", "waiting"):
            problem = f"is in state {state!r}" if state else "does not exist"
            raise NothingToLearnError(
                f"Experience {experience} of {pipeline!r} {problem}, so it cannot be learnt now.",
                fix="Name experiences that are waiting, carried or parked: see GET .../experiences.",
            )
    backlog.mark(connection, pipeline, experiences=experiences, state="waiting", note="asked for again")
