"""What one update is about: which experiences, from which champion, against which holdouts."""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from service import backlog, champions, holdouts, jobs
from service.champions import Version
from service.gate.base import Bits, Details, Screen
from service.jobs import Update
from service.pipelines import PipelineSpec
from service.specs import load_spec
from streams.manifest import ExperienceRow, Manifest


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
    """The champion's stored answers on past holdouts."""
    past_details: Mapping[int, Details]
    """What it said of each record, where a guard asks for it and it is stored."""
    references: tuple[Screen, ...]
    """How the experiences that the champion learnt looked."""
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
        """Past holdouts on which the champion's stored answers do not say what the gate asks."""
        known = set(self.past)
        if self.spec.gate.needs_details:
            known &= set(self.past_details)
        return tuple(index for index in self.learnt_before if index not in known)


def make_plan(engine: sa.Engine, update: Update) -> Plan:
    """The plan of a claimed update; at its first attempt, recorded with it.

    Raises:
        LostLeaseError: the update is no longer this attempt's.
    """
    pipeline = update.pipeline
    with engine.begin() as connection:
        spec = load_spec(connection, pipeline)
        if not update.experiences:
            update = _fix(connection, update, limit=spec.max_experiences_per_update)
        lineage = champions.lineage(connection, pipeline, update.base_version)
        champion = lineage[-1] if lineage else None
        learnt = tuple(champion.learnt) if champion else ()
        stored = holdouts.of_version(connection, pipeline, version=champion.version) if champion else {}
        details = (
            holdouts.details_of_version(connection, pipeline, version=champion.version)
            if champion and spec.gate.needs_details
            else {}
        )
        references = backlog.screens(connection, pipeline, learnt)
    experiences = tuple(update.experiences)
    manifest = Manifest(engine)
    rows = {row.index: row for row in manifest.experiences(pipeline)}
    return Plan(
        update=update,
        spec=spec,
        champion=champion,
        lineage=tuple(lineage),
        experiences=experiences,
        rows={index: rows[index] for index in (*experiences, *learnt)},
        past={index: bits for index, bits in stored.items() if index in learnt},
        past_details={index: said for index, said in details.items() if index in learnt},
        references=tuple(references),
        classes=tuple(manifest.classes(pipeline)) or spec.record_schema.classes,
    )


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
