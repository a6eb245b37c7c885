"""Stored answers of versions on holdouts: bits and what else is asked of each record, computed once."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import sqlalchemy as sa

from service.answering import pack, unpack
from service.database import answers
from service.gate.base import Bits, Details

Part = Literal["gate", "audit"]


def save(
    connection: sa.Connection,
    pipeline: str,
    *,
    version: int,
    answered: Mapping[int, Bits],
    part: Part = "gate",
    details: Mapping[int, Details] | None = None,
) -> None:
    """Keep a version's answers on holdouts, by experience index.

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
    connection: sa.Connection, pipeline: str, *, version: int, part: Part = "gate"
) -> dict[int, Bits]:
    """A version's bits, by experience index."""
    rows = connection.execute(
        sa.select(answers.c.experience, answers.c.records, answers.c.bits)
        .where(answers.c.pipeline == pipeline, answers.c.version == version, answers.c.part == part)
        .order_by(answers.c.experience)
    )
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
