"""What people decide on golden sets: retire and restore, another margin, and losses that they approve."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa

from service.errors import HoldoutConflictError, HoldoutUnknownError
from service.gate.sentences import with_unit
from service.state import champions, golden, ledger
from service.state.database import lock_pipeline
from service.state.golden import GoldenSet
from service.state.ledger import By

GoldenMarking = Literal["retire", "restore"]
_MARKED = {"retire": "retired", "restore": "restored"}


def mark(engine: sa.Engine, pipeline: str, name: str, *, marking: GoldenMarking, by: By) -> ledger.Entry:
    """Retire a golden set (no longer judged on), or restore it. Its records stay out of training.

    Raises:
        HoldoutUnknownError: there is no such set.
        HoldoutConflictError: it is marked so already.
    """
    with engine.begin() as connection:
        found = _found(connection, pipeline, name)
        retired = marking == "retire"
        if found.retired == retired:
            raise HoldoutConflictError(
                f"Golden set {name} cannot be {_MARKED[marking]}: it is so already.",
                fix="Read GET /v1/pipelines/{pipeline}/holdouts.",
            )
        golden.set_retired(connection, pipeline, found.number, retired=retired)
        return _entry(connection, pipeline, action=marking, reason=f"golden set {name}: {by.reason}", by=by)


def set_margin(engine: sa.Engine, pipeline: str, name: str, *, margin: float | None, by: By) -> ledger.Entry:
    """Set what an update may truly lose less than on a set, a share; None: no right answer may be lost.

    Raises:
        HoldoutUnknownError: there is no such set.
        HoldoutConflictError: that is its margin already.
    """
    with engine.begin() as connection:
        found = _found(connection, pipeline, name)
        held = (
            "no right answer may be lost" if margin is None else f"a margin of {with_unit(margin, digits=2)}"
        )
        if found.margin == margin:
            raise HoldoutConflictError(
                f"Golden set {name} is held to that already: {held}.",
                fix="Read GET /v1/pipelines/{pipeline}/holdouts.",
            )
        golden.set_margin(connection, pipeline, found.number, margin=margin)
        reason = f"golden set {name}, {held} from now on: {by.reason}"
        return _entry(connection, pipeline, action="margin", reason=reason, by=by)


def approve_losses(
    connection: sa.Connection, pipeline: str, verdict: Mapping[str, Any] | None, *, version: int
) -> Sequence[str]:
    """Make an approved version the anchor of the golden sets whose loss since their anchor was asked about.

    Who approves has read that finding. What the version answers is from then on what must not be lost. Where
    the loss could not be measured (answers are missing, or the set is exhausted), the anchor stays.

    Returns:
        The names of these sets.
    """
    numbers = {
        int(finding["numbers"]["golden"])
        for finding in (verdict or {}).get("findings", ())
        if finding["guard"] == "golden_anchor"
        and finding["answer"] != "pass"
        and "lost" in finding["numbers"]
    }
    if not numbers:
        return ()
    golden.set_anchor(connection, pipeline, sorted(numbers), version=version)
    return [each.name for each in golden.of_pipeline(connection, pipeline) if each.number in numbers]


def _found(connection: sa.Connection, pipeline: str, name: str) -> GoldenSet:
    lock_pipeline(connection, pipeline)
    found = golden.named(connection, pipeline, name)
    if found is None:
        raise HoldoutUnknownError(
            f"{pipeline!r} has no golden set {name[:100]!r}.",
            fix="Choose one of GET /v1/pipelines/{pipeline}/holdouts.",
        )
    return found


def _entry(
    connection: sa.Connection, pipeline: str, *, action: ledger.Action, reason: str, by: By
) -> ledger.Entry:
    champion = champions.current(connection, pipeline)
    version = champion.version if champion else None
    return ledger.append(
        connection,
        pipeline,
        action=action,
        by=By(by.actor, reason),
        version=version,
        previous_version=version,
    )
