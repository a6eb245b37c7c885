"""What a person decides: approve or reject a review, roll back, learn a parked experience after all."""

from collections.abc import Sequence
from typing import Literal

import sqlalchemy as sa

from service import backlog, champions, jobs, ledger
from service.database import lock_pipeline, now, updates
from service.errors import ChampionMovedError, DecisionConflictError, NothingToLearnError
from streams.manifest import removed_trains

Choice = Literal["approve", "reject"]


def decide_review(
    engine: sa.Engine, update_id: str, *, choice: Choice, actor: str, reason: str
) -> ledger.Entry:
    """Settle an update that awaits a person, in one transaction.

    Raises:
        UpdateUnknownError: there is no such update.
        DecisionConflictError: it does not await a decision.
        ChampionMovedError: approved, but the champion is not the one it was compared with.
    """
    with engine.begin() as connection:
        lock_pipeline(connection, jobs.get(connection, update_id).pipeline)
        update = jobs.get(connection, update_id)
        decision = {"choice": choice, "by": actor, "reason": reason, "at": now(connection)}
        _close(connection, update, decision)
        if choice == "approve":
            return _approve(connection, update, actor=actor, reason=reason)
        note = f"rejected by {actor}: {reason}"
        backlog.park(connection, update.pipeline, experiences=update.experiences, note=note)
        return ledger.append(
            connection,
            update.pipeline,
            action="reject",
            actor=actor,
            reason=reason,
            update_id=update.id,
            version=update.version,
            previous_version=update.base_version,
        )


def _approve(connection: sa.Connection, update: jobs.Update, *, actor: str, reason: str) -> ledger.Entry:
    if update.version is None:
        raise DecisionConflictError(
            f"Update {update.id} made no version, so there is nothing to promote.",
            fix="Reject it, or start a new update.",
        )
    try:
        entry = champions.promote(
            connection,
            update.pipeline,
            number=update.version,
            expected_revision=update.base_revision,
            update_id=update.id,
            actor=actor,
            reason=reason,
        )
    except ChampionMovedError as moved:
        raise ChampionMovedError(
            moved.detail,
            # The review blocks the pipeline, so a new update alone would wait behind it.
            fix="Reject it, then start an update with its experiences: it is compared with today's champion.",
            members={"experiences": list(update.experiences), "version": update.version},
        ) from moved
    note = f"version {update.version}, approved by {actor}"
    backlog.mark(connection, update.pipeline, experiences=update.experiences, state="learnt", note=note)
    return entry


def _close(connection: sa.Connection, update: jobs.Update, decision: dict[str, object]) -> None:
    """End the review. Of two people who decide at once, one changes the row and the other is told."""
    changed = connection.execute(
        sa.update(updates)
        .where(updates.c.id == update.id, updates.c.state == "review")
        .values(state="done", decision=decision)
    )
    if changed.rowcount == 1:
        return
    if update.decision:
        happened = f"was decided already: {update.decision['choice']} by {update.decision['by']}"
    elif update.state == "done":
        happened = f"was decided by the gate: {update.outcome or 'nothing to learn'}"
    else:
        happened = f"is {update.state}, and does not await a decision"
    raise DecisionConflictError(
        f"Update {update.id} {happened}. Nothing was changed.",
        fix="Read the ledger for what was done; a promotion is undone with POST .../rollback.",
        members={"state": update.state},
    )


def roll_back(
    engine: sa.Engine, pipeline: str, *, version: int | None, actor: str, reason: str
) -> ledger.Entry:
    """Point the champion at an older version; what only the newer ones had learnt is parked.

    Raises:
        ChampionMissingError, VersionUnfitError, ChampionMovedError: as `champions.roll_back`.
    """
    with engine.begin() as connection:
        lock_pipeline(connection, pipeline)
        before = champions.current(connection, pipeline)
        entry = champions.roll_back(connection, pipeline, number=version, actor=actor, reason=reason)
        left = champions.version(connection, pipeline, before.version) if before else None
        back = champions.version(connection, pipeline, entry.version) if entry.version else None
        if left and back:
            note = f"learnt by version {left.version}, which {actor} rolled back"
            unlearnt = sorted(set(left.learnt) - set(back.learnt))
            backlog.mark(connection, pipeline, experiences=unlearnt, state="parked", note=note)
            regained = sorted(set(back.learnt))
            backlog.mark(
                connection, pipeline, experiences=regained, state="learnt", note=f"version {back.version}"
            )
        return entry


def learn_again(connection: sa.Connection, pipeline: str, *, experiences: Sequence[int]) -> None:
    """Put parked or carried experiences back in the queue of what the next update learns.

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
            told = f"is in state {state!r}" if state else "does not exist"
            raise NothingToLearnError(
                f"Experience {experience} of {pipeline!r} {told}, so it cannot be learnt now.",
                fix="Name experiences that are waiting, carried or parked: see GET .../experiences.",
            )
    backlog.mark(connection, pipeline, experiences=experiences, state="waiting", note="asked for again")
