"""Rows of golden sets: curated records that are a permanent holdout of a pipeline.

A set's number stands for it where an experience's index stands for a past holdout: in stored answers and in
looks, under the part `golden`.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from service.state.database import golden_sets, now, versions
from streams.state.experiences import Part


@dataclass(frozen=True)
class GoldenSet:
    """One golden set of a pipeline."""

    number: int
    """0, 1, 2 ... within the pipeline."""
    name: str
    part: Part
    """The file of its records."""
    margin: float | None
    """What an update may truly lose less than on it, a share; None: no right answer may be lost."""
    since_version: int | None
    """The champion when it was added; None: there was none yet."""
    anchor_version: int | None
    """Updates are compared with this version too; None: with the first that is promoted."""
    retired: bool
    """Updates are no longer compared on it; its records stay out of training."""
    added_at: float
    """Epoch seconds."""


def add(
    connection: sa.Connection,
    pipeline: str,
    *,
    name: str,
    part: Part,
    margin: float | None,
    champion: int | None,
) -> GoldenSet:
    """Insert a set under the next number, under the pipeline's lock."""
    last = sa.select(sa.func.max(golden_sets.c.number)).where(golden_sets.c.pipeline == pipeline)
    highest = connection.execute(last).scalar()
    found = GoldenSet(
        number=0 if highest is None else highest + 1,
        name=name,
        part=part,
        margin=margin,
        since_version=champion,
        anchor_version=champion,
        retired=False,
        added_at=now(connection),
    )
    connection.execute(
        sa.insert(golden_sets).values(
            pipeline=pipeline,
            number=found.number,
            name=name,
            digest=part.digest,
            records=part.rows,
            margin=margin,
            since_version=champion,
            anchor_version=champion,
            earlier_anchors=[],
            retired=False,
            added_at=found.added_at,
        )
    )
    return found


def of_pipeline(connection: sa.Connection, pipeline: str) -> list[GoldenSet]:
    """All sets, retired ones too, by number. A set that was added before there was a champion has the first
    version that was promoted as its anchor."""
    rows = connection.execute(
        sa.select(golden_sets).where(golden_sets.c.pipeline == pipeline).order_by(golden_sets.c.number)
    ).all()
    first = _first_promoted(connection, pipeline) if rows else None
    return [
        GoldenSet(
            number=row.number,
            name=row.name,
            part=Part(row.digest, row.records),
            margin=row.margin,
            since_version=row.since_version,
            anchor_version=first if row.anchor_version is None else row.anchor_version,
            retired=row.retired,
            added_at=row.added_at,
        )
        for row in rows
    ]


def _first_promoted(connection: sa.Connection, pipeline: str) -> int | None:
    query = (
        sa.select(versions.c.version)
        .where(versions.c.pipeline == pipeline, versions.c.promoted_at.is_not(None))
        .order_by(versions.c.promoted_at, versions.c.version)
        .limit(1)
    )
    return connection.execute(query).scalar()


def named(connection: sa.Connection, pipeline: str, name: str) -> GoldenSet | None:
    """The set of a name; None: there is none."""
    return next((each for each in of_pipeline(connection, pipeline) if each.name == name), None)


def set_retired(connection: sa.Connection, pipeline: str, number: int, *, retired: bool) -> None:
    """Retire a set, or restore it, under the pipeline's lock."""
    _write(connection, pipeline, [number], retired=retired)


def set_margin(connection: sa.Connection, pipeline: str, number: int, *, margin: float | None) -> None:
    """Set a margin, or None for no lost answer, under the pipeline's lock."""
    _write(connection, pipeline, [number], margin=margin)


def set_anchor(connection: sa.Connection, pipeline: str, numbers: Sequence[int], *, version: int) -> None:
    """Make a version the anchor of these sets, under the pipeline's lock."""
    for row in _anchors(connection, pipeline):
        if row.number in numbers:
            earlier = [*row.earlier_anchors, row.anchor_version]
            _write(connection, pipeline, [row.number], anchor_version=version, earlier_anchors=earlier)


def roll_back_anchors(connection: sa.Connection, pipeline: str, *, version: int) -> None:
    """Give each set the anchor back that it had when this version was champion, under the pipeline's lock.

    What a later version was allowed to lose is no longer lost once it is rolled back.
    """
    for row in _anchors(connection, pipeline):
        anchor, earlier = row.anchor_version, list(row.earlier_anchors)
        while earlier and anchor is not None and anchor > version:
            anchor = earlier.pop()
        if anchor != row.anchor_version:
            _write(connection, pipeline, [row.number], anchor_version=anchor, earlier_anchors=earlier)


def _anchors(connection: sa.Connection, pipeline: str) -> Sequence[Any]:
    columns = (golden_sets.c.number, golden_sets.c.anchor_version, golden_sets.c.earlier_anchors)
    return connection.execute(sa.select(*columns).where(golden_sets.c.pipeline == pipeline)).all()


def _write(connection: sa.Connection, pipeline: str, numbers: Sequence[int], **values: Any) -> None:
    chosen = (golden_sets.c.pipeline == pipeline, golden_sets.c.number.in_(numbers))
    connection.execute(sa.update(golden_sets).where(*chosen).values(**values))


def digests(connection: sa.Connection) -> Set[str]:
    """Digests of the sets of all pipelines, retired ones too, which the garbage collector must keep."""
    return set(connection.execute(sa.select(golden_sets.c.digest)).scalars())
