"""Counts of what the gate decided of each pipeline's latest updates, by the guard that decided."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from service.state.database import pipelines, updates

LATEST = 100
"""Updates of a pipeline that are counted: the latest ones that have a verdict."""
UNKNOWN = "unknown"
"""Cause of a verdict that does not say which finding decided."""


@dataclass(frozen=True)
class Outcomes:
    """What the gate decided of the latest updates of one pipeline, whatever a person decided afterwards."""

    promoted: int = 0
    asked: Mapping[str, int] = field(default_factory=dict)
    """Guard that decided -> updates that a person was asked about; the most frequent first."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Guard that decided -> updates that were rejected; the most frequent first."""
    nothing_to_learn: int = 0
    """Not among those counted above, as the next two: ended in the same time without a verdict."""
    failed: int = 0
    cancelled: int = 0

    @property
    def judged(self) -> int:
        """Updates with a verdict."""
        return self.promoted + sum(self.asked.values()) + sum(self.rejected.values())


def latest(connection: sa.Connection, names: Sequence[str], *, last: int = LATEST) -> dict[str, Outcomes]:
    """Outcomes of each pipeline's `last` updates with a verdict, or of all where there are fewer; one query.

    Updates without a verdict are counted apart, as far back as the oldest that is counted with one.
    """
    found: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in names}
    for row in connection.execute(_grouped(names, last)):
        found[row.name][row.kind, row.decided_by] += row.updates
    return {name: _outcomes(counts) for name, counts in found.items()}


def _outcomes(counts: Counter[tuple[str, str]]) -> Outcomes:
    def by_cause(kind: str) -> dict[str, int]:
        of_kind = [(count, cause) for (each, cause), count in counts.items() if each == kind]
        return {cause: count for count, cause in sorted(of_kind, key=lambda one: (-one[0], one[1]))}

    return Outcomes(
        promoted=counts["promote", ""],
        asked=by_cause("review"),
        rejected=by_cause("reject"),
        nothing_to_learn=counts["nothing", ""],
        failed=counts["failed", ""],
        cancelled=counts["cancelled", ""],
    )


def _grouped(names: Sequence[str], last: int) -> sa.Select[Any]:
    """Pipeline, kind, deciding guard, and updates; the kind is the outcome, or why there is none."""
    columns = updates.c
    judged = updates.alias("judged")
    # Only one update of a pipeline runs at a time, so the order of their ends is that of their verdicts.
    since = (
        sa.select(judged.c.finished_at)
        .where(judged.c.pipeline == pipelines.c.name, judged.c.outcome.is_not(None))
        .order_by(judged.c.finished_at.desc())
        .limit(1)
        .offset(last - 1)
        .scalar_subquery()
    )
    kind = sa.case(
        (columns.outcome.is_not(None), columns.outcome),
        (columns.state == "done", "nothing"),
        (columns.decision.is_not(None), "cancelled"),
        else_="failed",
    )
    guard = sa.func.coalesce(columns.cause, UNKNOWN)
    cause = sa.case((columns.outcome.in_(["review", "reject"]), guard), else_="")
    return (
        sa.select(
            pipelines.c.name,
            kind.label("kind"),
            cause.label("decided_by"),
            sa.func.count().label("updates"),
        )
        .where(
            pipelines.c.name.in_(names),
            columns.pipeline == pipelines.c.name,
            columns.finished_at >= sa.func.coalesce(since, 0.0),
        )
        # PostgreSQL would take a label that is also a column's name for the column.
        .group_by(pipelines.c.name, "kind", "decided_by")
    )
