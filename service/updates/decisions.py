"""Decisions of people: approve, reject, cancel, roll back, unfreeze, and marks on holdouts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from service.errors import (
    CancelConflictError,
    ChampionMovedError,
    DecisionConflictError,
    FreezeConflictError,
    HoldoutConflictError,
    HoldoutUnknownError,
)
from service.gate.sentences import percent_of, with_unit
from service.state import backlog, champions, endings, freezes, holdouts, jobs, ledger
from service.state.database import lock_pipeline, now
from service.state.ledger import By
from service.state.pipelines import load_spec
from service.updates import golden_sets
from service.updates.past import is_shifted

Choice = Literal["approve", "reject"]
Marking = Literal["retire", "restore", "pin", "unpin", "keep", "unkeep"]


def decide_review(engine: sa.Engine, update_id: str, *, choice: Choice, by: By) -> ledger.Entry:
    """Settle an update that awaits a person, in one transaction.

    Raises:
        UpdateUnknownError: there is no such update.
        DecisionConflictError: it does not await a decision.
        ChampionMovedError: approved, but the champion is not the one it was compared with.
    """
    with engine.begin() as connection:
        lock_pipeline(connection, jobs.get(connection, update_id).pipeline)
        update = jobs.get(connection, update_id)
        by = replace(by, update_id=update.id)
        decision = {"choice": choice, "by": by.actor, "reason": by.reason, "at": now(connection)}
        if not endings.close_review(connection, update, decision=decision):
            raise _not_in_review(update)
        if choice == "approve":
            return _approve(connection, update, by)
        note = f"rejected by {by.actor}: {by.reason}"
        backlog.park(connection, update.pipeline, experiences=update.experiences, note=note)
        return ledger.append(
            connection,
            update.pipeline,
            action="reject",
            by=by,
            version=update.version,
            previous_version=update.base_version,
        )


def _approve(connection: sa.Connection, update: jobs.Update, by: By) -> ledger.Entry:
    if update.version is None:
        raise DecisionConflictError(
            f"Update {update.id} made no version, so there is nothing to promote.",
            fix="Reject it, or start a new update.",
        )
    # A refused promotion undoes this with it.
    moved = golden_sets.approve_losses(connection, update.pipeline, update.verdict, version=update.version)
    if moved:
        sets = f"golden set{'s' if len(moved) > 1 else ''} {', '.join(moved)}"
        by = replace(by, reason=f"v{update.version} is the anchor of {sets} from now on: {by.reason}")
    try:
        return champions.promote(
            connection,
            update.pipeline,
            number=update.version,
            expected_revision=update.base_revision,
            experiences=update.experiences,
            by=by,
        )
    except ChampionMovedError as error:
        raise ChampionMovedError(
            error.detail,
            # The review blocks the pipeline, so a new update would wait behind it.
            fix="Reject it, then start an update with its experiences: it is compared with today's champion.",
            members={"experiences": list(update.experiences), "version": update.version},
        ) from error


def _not_in_review(update: jobs.Update) -> DecisionConflictError:
    """Why an update takes no decision: what happened to it, and what can be done instead."""
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
    return DecisionConflictError(
        f"Update {update.id} {happened}. Nothing was changed.",
        fix=fix,
        members={"state": update.state},
    )


def cancel(engine: sa.Engine, update_id: str, *, by: By) -> jobs.Update:
    """End an update that waits or learns, in one transaction; returns the ended update.

    Its worker finds its lease lost. It promotes and rejects nothing, so the ledger gets no entry.

    Raises:
        UpdateUnknownError: there is no such update.
        CancelConflictError: it has ended, awaits a decision, or is being recorded.
    """
    with engine.begin() as connection:
        lock_pipeline(connection, jobs.get(connection, update_id).pipeline)
        # Its worker does not lock the pipeline when it starts to record.
        update = jobs.get(connection, update_id, lock=True)
        _require_cancellable(update)
        experiences = _would_learn(connection, update)
        endings.cancel(connection, update, experiences=experiences, by=by)
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
    """What an update learns, or would learn if it were claimed now, without other updates' experiences."""
    if update.experiences:
        return update.experiences
    if update.asked is None and jobs.next_is_queued(connection, update.pipeline, excluding=update.id):
        return []
    others = jobs.experiences_of_live(connection, update.pipeline, excluding=update.id)
    limit = load_spec(connection, update.pipeline).max_experiences_per_update
    if update.asked is not None:
        limit = len(update.asked)
    return backlog.to_learn(connection, update.pipeline, limit=limit, among=update.asked, excluding=others)


def roll_back(engine: sa.Engine, pipeline: str, *, version: int | None, by: By) -> ledger.Entry:
    """Make an older version champion again, and park what only newer ones had learnt.

    Raises:
        ChampionMissingError, VersionUnfitError, ChampionMovedError: as `champions.roll_back`.
    """
    with engine.begin() as connection:
        lock_pipeline(connection, pipeline)
        before = champions.current(connection, pipeline)
        entry = champions.roll_back(connection, pipeline, number=version, by=by)
        _lift_freeze(connection, entry)
        left = champions.version(connection, pipeline, before.version) if before else None
        back = champions.version(connection, pipeline, entry.version) if entry.version else None
        if left and back:
            note = f"learnt by version {left.version}, which {by.actor} rolled back"
            unlearnt = sorted(set(left.learnt) - set(back.learnt))
            backlog.mark(connection, pipeline, experiences=unlearnt, state="parked", note=note)
            regained = sorted(set(back.learnt))
            backlog.mark(
                connection, pipeline, experiences=regained, state="learnt", note=f"version {back.version}"
            )
        return entry


def _lift_freeze(connection: sa.Connection, rollback: ledger.Entry) -> None:
    """Lift a freeze after a rollback to the last audited version, or to one before it."""
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
            by=By(rollback.actor, f"rolled back to version {rollback.version}, whose audit stands"),
        )


def unfreeze(engine: sa.Engine, pipeline: str, *, by: By) -> ledger.Entry:
    """Allow promotion again after an audit that did not pass.

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
        return freezes.lift(connection, pipeline, freeze=freeze, champion=number, by=by)


def mark_holdout(
    engine: sa.Engine, pipeline: str, experience: int, *, marking: Marking, by: By
) -> ledger.Entry:
    """Retire a holdout (no longer judged on), pin it (always judged whole), keep it, or undo any of these.

    To keep it is to say that its labels are still true, so that its rejections are no question.

    Raises:
        HoldoutUnknownError: the champion learnt no such experience, so it has no past holdout.
        HoldoutConflictError: it is marked so already.
    """
    with engine.begin() as connection:
        before, version = _holdout(connection, pipeline, experience)
        after = replace(before, **_CHANGES[marking])
        if after == before:
            raise HoldoutConflictError(
                f"The holdout of experience {experience} cannot be {_MARKED[marking]}: it is so already.",
                fix="Read GET /v1/pipelines/{pipeline}/holdouts.",
            )
        if marking == "keep":
            verdict = jobs.verdict_before(connection, pipeline, base_version=version)
            after = replace(after, kept_through=version if verdict and is_shifted(verdict) else None)
        return _record_mark(connection, pipeline, experience, after, action=marking, by=by, version=version)


def set_holdout_margin(
    engine: sa.Engine, pipeline: str, experience: int, *, margin: float | None, by: By
) -> ledger.Entry:
    """Set the margin of a past holdout from now on, as a share; None: the pipeline's.

    Raises:
        HoldoutUnknownError: the champion learnt no such experience, so it has no past holdout.
        HoldoutConflictError: that is its margin already.
    """
    with engine.begin() as connection:
        before, version = _holdout(connection, pipeline, experience)
        if margin == before.margin:
            present = "the pipeline's" if margin is None else with_unit(margin, digits=2)
            raise HoldoutConflictError(
                f"The margin of the holdout of experience {experience} is {present} already.",
                fix="Read GET /v1/pipelines/{pipeline}/holdouts.",
            )
        after = replace(before, margin=margin)
        set_to = "the pipeline's margin" if margin is None else f"a margin of {with_unit(margin, digits=2)}"
        said = f", {set_to} from now on"
        return _record_mark(
            connection, pipeline, experience, after, action="margin", said=said, by=by, version=version
        )


def set_holdout_traffic(
    engine: sa.Engine, pipeline: str, experience: int, *, traffic: float | None, by: By
) -> ledger.Entry:
    """Say which share of today's traffic a past holdout stands for, from now on; None: it is unknown.

    Raises:
        HoldoutUnknownError: the champion learnt no such experience, so it has no past holdout.
        HoldoutConflictError: that is its share already.
    """
    with engine.begin() as connection:
        before, version = _holdout(connection, pipeline, experience)
        share = "an unknown share" if traffic is None else percent_of(traffic)
        if traffic == before.traffic:
            raise HoldoutConflictError(
                f"The holdout of experience {experience} stands for {share} of the traffic already.",
                fix="Read GET /v1/pipelines/{pipeline}/holdouts.",
            )
        after = replace(before, traffic=traffic)
        said = f", {share} of the traffic from now on"
        return _record_mark(
            connection, pipeline, experience, after, action="traffic", said=said, by=by, version=version
        )


def _holdout(connection: sa.Connection, pipeline: str, experience: int) -> tuple[holdouts.Mark, int]:
    """Lock the pipeline; returns the mark of a past holdout and the champion's version."""
    lock_pipeline(connection, pipeline)
    champion = champions.current(connection, pipeline)
    version = champions.version(connection, pipeline, champion.version) if champion else None
    if version is None or experience not in version.learnt:
        raise HoldoutUnknownError(
            f"Experience {experience} has no past holdout: no champion of {pipeline!r} learnt it.",
            fix="Choose one of GET /v1/pipelines/{pipeline}/holdouts.",
        )
    return holdouts.marks(connection, pipeline).get(experience, holdouts.UNMARKED), version.version


def _record_mark(
    connection: sa.Connection,
    pipeline: str,
    experience: int,
    mark: holdouts.Mark,
    *,
    action: ledger.Action,
    by: By,
    version: int,
    said: str = "",
) -> ledger.Entry:
    """Write the mark of a holdout with its entry in the ledger; `said` is what was set, in words."""
    holdouts.set_mark(connection, pipeline, experience=experience, mark=mark)
    recorded = replace(by, reason=f"holdout of experience {experience}{said}: {by.reason}")
    return ledger.append(
        connection, pipeline, action=action, by=recorded, version=version, previous_version=version
    )


_CHANGES: Mapping[Marking, Mapping[str, Any]] = {
    "retire": {"retired": True},
    "restore": {"retired": False},
    "pin": {"pinned": True},
    "unpin": {"pinned": False},
    "keep": {"kept": True},
    "unkeep": {"kept": False, "kept_through": None},
}
_MARKED = {
    "retire": "retired",
    "restore": "restored",
    "pin": "pinned",
    "unpin": "unpinned",
    "keep": "kept",
    "unkeep": "taken back",
}
