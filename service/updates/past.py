"""What an update is judged on: stored answers on past holdouts, those of the anchors, and what was learnt."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from service.gate.base import Bits, Details, GateConfig
from service.gate.holdouts import archive
from service.gate.holdouts import records_judged as holdout_records
from service.state import holdouts
from service.state.champions import Version
from service.updates.inputs import Learnt, Parts


def past_answers(
    connection: sa.Connection, lineage: Sequence[Version], wanted: Mapping[int, int], *, details: bool
) -> tuple[dict[int, Bits], dict[int, Details]]:
    """The champion's stored answers on past holdouts, where they cover the wanted records.

    With `details`, also its stored details on each record.
    """
    if not lineage:
        return {}, {}
    pipeline, version = lineage[-1].pipeline, lineage[-1].version
    stored = holdouts.of_version(connection, pipeline, version=version)
    said = holdouts.details_of_version(connection, pipeline, version=version) if details else {}
    return (
        {
            index: stored[index][:records]
            for index, records in wanted.items()
            if index in stored and len(stored[index]) >= records
        },
        {
            index: said[index].first(records)
            for index, records in wanted.items()
            if index in said and len(said[index]) >= records
        },
    )


def records_judged(
    learnt: Sequence[int], marks: Mapping[int, holdouts.Mark], gate: GateConfig
) -> dict[int, int]:
    """Past holdout -> the number of its records that are judged; retired ones are left out."""
    active = [index for index in learnt if not marks.get(index, holdouts.UNMARKED).retired]
    pinned = {index for index in active if marks.get(index, holdouts.UNMARKED).pinned}
    return holdout_records(active, pinned, gate)


def learnt_by(
    lineage: Sequence[Version],
    parts: Mapping[int, Parts],
    marks: Mapping[int, holdouts.Mark],
    gate: GateConfig,
) -> tuple[Learnt, ...]:
    """What the champion learnt, in the order in which it came into the lineage."""
    active = [
        index
        for index in (lineage[-1].learnt if lineage else ())
        if not marks.get(index, holdouts.UNMARKED).retired
    ]
    pinned = {index for index in active if marks.get(index, holdouts.UNMARKED).pinned}
    archived = archive(active, pinned, gate)
    order = dict.fromkeys(index for version in lineage for index in sorted(version.learnt))
    return tuple(
        Learnt(
            index,
            min(parts[index].gate.rows, gate.holdout_records),
            min(parts[index].audit.rows, gate.holdout_records),
            index in archived,
        )
        for index in order
    )


def anchors_of(
    connection: sa.Connection,
    lineage: Sequence[Version],
    judged: Mapping[int, int],
    *,
    part: holdouts.Part = "audit",
) -> dict[int, tuple[Version, Bits]]:
    """For each holdout the first version that had learnt it, and its stored answers on its sealed part."""
    found: dict[int, tuple[Version, Bits]] = {}
    wanted = set(judged)
    for version in lineage:
        here = wanted & set(version.learnt)
        if here:
            stored = holdouts.of_version(
                connection, version.pipeline, version=version.version, part=part, only=here
            )
            found |= {index: (version, bits[: judged[index]]) for index, bits in stored.items()}
            wanted -= here
    return found
