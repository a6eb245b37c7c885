"""Rows of updates: durable jobs, each leased to one worker at a time.

(update id, attempt) is the fencing token. Everything a worker writes about an update goes through a
statement that names both, so a worker that lost its lease changes nothing.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from service.errors import LostLeaseError, UpdateDuplicateError, UpdateUnknownError
from service.state.database import LIVE_STATES, now, updates

State = Literal["queued", "running", "review", "done", "failed"]

RECORDING = "recording"
"""Progress stage in which an update is written to MLflow: it can no longer be cancelled."""


@dataclass(frozen=True)
class Update:
    """One job: learn one or more experiences, compare, decide, record."""

    id: str
    pipeline: str
    request_key: str | None
    requested_by: str
    wants_cut: bool
    """True until ingest has cut the pending records; only then can a worker claim the update."""
    state: State
    attempt: int
    """Rises with every claim: with the id, the fencing token."""
    failures: int
    """Attempts that failed or went silent; one that a stopping worker gave back does not count."""
    not_before: float
    """No attempt starts sooner."""
    owner: str | None
    lease_until: float | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    asked: Sequence[int] | None
    """The experiences that the request named; None: whatever waits."""
    experiences: Sequence[int]
    base_version: int | None
    """The champion that the challenger was made from; None: there was none."""
    base_revision: int | None
    """The champion row's revision at that time; a promotion requires that it is still the same."""
    progress: Mapping[str, Any] | None
    outcome: str | None
    reason: str | None
    verdict: Mapping[str, Any] | None
    accuracy: Mapping[str, float] | None
    """Accuracy of the challenger on each holdout, by experience index."""
    version: int | None
    run_id: str | None
    decision: Mapping[str, Any] | None
    """A person's decision, with `choice` (approve, reject or cancel), `by`, `reason` and `at`."""
    error: str | None
    cause: str | None = None
    """Guard of the finding that decided a review or a rejection; None: promoted, or no verdict yet."""

    @property
    def cancelled(self) -> bool:
        return self.decision is not None and self.decision["choice"] == "cancel"

    @property
    def recording(self) -> bool:
        """Whether it is being written to MLflow, and can no longer be cancelled."""
        return self.state == "running" and (self.progress or {}).get("stage") == RECORDING


def enqueue(
    connection: sa.Connection,
    pipeline: str,
    *,
    requested_by: str,
    wants_cut: bool = False,
    request_key: str | None = None,
    asked: Sequence[int] | None = None,
) -> str:
    """Add an update, in the caller's transaction; returns its id.

    Raises:
        UpdateDuplicateError: `request_key` was already used in this pipeline.
    """
    update_id = "u-" + secrets.token_hex(8)
    values: dict[str, Any] = {
        "id": update_id,
        "pipeline": pipeline,
        "request_key": request_key,
        "requested_by": requested_by,
        "wants_cut": wants_cut,
        "state": "queued",
        "attempt": 0,
        "failures": 0,
        "not_before": 0.0,
        "created_at": now(connection),
        "asked": None if asked is None else sorted(asked),
        "experiences": [],
    }
    try:
        # Only the insert itself can decide: the same request may arrive twice at this moment.
        with connection.begin_nested():
            connection.execute(sa.insert(updates).values(**values))
    except sa.exc.IntegrityError as error:
        raise _duplicate(connection, pipeline, request_key) from error
    return update_id


def _duplicate(connection: sa.Connection, pipeline: str, request_key: str | None) -> UpdateDuplicateError:
    first = connection.execute(
        sa.select(updates.c.id).where(updates.c.pipeline == pipeline, updates.c.request_key == request_key)
    ).scalar_one()
    return UpdateDuplicateError(
        f"The Idempotency-Key {request_key!r} already started update {first}; no second one was started.",
        fix=f"Follow it with GET /v1/updates/{first}, or send a new key for a new update.",
        members={"update": first},
    )


def ensure_queued(connection: sa.Connection, pipeline: str, *, requested_by: str) -> str:
    """Id of an unclaimed update, which will see what this transaction adds; queued now if there is none.

    One that waits for its next attempt does not count: what it learns was fixed at its first.
    """
    waiting = connection.execute(
        _unclaimed(pipeline).order_by(updates.c.created_at).limit(1).with_for_update()
    ).scalar()
    return str(waiting) if waiting else enqueue(connection, pipeline, requested_by=requested_by)


def _unclaimed(pipeline: str) -> sa.Select[Any]:
    """Updates that no worker has claimed yet, and that will learn whatever waits by then."""
    return sa.select(updates.c.id).where(
        updates.c.pipeline == pipeline,
        updates.c.state == "queued",
        updates.c.attempt == 0,
        updates.c.asked.is_(None),
    )


def get(connection: sa.Connection, update_id: str, *, lock: bool = False) -> Update:
    """One update; with `lock`, nobody else changes it until the transaction ends.

    Raises:
        UpdateUnknownError: there is none of that id.
    """
    row = None
    # PostgreSQL refuses a query with a text that holds a NUL.
    if "\0" not in update_id:
        wanted = sa.select(updates).where(updates.c.id == update_id)
        row = connection.execute(wanted.with_for_update() if lock else wanted).first()
    if row is None:
        raise UpdateUnknownError(
            f"There is no update {update_id!r}.",
            fix="List a pipeline's updates with GET /v1/pipelines/{pipeline}/updates.",
        )
    return Update(**row._mapping)


def of_pipeline(connection: sa.Connection, pipeline: str, *, limit: int = 100) -> list[Update]:
    """A pipeline's updates, newest first."""
    rows = connection.execute(
        sa.select(updates)
        .where(updates.c.pipeline == pipeline)
        .order_by(updates.c.created_at.desc(), updates.c.id)
        .limit(limit)
    )
    return [Update(**row._mapping) for row in rows]


def blocking(connection: sa.Connection, update: Update) -> Update | None:
    """The other update that a queued one waits for: one that runs, or one that a person must decide."""
    if update.state != "queued":
        return None
    row = connection.execute(
        sa.select(updates).where(
            updates.c.pipeline == update.pipeline, updates.c.state.in_(["running", "review"])
        )
    ).first()
    return Update(**row._mapping) if row else None


def write(connection: sa.Connection, update: Update, values: Mapping[str, Any]) -> None:
    """Change the update's row, if it is still this attempt's.

    Raises:
        LostLeaseError: another attempt owns it, or it has ended.
    """
    changed = connection.execute(
        sa.update(updates)
        .where(
            updates.c.id == update.id,
            updates.c.attempt == update.attempt,
            updates.c.state == "running",
        )
        .values(**values)
    )
    if changed.rowcount != 1:
        raise LostLeaseError(
            f"Update {update.id}, attempt {update.attempt}, is no longer this worker's.",
            fix="Nothing was written; the attempt that owns it goes on.",
        )


def wanting_cut(connection: sa.Connection, pipeline: str) -> list[str]:
    """Ids of updates that wait until ingest has cut the pending records."""
    rows = connection.execute(
        sa.select(updates.c.id).where(
            updates.c.pipeline == pipeline, updates.c.state == "queued", updates.c.wants_cut
        )
    )
    return [row.id for row in rows]


def pipelines_wanting_cut(connection: sa.Connection) -> set[str]:
    """Pipelines of which an update waits until ingest has cut the pending records."""
    rows = connection.execute(
        sa.select(updates.c.pipeline).where(updates.c.state == "queued", updates.c.wants_cut).distinct()
    )
    return set(rows.scalars())


def cut_done(connection: sa.Connection, update_ids: Sequence[str]) -> None:
    """Let workers claim these updates."""
    connection.execute(sa.update(updates).where(updates.c.id.in_(update_ids)).values(wants_cut=False))


def next_is_queued(connection: sa.Connection, pipeline: str, *, excluding: str) -> bool:
    """Whether an unclaimed update other than `excluding` will learn whatever waits."""
    return bool(connection.execute(_unclaimed(pipeline).where(updates.c.id != excluding).limit(1)).scalar())


def experiences_of_live(connection: sa.Connection, pipeline: str, *, excluding: str = "") -> set[int]:
    """Every experience of updates that have not ended, without the update `excluding`."""
    rows = connection.execute(
        sa.select(updates.c.experiences, updates.c.asked).where(
            updates.c.pipeline == pipeline, updates.c.state.in_(LIVE_STATES), updates.c.id != excluding
        )
    )
    return {index for row in rows for index in [*row.experiences, *(row.asked or [])]}


def earlier_tries(connection: sa.Connection, update: Update) -> int:
    """How many earlier updates learnt one of these experiences from the same champion version."""
    rows = connection.execute(
        sa.select(updates.c.experiences).where(
            updates.c.pipeline == update.pipeline,
            updates.c.id != update.id,
            updates.c.version.is_not(None),
            # By the version, not the revision: a champion that comes back by a rollback regains no alpha.
            updates.c.base_version.is_not_distinct_from(update.base_version),
        )
    )
    wanted = set(update.experiences)
    return sum(not wanted.isdisjoint(row.experiences) for row in rows)


def verdict_before(
    connection: sa.Connection, pipeline: str, *, base_version: int, excluding: str = ""
) -> Mapping[str, Any] | None:
    """The newest verdict on a challenger of this champion version, but the one of the update `excluding`.

    None: there is none. Verdicts on batches that were stopped before they were learnt do not count.
    """
    columns = updates.c
    row = connection.execute(
        sa.select(columns.verdict)
        .where(
            columns.pipeline == pipeline,
            columns.id != excluding,
            columns.base_version == base_version,
            columns.version.is_not(None),
            columns.outcome.is_not(None),
        )
        .order_by(columns.finished_at.desc(), columns.created_at.desc())
        .limit(1)
    ).first()
    return row.verdict if row else None


def live(connection: sa.Connection, pipeline: str) -> int:
    """How many updates of a pipeline have not ended."""
    count = connection.execute(
        sa.select(sa.func.count())
        .select_from(updates)
        .where(updates.c.pipeline == pipeline, updates.c.state.in_(LIVE_STATES))
    ).scalar_one()
    return int(count)


def costs(connection: sa.Connection, pipeline: str, *, limit: int) -> list[tuple[Sequence[int], float]]:
    """Experiences learnt and seconds taken by the latest updates that reached a verdict, oldest first."""
    columns = updates.c
    rows = connection.execute(
        sa.select(columns.experiences, columns.started_at, columns.finished_at)
        .where(
            columns.pipeline == pipeline,
            columns.state.in_(["done", "review"]),
            columns.outcome.is_not(None),
            columns.finished_at.is_not(None),
        )
        .order_by(columns.created_at.desc())
        .limit(limit)
    ).all()
    return [(row.experiences, row.finished_at - row.started_at) for row in reversed(rows)]
