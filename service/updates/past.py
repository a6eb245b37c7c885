"""What an update is judged on: stored answers on past holdouts, those of the anchors, and what was learnt."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from service.gate.base import Bits, Details, Finding, GateConfig, failed_on
from service.gate.holdouts import archive
from service.gate.holdouts import records_judged as holdout_records
from service.state import holdouts, jobs
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


@dataclass(frozen=True)
class Dispute:
    """What earlier verdicts and people said of the past holdouts that an update may be rejected by."""

    disputed: tuple[int, ...] = ()
    """Experiences of the retention findings that failed in the verdict before, against the same champion."""
    kept: tuple[int, ...] = ()
    """Holdouts whose labels a person said are still true."""
    kept_shifted: tuple[int, ...] = ()
    """Of these, the ones that were kept when batches were shifted already, against the same champion."""


def dispute_of(
    connection: sa.Connection,
    update: jobs.Update,
    marks: Mapping[int, holdouts.Mark],
    judged: Collection[int],
) -> Dispute:
    """The dispute that an update may go on with; empty where there is no champion."""
    base = update.base_version
    if base is None:
        return Dispute()
    verdict = jobs.verdict_before(connection, update.pipeline, base_version=base, excluding=update.id)
    kept = sorted(index for index in judged if marks.get(index, holdouts.UNMARKED).kept)
    return Dispute(
        disputed=failed_on(_findings(verdict)) if verdict else (),
        kept=tuple(kept),
        kept_shifted=tuple(index for index in kept if marks[index].kept_through == base),
    )


def _findings(verdict: Mapping[str, Any]) -> list[Finding]:
    """The findings of a stored verdict; an earlier release stored no members of blocks."""
    return [
        Finding(**{**each, "experiences": tuple(each.get("experiences", ()))}) for each in verdict["findings"]
    ]


def is_shifted(verdict: Mapping[str, Any]) -> bool:
    """Whether a stored verdict's batch was shifted; an earlier release did not store it as a number."""
    return any(each["about"] == "shift" and each["numbers"].get("shifted") for each in verdict["notes"])


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
