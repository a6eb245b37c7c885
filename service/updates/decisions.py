"""What a person decides: approve, reject, cancel, roll back, learn a parked experience after all."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sa

from service.errors import (
    CancelConflictError,
    ChampionMovedError,
    DecisionConflictError,
    FreezeConflictError,
    HoldoutConflictError,
    HoldoutUnknownError,
    NothingToLearnError,
)
from service.gate import sentences as say
from service.state import backlog, champions, freezes, holdouts, jobs, ledger
from service.state.database import lock_pipeline, now, updates
from service.state.pipelines import load_spec
from streams.state.manifest import removed_trains

Choice = Literal["approve", "reject"]
Marking = Literal["retire", "restore", "pin", "unpin"]


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
    fix = "Read the ledger for what was done; a promotion is undone with POST .../rollback."
    if update.decision and update.cancelled:
        happened = f"was cancelled by {update.decision['by']}"
        fix = "It decided nothing; its experiences are parked, and can be learnt when asked for."
    elif update.decision:
        happened = f"was decided already: {update.decision['choice']} by {update.decision['by']}"
    elif update.state == "done":
        happened = f"was decided by the gate: {update.outcome or 'nothing to learn'}"
    else:
        happened = f"is {update.state}, and does not await a decision"
    raise DecisionConflictError(
        f"Update {update.id} {happened}. Nothing was changed.",
        fix=fix,
        members={"state": update.state},
    )


def cancel(engine: sa.Engine, update_id: str, *, actor: str, reason: str) -> jobs.Update:
    """End an update that waits or learns, in one transaction; how it stands then.

    Its worker finds its lease lost. Nothing is promoted or rejected by it, so the ledger has no word of it.

    Raises:
        UpdateUnknownError: there is no such update.
        CancelConflictError: it has ended, awaits a decision, or is being recorded.
    """
    with engine.begin() as connection:
        lock_pipeline(connection, jobs.get(connection, update_id).pipeline)
        # Its worker takes no lock of the pipeline where it begins to record.
        update = jobs.get(connection, update_id, lock=True)
        _require_cancellable(update)
        experiences = _would_learn(connection, update)
        jobs.cancel(connection, update, experiences=experiences, actor=actor, reason=reason)
        return jobs.get(connection, update_id)


def _require_cancellable(update: jobs.Update) -> None:
    if update.state in ("queued", "running") and not update.recording:
        return
    if update.recording:
        happened = "has learnt and is being recorded, so it cannot be stopped any more"
        fix = "Wait some seconds for its outcome: a review can be rejected, a promotion rolled back."
    elif update.state == "review":
        happened = "has learnt and awaits a decision, so there is nothing left to cancel"
        fix = (
            f"Reject it instead: POST /v1/updates/{update.id}/decision, "
            f"or `holdfast update reject {update.id} --reason ...`."
        )
    elif update.decision and update.cancelled:
        at = datetime.fromtimestamp(update.decision["at"], UTC).isoformat(timespec="seconds")
        happened = f"was cancelled already, by {update.decision['by']} at {at}"
        fix = "Nothing more needs to be done; its experiences are parked, and can be learnt when asked for."
    elif update.state == "failed":
        happened = "has failed already, so there is nothing to cancel"
        fix = "Read its `error`; its experiences are parked, and can be learnt when asked for."
    else:
        happened = f"has ended already: {update.outcome or 'nothing to learn'}"
        fix = "A promotion is undone with POST /v1/pipelines/{pipeline}/rollback, or `holdfast rollback`."
    raise CancelConflictError(
        f"Update {update.id} {happened}. Nothing was changed.", fix=fix, members={"state": update.state}
    )


def _would_learn(connection: sa.Connection, update: jobs.Update) -> Sequence[int]:
    """What an update learns, or would have learnt had it been claimed now; nothing that is another one's."""
    if update.experiences:
        return update.experiences
    if update.asked is None and jobs.next_is_queued(connection, update.pipeline, beside=update.id):
        return []
    others = jobs.experiences_of_live(connection, update.pipeline, beside=update.id)
    limit = load_spec(connection, update.pipeline).max_experiences_per_update
    if update.asked is not None:
        limit = len(update.asked)
    return backlog.to_learn(connection, update.pipeline, limit=limit, among=update.asked, beside=others)


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
        _free_behind_audit(connection, entry)
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


def _free_behind_audit(connection: sa.Connection, rollback: ledger.Entry) -> None:
    """Whoever goes back to the last audited version, or behind it, has answered the freeze."""
    freeze = freezes.current(connection, rollback.pipeline)
    if freeze is None or freeze.last_audited is None:
        return
    behind = champions.lineage(connection, rollback.pipeline, freeze.last_audited)
    if rollback.version in {each.version for each in behind}:
        freezes.lift(
            connection,
            rollback.pipeline,
            freeze=freeze,
            champion=rollback.version,
            actor=rollback.actor,
            reason=f"rolled back to version {rollback.version}, whose audit stands",
        )


def unfreeze(engine: sa.Engine, pipeline: str, *, actor: str, reason: str) -> ledger.Entry:
    """Free promotion after an audit that did not pass.

    Raises:
        FreezeConflictError: promotion is not frozen.
    """
    with engine.begin() as connection:
        lock_pipeline(connection, pipeline)
        freeze = freezes.current(connection, pipeline)
        if freeze is None:
            raise FreezeConflictError(
                f"Promotion of {pipeline!r} is not frozen. Nothing was changed.",
                fix="Read the ledger: an audit that does not pass freezes it.",
            )
        champion = champions.current(connection, pipeline)
        number = champion.version if champion else None
        return freezes.lift(connection, pipeline, freeze=freeze, champion=number, actor=actor, reason=reason)


def mark_holdout(
    engine: sa.Engine, pipeline: str, experience: int, *, marking: Marking, actor: str, reason: str
) -> ledger.Entry:
    """Retire a holdout (it is no evidence any more), pin it (it is never cut down), or take that back.

    Raises:
        HoldoutUnknownError: the champion learnt no such experience, so it has no past holdout.
        HoldoutConflictError: it is marked so already.
    """
    changes = {
        "retire": {"retired": True},
        "restore": {"retired": False},
        "pin": {"pinned": True},
        "unpin": {"pinned": False},
    }
    with engine.begin() as connection:
        before, version = _holdout(connection, pipeline, experience)
        after = replace(before, **changes[marking])
        if after == before:
            raise HoldoutConflictError(
                f"The holdout of experience {experience} cannot be {_MARKED[marking]}: it stands so already.",
                fix="Read GET /v1/pipelines/{pipeline}/holdouts.",
            )
        holdouts.set_mark(connection, pipeline, experience=experience, mark=after)
        told = f"holdout of experience {experience}: {reason}"
        return _of_holdout(connection, pipeline, marking, version, actor=actor, reason=told)


def set_holdout_margin(
    engine: sa.Engine, pipeline: str, experience: int, *, margin: float | None, actor: str, reason: str
) -> ledger.Entry:
    """Say how much a past holdout may truly lose from now on, as a share; None: what the pipeline says.

    Raises:
        HoldoutUnknownError: the champion learnt no such experience, so it has no past holdout.
        HoldoutConflictError: that is its margin already.
    """
    with engine.begin() as connection:
        before, version = _holdout(connection, pipeline, experience)
        if margin == before.margin:
            stands = "the pipeline's" if margin is None else say.with_unit(margin, digits=2)
            raise HoldoutConflictError(
                f"The margin of the holdout of experience {experience} is {stands} already.",
                fix="Read GET /v1/pipelines/{pipeline}/holdouts.",
            )
        mark = replace(before, margin=margin)
        holdouts.set_mark(connection, pipeline, experience=experience, mark=mark)
        set_to = (
            "the pipeline's margin" if margin is None else f"a margin of {say.with_unit(margin, digits=2)}"
        )
        told = f"holdout of experience {experience}, {set_to} from now on: {reason}"
        return _of_holdout(connection, pipeline, "margin", version, actor=actor, reason=told)


def _holdout(connection: sa.Connection, pipeline: str, experience: int) -> tuple[holdouts.Mark, int]:
    """The mark of a past holdout, and the champion's version; the pipeline is held from here on."""
    lock_pipeline(connection, pipeline)
    champion = champions.current(connection, pipeline)
    version = champions.version(connection, pipeline, champion.version) if champion else None
    if version is None or experience not in version.learnt:
        raise HoldoutUnknownError(
            f"Experience {experience} has no past holdout: no champion of {pipeline!r} learnt it.",
            fix="Choose one of GET /v1/pipelines/{pipeline}/holdouts.",
        )
    return holdouts.marks(connection, pipeline).get(experience, holdouts.UNMARKED), version.version


def _of_holdout(
    connection: sa.Connection, pipeline: str, action: ledger.Action, version: int, *, actor: str, reason: str
) -> ledger.Entry:
    return ledger.append(
        connection,
        pipeline,
        action=action,
        actor=actor,
        reason=reason,
        update_id=None,
        version=version,
        previous_version=version,
    )


_MARKED = {"retire": "retired", "restore": "restored", "pin": "pinned", "unpin": "unpinned"}


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
