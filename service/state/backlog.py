"""What has become of each experience: waiting, learnt, carried to the next update, or parked for a person."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Literal

import sqlalchemy as sa

from service.gate.base import Screen
from service.state.database import backlog

State = Literal["waiting", "carried", "review", "learnt", "parked"]


def add(connection: sa.Connection, pipeline: str, experience: int) -> None:
    """A new experience waits to be learnt."""
    connection.execute(
        sa.insert(backlog).values(
            pipeline=pipeline, experience=experience, state="waiting", carries=0, note=""
        )
    )


def to_learn(
    connection: sa.Connection,
    pipeline: str,
    *,
    limit: int,
    among: Sequence[int] | None = None,
    beside: Collection[int] = (),
) -> list[int]:
    """What the next update learns, in order: what no update has tried comes before what was rejected.

    What stands `beside` is another update's.

    What was rejected is not tried again without something new beside it: the same data would be rejected
    again. Only where nothing waits, and an update is asked for all the same, it is alone.
    """
    chosen = [
        backlog.c.pipeline == pipeline,
        backlog.c.state.in_(["waiting", "carried"]),
        backlog.c.experience.not_in(beside),
    ]
    if among is not None:
        chosen.append(backlog.c.experience.in_(among))
    rows = connection.execute(
        sa.select(backlog.c.experience)
        .where(*chosen)
        .order_by(sa.case((backlog.c.state == "waiting", 0), else_=1), backlog.c.experience)
        .limit(limit)
    )
    return sorted(row.experience for row in rows)


def fresh(connection: sa.Connection, pipeline: str, *, beside: Collection[int] = ()) -> int:
    """How many experiences no update has tried yet; those `beside` are not counted."""
    count = connection.execute(
        sa.select(sa.func.count())
        .select_from(backlog)
        .where(
            backlog.c.pipeline == pipeline,
            backlog.c.state == "waiting",
            backlog.c.experience.not_in(beside),
        )
    ).scalar_one()
    return int(count)


def mark(
    connection: sa.Connection, pipeline: str, *, experiences: Sequence[int], state: State, note: str
) -> None:
    """Set the state of experiences; `note` says why, for a person."""
    connection.execute(
        sa.update(backlog)
        .where(backlog.c.pipeline == pipeline, backlog.c.experience.in_(experiences))
        .values(state=state, note=note)
    )


def park(connection: sa.Connection, pipeline: str, *, experiences: Sequence[int], note: str) -> None:
    """Leave experiences to a person. What the champion has learnt by now, after a rollback say, stays so."""
    connection.execute(
        sa.update(backlog).where(_unlearnt(pipeline, experiences)).values(state="parked", note=note)
    )


def _unlearnt(pipeline: str, experiences: Sequence[int]) -> sa.ColumnElement[bool]:
    return sa.and_(
        backlog.c.pipeline == pipeline, backlog.c.experience.in_(experiences), backlog.c.state != "learnt"
    )


def carry_or_park(
    connection: sa.Connection, pipeline: str, *, experiences: Sequence[int], max_carries: int, note: str
) -> None:
    """After a rejection: try again with the next update, a bounded number of times; then a person's."""
    exhausted = backlog.c.carries >= max_carries
    connection.execute(
        sa.update(backlog)
        .where(_unlearnt(pipeline, experiences))
        .values(
            state=sa.case((exhausted, "parked"), else_="carried"), carries=backlog.c.carries + 1, note=note
        )
    )


def states(connection: sa.Connection, pipeline: str) -> dict[int, tuple[State, str]]:
    """State and note of every experience."""
    rows = connection.execute(
        sa.select(backlog.c.experience, backlog.c.state, backlog.c.note)
        .where(backlog.c.pipeline == pipeline)
        .order_by(backlog.c.experience)
    )
    return {row.experience: (row.state, row.note) for row in rows}


def save_screen(connection: sa.Connection, pipeline: str, *, experience: int, screen: Screen) -> None:
    """Keep how an experience looked, as the reference for later ones."""
    connection.execute(
        sa.update(backlog)
        .where(backlog.c.pipeline == pipeline, backlog.c.experience == experience)
        .values(screen=asdict(screen))
    )


def screens(connection: sa.Connection, pipeline: str, experiences: Sequence[int]) -> dict[int, Screen]:
    """How these experiences looked, those whose look was kept; in their order, for who takes a mean."""
    rows = connection.execute(
        sa.select(backlog.c.experience, backlog.c.screen)
        .where(backlog.c.pipeline == pipeline, backlog.c.experience.in_(experiences))
        .order_by(backlog.c.experience)
    )
    return {
        row.experience: Screen(**{name: tuple(values) for name, values in row.screen.items()})
        for row in rows
        if row.screen
    }
