"""The champion row, moved by compare-and-set, and the versions that it may point at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from service.errors import ChampionMissingError, ChampionMovedError, VersionUnfitError
from service.state import backlog, golden, ledger
from service.state.database import champions, now, versions
from service.state.ledger import GATE, By


@dataclass(frozen=True)
class Champion:
    """The version in use."""

    pipeline: str
    version: int
    revision: int
    """Rises with every move, also when an older version comes back: what compare-and-set compares."""
    since: float


@dataclass(frozen=True)
class Version:
    """A registered version, promoted or not."""

    pipeline: str
    version: int
    update_id: str
    parent: int | None
    """The champion it was made from."""
    learnt: Sequence[int]
    """Every experience that it and its ancestors learnt."""
    run_id: str
    created_at: float
    promoted_at: float | None
    """When it first became champion; None: never."""


def current(connection: sa.Connection, pipeline: str) -> Champion | None:
    """The champion; None before the first promotion."""
    row = connection.execute(sa.select(champions).where(champions.c.pipeline == pipeline)).first()
    return Champion(**row._mapping) if row else None


def version(connection: sa.Connection, pipeline: str, number: int) -> Version | None:
    """One registered version; None when there is none of that number."""
    row = connection.execute(
        sa.select(versions).where(versions.c.pipeline == pipeline, versions.c.version == number)
    ).first()
    return Version(**row._mapping) if row else None


def challenger(connection: sa.Connection, pipeline: str) -> int | None:
    """The newest version, if it was never champion; else None."""
    row = connection.execute(
        sa.select(versions.c.version, versions.c.promoted_at)
        .where(versions.c.pipeline == pipeline)
        .order_by(versions.c.version.desc())
        .limit(1)
    ).first()
    return row.version if row and row.promoted_at is None else None


def lineage(connection: sa.Connection, pipeline: str, number: int | None) -> list[Version]:
    """A version and its ancestors, oldest first, in one statement however many there are."""
    if number is None:
        return []
    own = versions.c.pipeline == pipeline
    first = sa.select(versions.c.version, versions.c.parent).where(own, versions.c.version == number)
    line = first.cte("line", recursive=True)
    parents = sa.select(versions.c.version, versions.c.parent).where(own, versions.c.version == line.c.parent)
    line = line.union(parents)
    rows = connection.execute(
        sa.select(versions).where(own, versions.c.version.in_(sa.select(line.c.version)))
    ).all()
    found = {row.version: Version(**row._mapping) for row in rows}
    chain: list[Version] = []
    while number is not None and number in found:
        chain.append(found.pop(number))
        number = chain[-1].parent
    return chain[::-1]


def add_version(
    connection: sa.Connection,
    pipeline: str,
    *,
    number: int,
    update_id: str,
    parent: int | None,
    learnt: Sequence[int],
    run_id: str,
) -> None:
    """Record a challenger's version."""
    connection.execute(
        sa.insert(versions).values(
            pipeline=pipeline,
            version=number,
            update_id=update_id,
            parent=parent,
            learnt=list(learnt),
            run_id=run_id,
            created_at=now(connection),
        )
    )


def require_unmoved(connection: sa.Connection, pipeline: str, *, expected_revision: int | None) -> None:
    """Check that the champion is still the one that a challenger was compared with.

    Raises:
        ChampionMovedError: the champion is another one.
    """
    champion = current(connection, pipeline)
    if (champion.revision if champion else None) != expected_revision:
        raise _moved(pipeline)


def promote(
    connection: sa.Connection,
    pipeline: str,
    *,
    number: int,
    expected_revision: int | None,
    experiences: Sequence[int],
    by: By,
) -> ledger.Entry:
    """Make a challenger the champion, mark what it learnt, and append to the ledger, in one transaction.

    Args:
        expected_revision: of the champion row that the challenger was compared with; None: there was none.
        experiences: what the challenger learnt that its champion had not.

    Raises:
        ChampionMovedError: the champion is not the one that the challenger was made from.
    """
    before = current(connection, pipeline)
    _move(connection, pipeline, number=number, expected_revision=expected_revision)
    note = f"version {number}" if by.actor == GATE else f"version {number}, approved by {by.actor}"
    backlog.mark(connection, pipeline, experiences=experiences, state="learnt", note=note)
    return ledger.append(
        connection,
        pipeline,
        action="promote",
        by=by,
        version=number,
        previous_version=before.version if before else None,
    )


def roll_back(connection: sa.Connection, pipeline: str, *, number: int | None, by: By) -> ledger.Entry:
    """Make an older version champion again; `number` None: the one that the present champion was made from.

    Raises:
        ChampionMissingError: there is no champion yet.
        VersionUnfitError: the version was never champion, or is the champion now.
    """
    before = current(connection, pipeline)
    if before is None:
        raise ChampionMissingError(
            f"Pipeline {pipeline!r} has no champion yet, so there is nothing to roll back.",
            fix="Wait for the first promotion.",
        )
    target = number if number is not None else _parent(connection, before)
    found = version(connection, pipeline, target)
    if found is None or found.promoted_at is None:
        raise VersionUnfitError(
            f"Version {target} of {pipeline!r} was never champion.",
            fix=f"Choose one that was: {_former(connection, before)}.",
            members={"version": target},
        )
    if target == before.version:
        raise VersionUnfitError(
            f"Version {target} is the champion now.",
            fix="Name an older version.",
            members={"version": target},
        )
    _move(connection, pipeline, number=target, expected_revision=before.revision)
    golden.roll_back_anchors(connection, pipeline, version=target)
    return ledger.append(
        connection,
        pipeline,
        action="rollback",
        by=replace(by, update_id=found.update_id),
        version=target,
        previous_version=before.version,
    )


def _parent(connection: sa.Connection, champion: Champion) -> int:
    found = version(connection, champion.pipeline, champion.version)
    if found is None or found.parent is None:
        raise VersionUnfitError(
            f"Version {champion.version} is the first champion of {champion.pipeline!r}.",
            fix="There is no older version to go back to.",
            members={"version": champion.version},
        )
    return found.parent


def _former(connection: sa.Connection, champion: Champion) -> str:
    rows = connection.execute(
        sa.select(versions.c.version)
        .where(
            versions.c.pipeline == champion.pipeline,
            versions.c.promoted_at.is_not(None),
            versions.c.version != champion.version,
        )
        .order_by(versions.c.version)
    )
    return ", ".join(str(row.version) for row in rows) or "none was, but the champion"


def _move(connection: sa.Connection, pipeline: str, *, number: int, expected_revision: int | None) -> None:
    moment = now(connection)
    if expected_revision is None:
        try:
            with connection.begin_nested():
                connection.execute(
                    sa.insert(champions).values(pipeline=pipeline, version=number, revision=1, since=moment)
                )
            moved = True
        except sa.exc.IntegrityError:
            moved = False
    else:
        result = connection.execute(
            sa.update(champions)
            .where(champions.c.pipeline == pipeline, champions.c.revision == expected_revision)
            .values(version=number, revision=expected_revision + 1, since=moment)
        )
        moved = result.rowcount == 1
    if not moved:
        raise _moved(pipeline)
    connection.execute(
        sa.update(versions)
        .where(
            versions.c.pipeline == pipeline, versions.c.version == number, versions.c.promoted_at.is_(None)
        )
        .values(promoted_at=moment)
    )


def _moved(pipeline: str) -> ChampionMovedError:
    return ChampionMovedError(
        f"The champion of {pipeline!r} is no longer the one that this update was compared with.",
        fix="Start a new update: it will be compared with the champion of today.",
    )
