"""The state of each experience: waiting, carried to the next update, in review, learnt, or parked."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Literal

import sqlalchemy as sa

from service.gate.base import Screen
from service.state.database import backlog

State = Literal["waiting", "carried", "review", "learnt", "parked"]


def add(connection: sa.Connection, pipeline: str, experience: int) -> None:
    """Add a new experience; it waits to be learnt."""
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
    excluding: Collection[int] = (),
) -> list[int]:
    """Experiences that the next update learns, in order; untried ones are chosen before rejected ones.

    A rejected experience goes with a new one, since alone it would be rejected again. Only where nothing
    new waits, and an update is requested all the same, is it learnt alone.

    Args:
        limit: how many at most.
        among: choose only from these.
        excluding: never choose these: they are another update's.
    """
    chosen = [
        backlog.c.pipeline == pipeline,
        backlog.c.state.in_(["waiting", "carried"]),
        backlog.c.experience.not_in(excluding),
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


def count_untried(connection: sa.Connection, pipeline: str, *, excluding: Collection[int] = ()) -> int:
    """How many experiences no update has tried yet, without those in `excluding`."""
    count = connection.execute(
        sa.select(sa.func.count())
        .select_from(backlog)
        .where(
            backlog.c.pipeline == pipeline,
            backlog.c.state == "waiting",
            backlog.c.experience.not_in(excluding),
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
    """Park experiences until a person asks for them; those the champion has learnt meanwhile stay learnt."""
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
    """Carry rejected experiences to the next update, at most `max_carries` times; then park them."""
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
    """Store the statistics of an experience, as a reference for later ones."""
    connection.execute(
        sa.update(backlog)
        .where(backlog.c.pipeline == pipeline, backlog.c.experience == experience)
        .values(screen=asdict(screen))
    )


def screens(connection: sa.Connection, pipeline: str, experiences: Sequence[int]) -> dict[int, Screen]:
    """Stored statistics of these experiences, in their order; those without any are left out."""
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
