"""Rows of holdouts: stored answers of versions, looks at each holdout, and the marks that people set.

Answers are a right/wrong bit a record, with details that some guards need; they are computed once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Literal

import msgspec
import numpy as np
import sqlalchemy as sa

from service.gate.base import Bits, Details
from service.state.database import answers, holdout_states, looks, now

Part = Literal["gate", "audit", "golden"]
"""Under `golden`, the number of a golden set stands where an experience's index does."""
FORM = 1
"""Version of the packed details. Details of another version read as none, and are computed again."""


@dataclass(frozen=True)
class Mark:
    """Settings of a person for a holdout."""

    retired: bool = False
    """Updates are no longer compared on it."""
    pinned: bool = False
    """It is always judged whole, however many come after it."""
    margin: float | None = None
    """Its own margin; None: the pipeline's."""
    kept: bool = False
    """A person said that its labels are still true: its rejections are no question."""
    kept_through: int | None = None
    """The champion's version against which batches were shifted already when it was kept; None: none was."""
    traffic: float | None = None
    """Share of today's traffic that its records stand for; None: nobody said."""


UNMARKED = Mark()
_MARKS = tuple(each.name for each in fields(Mark))
"""Columns of the marks, by their names."""


def save(
    connection: sa.Connection,
    pipeline: str,
    *,
    version: int,
    answered: Mapping[int, Bits],
    part: Part = "gate",
    details: Mapping[int, Details] | None = None,
) -> None:
    """Store a version's answers on holdouts, by experience index.

    What is stored already stays as it is; details are added to bits that were stored without.
    """
    details = details or {}
    known = of_version(connection, pipeline, version=version, part=part)
    rows = [
        {
            "pipeline": pipeline,
            "version": version,
            "experience": experience,
            "part": part,
            "records": len(bits),
            "bits": np.packbits(bits).tobytes(),
            "details": pack(details[experience]) if experience in details else None,
        }
        for experience, bits in answered.items()
        if experience not in known
    ]
    if rows:
        connection.execute(sa.insert(answers), rows)
    for experience in known.keys() & details.keys():
        if len(known[experience]) != len(details[experience].predicted):
            continue
        connection.execute(
            sa.update(answers)
            .where(
                answers.c.pipeline == pipeline,
                answers.c.version == version,
                answers.c.experience == experience,
                answers.c.part == part,
                answers.c.details.is_(None),
            )
            .values(details=pack(details[experience]))
        )


def of_version(
    connection: sa.Connection,
    pipeline: str,
    *,
    version: int,
    part: Part = "gate",
    only: Collection[int] | None = None,
) -> dict[int, Bits]:
    """A version's bits, by experience index; of `only` some experiences, where it is given."""
    query = (
        sa.select(answers.c.experience, answers.c.records, answers.c.bits)
        .where(answers.c.pipeline == pipeline, answers.c.version == version, answers.c.part == part)
        .order_by(answers.c.experience)
    )
    if only is not None:
        query = query.where(answers.c.experience.in_(only))
    rows = connection.execute(query)
    return {
        row.experience: np.unpackbits(np.frombuffer(row.bits, np.uint8), count=row.records).astype(bool)
        for row in rows
    }


def details_of_version(
    connection: sa.Connection, pipeline: str, *, version: int, part: Part = "gate"
) -> dict[int, Details]:
    """A version's details, by experience index; holdouts that were answered without are left out."""
    rows = connection.execute(
        sa.select(answers.c.experience, answers.c.details)
        .where(answers.c.pipeline == pipeline, answers.c.version == version, answers.c.part == part)
        .order_by(answers.c.experience)
    )
    found = {row.experience: unpack(row.details) for row in rows}
    return {experience: each for experience, each in found.items() if each is not None}


def accuracies(
    connection: sa.Connection, pipeline: str, versions: Sequence[int], *, part: Part = "gate"
) -> dict[int, dict[int, float]]:
    """version -> experience -> accuracy, for all that is stored and not empty."""
    return {
        version: {
            experience: float(bits.mean())
            for experience, bits in of_version(connection, pipeline, version=version, part=part).items()
            if len(bits)
        }
        for version in versions
    }


def count_looks(
    connection: sa.Connection, pipeline: str, *, part: Part = "gate", excluding: str = ""
) -> dict[int, int]:
    """Experience -> updates that were compared on its part, without the update `excluding`."""
    rows = connection.execute(
        sa.select(looks.c.experience, sa.func.count())
        .where(looks.c.pipeline == pipeline, looks.c.part == part, looks.c.update_id != excluding)
        .group_by(looks.c.experience)
    )
    return {row[0]: row[1] for row in rows}


@dataclass(frozen=True)
class Audits:
    """Audits of one experience's sealed part so far."""

    looks: int
    failures: int
    """Of these, the ones that did not pass."""
    runs: int
    """Runs of those, one right after the other."""


def count_audits(connection: sa.Connection, pipeline: str, *, excluding: str = "") -> dict[int, Audits]:
    """Experience -> its audits, without that of the update `excluding`."""
    rows = connection.execute(
        sa.select(looks.c.experience, looks.c.passed)
        .where(looks.c.pipeline == pipeline, looks.c.part == "audit", looks.c.update_id != excluding)
        .order_by(looks.c.experience, looks.c.at, looks.c.update_id)
    )
    found = {}
    for experience, group in groupby(rows, key=lambda row: row.experience):
        passed = [row.passed for row in group]
        runs = sum(1 for passes, _ in groupby(passed) if not passes)
        found[experience] = Audits(len(passed), passed.count(False), runs)
    return found


def note_looks(
    connection: sa.Connection,
    pipeline: str,
    *,
    update_id: str,
    experiences: Collection[int],
    part: Part = "gate",
    passed: bool,
) -> None:
    """Count a look of an update at these holdouts, once."""
    moment = now(connection)
    known = set(
        connection.execute(
            sa.select(looks.c.experience).where(
                looks.c.pipeline == pipeline, looks.c.update_id == update_id, looks.c.part == part
            )
        ).scalars()
    )
    rows = [
        {
            "pipeline": pipeline,
            "update_id": update_id,
            "experience": experience,
            "part": part,
            "passed": passed,
            "at": moment,
        }
        for experience in experiences
        if experience not in known
    ]
    if rows:
        connection.execute(sa.insert(looks), rows)


def audited(connection: sa.Connection, pipeline: str) -> set[str]:
    """The updates whose audit passed."""
    return set(
        connection.execute(
            sa.select(looks.c.update_id)
            .where(looks.c.pipeline == pipeline, looks.c.part == "audit", looks.c.passed)
            .distinct()
        ).scalars()
    )


def marks(connection: sa.Connection, pipeline: str) -> dict[int, Mark]:
    """Experience -> its mark, of those that have one."""
    columns = holdout_states.c
    rows = connection.execute(
        sa.select(columns.experience, *(columns[name] for name in _MARKS)).where(columns.pipeline == pipeline)
    )
    return {row.experience: Mark(**{name: getattr(row, name) for name in _MARKS}) for row in rows}


def set_mark(connection: sa.Connection, pipeline: str, *, experience: int, mark: Mark) -> None:
    """Write a holdout's mark, under the pipeline's lock."""
    where = sa.and_(holdout_states.c.pipeline == pipeline, holdout_states.c.experience == experience)
    values = asdict(mark)
    changed = connection.execute(sa.update(holdout_states).where(where).values(**values))
    if not changed.rowcount:
        connection.execute(
            sa.insert(holdout_states).values(pipeline=pipeline, experience=experience, **values)
        )


def end_keeping(connection: sa.Connection, pipeline: str, experiences: Collection[int]) -> None:
    """Take the mark of kept holdouts back: a person is asked about them again."""
    connection.execute(
        sa.update(holdout_states)
        .where(holdout_states.c.pipeline == pipeline, holdout_states.c.experience.in_(experiences))
        .values(kept=False, kept_through=None)
    )


def pack(said: Details) -> bytes:
    """Details as the bytes of a database column."""
    columns = {"predicted": said.predicted.astype("<i4").tobytes()}
    columns |= {name: getattr(said, name).astype("<f4").tobytes() for name in ("confidence", "brier")}
    if said.score is not None:
        columns["score"] = said.score.astype("<f4").tobytes()
    return msgspec.msgpack.encode({"form": FORM, **columns})


def unpack(packed: bytes | None) -> Details | None:
    """The details that `pack` packed; None: there are none, or they are of another `FORM`."""
    if packed is None:
        return None
    columns = msgspec.msgpack.decode(packed)
    if columns["form"] != FORM:
        return None
    return Details(
        predicted=np.frombuffer(columns["predicted"], "<i4"),
        confidence=np.frombuffer(columns["confidence"], "<f4"),
        brier=np.frombuffer(columns["brier"], "<f4"),
        score=np.frombuffer(columns["score"], "<f4") if "score" in columns else None,
    )
