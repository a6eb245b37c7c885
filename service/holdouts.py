"""Stored answers of versions on holdouts: right/wrong bits, computed once and never again."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import sqlalchemy as sa

from service.database import answers
from service.gate.base import Bits

Part = Literal["gate", "audit"]


def save(
    connection: sa.Connection,
    pipeline: str,
    *,
    version: int,
    answered: Mapping[int, Bits],
    part: Part = "gate",
) -> None:
    """Keep a version's bits on holdouts, by experience index. Bits stored already stay as they are."""
    known = of_version(connection, pipeline, version=version, part=part)
    rows = [
        {
            "pipeline": pipeline,
            "version": version,
            "experience": experience,
            "part": part,
            "records": len(bits),
            "bits": np.packbits(bits).tobytes(),
        }
        for experience, bits in answered.items()
        if experience not in known
    ]
    if rows:
        connection.execute(sa.insert(answers), rows)


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
