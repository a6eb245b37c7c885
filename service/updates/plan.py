"""The plan of an update: experiences to learn, the champion to start from, holdouts to judge by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from service.gate.base import Bits, Details, Freeze, GateConfig, Screen
from service.pipelines import PipelineSpec
from service.state import backlog, champions, freezes, holdouts, jobs
from service.state.champions import Version
from service.state.jobs import Update
from service.state.pipelines import load_spec
from streams.state.manifest import ExperienceRow, Manifest
from streams.state.tables import reading


@dataclass(frozen=True)
class Plan:
    """Fixed at the update's first attempt, and the same at every later one."""

    update: Update
    spec: PipelineSpec
    champion: Version | None
    lineage: tuple[Version, ...]
    """The champion's ancestors, oldest first, and itself."""
    experiences: tuple[int, ...]
    """What to learn; empty: there is nothing."""
    rows: Mapping[int, ExperienceRow]
    """Of the experiences to learn and of those that the champion learnt."""
    past: Mapping[int, Bits]
    """The champion's stored answers on the past holdouts that are judged."""
    past_details: Mapping[int, Details]
    """Its stored details on each of their records, where a guard needs them."""
    judged: Mapping[int, int]
    """Past holdout -> most of its records that are judged; retired holdouts are left out."""
    margins: Mapping[int, float]
    """Holdout -> its own margin, where a person set one."""
    anchors: Mapping[int, Bits]
    """For each of them, the stored answers of its anchor on the sealed part."""
    looks: Mapping[int, int]
    """Holdout -> earlier updates that were compared on it."""
    audits: Mapping[int, int]
    """The same of the sealed parts."""
    attempt: int
    """1 + earlier tries of one of these experiences against the same champion."""
    last_audited: int | None
    """The newest version of the lineage whose audit passed."""
    freeze: Freeze | None
    references: tuple[Screen, ...]
    """Statistics of the experiences that the champion learnt."""
    classes: tuple[str, ...]
    """Every class of the stream, by id: those declared, and in an open set those that came since."""

    @property
    def learnt_before(self) -> tuple[int, ...]:
        """What the champion learnt."""
        return tuple(self.champion.learnt) if self.champion else ()

    @property
    def learnt_after(self) -> tuple[int, ...]:
        """What the challenger will have learnt."""
        return tuple(sorted({*self.learnt_before, *self.experiences}))

    @property
    def base_version(self) -> int | None:
        """The champion's version."""
        return self.champion.version if self.champion else None

    @property
    def unanswered(self) -> tuple[int, ...]:
        """Past holdouts on which the champion must predict again: stored answers lack what the gate needs."""
        known = set(self.past)
        if self.spec.gate.needs_details:
            known &= set(self.past_details)
        return tuple(index for index in self.judged if index not in known)


def make_plan(engine: sa.Engine, update: Update) -> Plan:
    """The plan of a claimed update; at its first attempt, recorded with it.

    Raises:
        LostLeaseError: the update is no longer this attempt's.
    """
    spec, update = _fixed(engine, update)
    pipeline = update.pipeline
    manifest = Manifest(engine)
    rows = {row.index: row for row in manifest.experiences(pipeline)}
    with reading(engine) as connection:
        lineage = champions.lineage(connection, pipeline, update.base_version)
        champion = lineage[-1] if lineage else None
        learnt = tuple(champion.learnt) if champion else ()
        marks = holdouts.marks(connection, pipeline)
        judged = records_judged(learnt, marks, spec.gate)
        past, past_details = _stored_answers(connection, champion, judged, rows, gate=spec.gate)
        passed = holdouts.audited(connection, pipeline)
        looks, audits = (
            holdouts.count_looks(connection, pipeline, part=part, excluding=update.id)
            for part in ("gate", "audit")
        )
        return Plan(
            update=update,
            spec=spec,
            champion=champion,
            lineage=tuple(lineage),
            experiences=tuple(update.experiences),
            rows={index: rows[index] for index in (*update.experiences, *learnt)},
            past=past,
            past_details=past_details,
            judged=judged,
            margins={index: mark.margin for index, mark in marks.items() if mark.margin is not None},
            anchors=_anchors(connection, lineage, judged),
            looks=looks,
            audits=audits,
            attempt=1 + jobs.earlier_tries(connection, update),
            last_audited=max((each.version for each in lineage if each.update_id in passed), default=None),
            freeze=freezes.current(connection, pipeline),
            references=tuple(backlog.screens(connection, pipeline, learnt)),
            classes=tuple(manifest.classes(pipeline)) or spec.record_schema.classes,
        )


def _stored_answers(
    connection: sa.Connection,
    champion: Version | None,
    judged: Mapping[int, int],
    rows: Mapping[int, ExperienceRow],
    *,
    gate: GateConfig,
) -> tuple[dict[int, Bits], dict[int, Details]]:
    """The champion's stored answers on each judged holdout, where they cover its judged records."""
    if champion is None:
        return {}, {}
    of, version = champion.pipeline, champion.version
    bits = holdouts.of_version(connection, of, version=version)
    details = holdouts.details_of_version(connection, of, version=version) if gate.needs_details else {}
    needed = {index: min(records, rows[index].gate.rows) for index, records in judged.items()}
    return (
        {
            index: bits[index][: judged[index]]
            for index in needed
            if index in bits and len(bits[index]) >= needed[index]
        },
        {
            index: details[index].first(judged[index])
            for index in needed
            if index in details and len(details[index]) >= needed[index]
        },
    )


def records_judged(
    learnt: Sequence[int], marks: Mapping[int, holdouts.Mark], gate: GateConfig
) -> dict[int, int]:
    """Past holdout -> the number of its records that are judged, so that the gate's cost stays bounded.

    The newest and the pinned ones are judged whole, up to a limit each. The others share an archive of
    bounded size evenly; where it has fewer records than there are holdouts, evenly spaced ones get one each.
    """
    active = [index for index in learnt if not marks.get(index, holdouts.UNMARKED).retired]
    pinned = {index for index in active if marks.get(index, holdouts.UNMARKED).pinned}
    loose = [index for index in sorted(active) if index not in pinned]
    whole = max(0, gate.max_holdouts - len(pinned))
    archived = loose[: len(loose) - whole] if whole < len(loose) else []
    share = max(1, min(gate.holdout_records, gate.archive_records // max(1, len(archived))))
    kept = archived
    if len(archived) > gate.archive_records:
        kept = [
            archived[index * len(archived) // gate.archive_records] for index in range(gate.archive_records)
        ]
    dropped = set(archived) - set(kept)
    return {
        index: share if index in set(kept) else gate.holdout_records
        for index in sorted(active)
        if index not in dropped
    }


def _anchors(
    connection: sa.Connection, lineage: Sequence[Version], judged: Mapping[int, int]
) -> dict[int, Bits]:
    """For each holdout the stored answers, on the sealed part, of the first version that had learnt it."""
    found: dict[int, Bits] = {}
    wanted = set(judged)
    for version in lineage:
        here = wanted & set(version.learnt)
        if here:
            stored = holdouts.of_version(
                connection, version.pipeline, version=version.version, part="audit", only=here
            )
            found |= {index: bits[: judged[index]] for index, bits in stored.items()}
            wanted -= here
    return found


def _fixed(engine: sa.Engine, update: Update) -> tuple[PipelineSpec, Update]:
    """The pipeline, and the update with what it learns and from which champion: the same at every attempt."""
    with reading(engine) as connection:
        spec = load_spec(connection, update.pipeline)
    if update.experiences:
        return spec, update
    with engine.begin() as connection:
        return spec, _fix(connection, update, limit=spec.max_experiences_per_update)


def _fix(connection: sa.Connection, update: Update, *, limit: int) -> Update:
    """Record what this update learns and from which champion, so that every attempt does the same."""
    champion = champions.current(connection, update.pipeline)
    if update.asked is not None:
        limit = len(update.asked)
    experiences = backlog.to_learn(connection, update.pipeline, limit=limit, among=update.asked)
    jobs.write(
        connection,
        update,
        {
            "experiences": experiences,
            "base_version": champion.version if champion else None,
            "base_revision": champion.revision if champion else None,
        },
    )
    return jobs.get(connection, update.id)
