"""The plan of an update: experiences to learn, the champion to start from, holdouts to judge by."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import sqlalchemy as sa

from service.errors import InputsUnfitError
from service.gate.base import Bits, Details, Freeze, Screen
from service.state import backlog, champions, freezes, holdouts, jobs
from service.state import inputs as stored_inputs
from service.state.champions import Version
from service.state.holdouts import Audits, Part
from service.state.inputs import Name, StoredDocument
from service.state.jobs import Update
from service.state.pipelines import load_spec
from service.updates import golden_plan
from service.updates.golden_plan import PlannedGolden
from service.updates.inputs import (
    Anchor,
    Base,
    Configuration,
    Kept,
    Learnt,
    Parts,
    PlanDocument,
    decode,
    encode,
    inputs_digest,
    kept_bits,
    kept_details,
    screens_digest,
)
from service.updates.past import Dispute, anchors_of, dispute_of, learnt_by, past_answers, records_judged
from streams.state.manifest import Manifest
from streams.state.tables import reading


@dataclass(frozen=True)
class Plan:
    """What an update learns and is judged on; stored at its first attempt, so the same at every later one."""

    update: Update
    spec: Configuration
    """The pipeline's spec at the first attempt."""
    champion: Version | None
    lineage: tuple[Version, ...]
    """The champion's ancestors, oldest first, and itself."""
    experiences: tuple[int, ...]
    """Experiences to learn; empty: there is nothing."""
    rows: Mapping[int, Parts]
    """Parts of the experiences to learn and of the past holdouts that are judged."""
    past: Mapping[int, Bits]
    """The champion's stored answers on the past holdouts that are judged."""
    past_details: Mapping[int, Details]
    """Its stored details on each of their records, where a guard needs them."""
    judged: Mapping[int, int]
    """Past holdout -> most of its records that are judged; retired holdouts are left out."""
    margins: Mapping[int, float]
    """Holdout -> its own margin, where a person set one."""
    traffic: Mapping[int, float]
    """Holdout -> share of the traffic that it stands for, where a person said so."""
    anchors: Mapping[int, Bits]
    """Judged holdout -> stored answers of its anchor on the sealed part."""
    anchored_by: Mapping[int, str]
    """Judged holdout -> id of the update that made its anchor."""
    gate_anchors: Mapping[int, Bits]
    """Judged holdout -> stored answers of its anchor on the gate part."""
    looks: Mapping[int, int]
    """Holdout -> earlier updates that were compared on it."""
    audits: Mapping[int, Audits]
    """Holdout -> earlier updates that were compared on its sealed part."""
    golden: tuple[PlannedGolden, ...]
    """Golden sets, by number; retired ones are left out."""
    learnt: tuple[Learnt, ...]
    """Experiences that the champion learnt, retired ones too, in the order of the lineage."""
    attempt: int
    """1 + earlier tries of one of these experiences against the same champion."""
    last_audited: int | None
    """The newest version of the lineage whose audit passed."""
    freeze: Freeze | None
    references: Mapping[int, Screen]
    """Screens of the experiences that the champion learnt."""
    dispute: Dispute
    inputs: str
    """Digest of what is stored with the update; empty where there is nothing to learn."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class of the stream, by id: those declared, and in an open set those that came since."""
        return self.spec.classes

    @property
    def learnt_before(self) -> tuple[int, ...]:
        """Experiences that the champion learnt."""
        return tuple(self.champion.learnt) if self.champion else ()

    @property
    def learnt_after(self) -> tuple[int, ...]:
        """Experiences that the challenger will have learnt."""
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
    """The plan of a claimed update: made and stored at its first attempt, read again at later ones.

    What people or other updates change in between (marks, margins, looks, classes, a freeze) changes nothing:
    the first attempt's result may be there already, and was made for what was stored.

    Raises:
        LostLeaseError: the update is no longer this attempt's.
        InputsUnfitError: what was stored, or the champion or the screens, was damaged or changed.
    """
    with reading(engine) as connection:
        stored = stored_inputs.read(connection, update.id)
        if stored:
            plan = stored_plan(connection, update, stored)
            _require_screens(connection, plan, decode(stored["plan"], PlanDocument))
            return plan
    with engine.begin() as connection:
        plan = _new_plan(connection, Manifest(engine), update)
        if not plan.experiences:
            return plan
        texts: dict[Name, str] = {
            "configuration": encode(plan.spec),
            "plan": encode(_document(plan)),
        }
        stored_inputs.save(connection, update.id, texts)
        return replace(plan, inputs=inputs_digest(stored_inputs.read(connection, update.id)))


def _new_plan(connection: sa.Connection, manifest: Manifest, update: Update) -> Plan:
    pipeline = update.pipeline
    spec = load_spec(connection, pipeline)
    update = _fix(connection, update, limit=spec.max_experiences_per_update)
    lineage = champions.lineage(connection, pipeline, update.base_version)
    learnt = tuple(lineage[-1].learnt) if lineage else ()
    marks = holdouts.marks(connection, pipeline)
    judged = records_judged(learnt, marks, spec.gate)
    experiences = tuple(update.experiences)
    parts = {row.index: Parts.of(row) for row in manifest.experiences_in(connection, pipeline)}
    past, past_details = past_answers(
        connection,
        lineage,
        {index: min(records, parts[index].gate.rows) for index, records in judged.items()},
        details=spec.gate.needs_details,
    )
    passed = holdouts.audited(connection, pipeline)
    anchors = anchors_of(connection, lineage, judged)
    gate_anchors = anchors_of(connection, lineage, judged, part="gate")
    classes = tuple(manifest.classes(pipeline)) or spec.record_schema.classes
    return Plan(
        update=update,
        spec=Configuration.of(spec, classes),
        champion=lineage[-1] if lineage else None,
        lineage=tuple(lineage),
        experiences=experiences,
        rows={index: parts[index] for index in (*experiences, *judged)},
        past=past,
        past_details=past_details,
        judged=judged,
        margins={index: mark.margin for index, mark in marks.items() if mark.margin is not None},
        traffic={index: mark.traffic for index, mark in marks.items() if mark.traffic is not None},
        anchors={index: bits for index, (_, bits) in anchors.items()},
        anchored_by={index: by.update_id for index, (by, _) in anchors.items()},
        gate_anchors={index: bits for index, (_, bits) in gate_anchors.items()},
        looks=holdouts.count_looks(connection, pipeline, excluding=update.id),
        audits=holdouts.count_audits(connection, pipeline, excluding=update.id),
        golden=golden_plan.planned(
            connection, pipeline, lineage[-1] if lineage else None, excluding=update.id
        ),
        learnt=learnt_by(lineage, parts, marks, spec.gate),
        attempt=1 + jobs.earlier_tries(connection, update),
        last_audited=max((each.version for each in lineage if each.update_id in passed), default=None),
        freeze=freezes.current(connection, pipeline),
        references=backlog.screens(connection, pipeline, learnt),
        dispute=dispute_of(connection, update, marks, judged),
        inputs="",
    )


def _document(plan: Plan) -> PlanDocument:
    """The document of a plan: answers and screens by digest, the rest in full."""
    champion = plan.champion
    seen = {*plan.judged, *plan.experiences}
    return PlanDocument(
        experiences=plan.experiences,
        base=Base(champion.version, plan.update.base_revision, champion.update_id) if champion else None,
        parts=dict(plan.rows),
        judged=tuple(plan.judged.items()),
        margins=_of(plan.margins, plan.judged),
        past={index: kept_bits(bits) for index, bits in plan.past.items()},
        past_details={index: kept_details(each) for index, each in plan.past_details.items()},
        anchors={
            index: Anchor(
                plan.anchored_by[index],
                kept_bits(bits),
                kept_bits(plan.gate_anchors[index]) if index in plan.gate_anchors else None,
            )
            for index, bits in plan.anchors.items()
        },
        looks=_of(plan.looks, seen),
        audits={index: each.looks for index, each in _of(plan.audits, plan.judged).items()},
        failed_audits={
            index: (each.failures, each.runs)
            for index, each in _of(plan.audits, plan.judged).items()
            if each.failures
        },
        golden=golden_plan.documents(plan.golden),
        learnt=plan.learnt,
        attempt=plan.attempt,
        last_audited=plan.last_audited,
        freeze=plan.freeze,
        references=tuple(plan.references),
        references_digest=screens_digest(plan.references),
        disputed=plan.dispute.disputed,
        kept=plan.dispute.kept,
        kept_shifted=plan.dispute.kept_shifted,
        traffic=_of(plan.traffic, plan.judged),
    )


_Value = TypeVar("_Value")


def _of(values: Mapping[int, _Value], wanted: Collection[int]) -> dict[int, _Value]:
    return {index: value for index, value in values.items() if index in wanted}


def stored_plan(connection: sa.Connection, update: Update, stored: Mapping[Name, StoredDocument]) -> Plan:
    """The plan that was stored with an update; stored answers whose digest has changed are left out.

    Raises:
        InputsUnfitError: it is damaged, or of another release.
    """
    spec = decode(stored["configuration"], Configuration)
    document = decode(stored["plan"], PlanDocument)
    pipeline, base, judged = update.pipeline, document.base, dict(document.judged)
    # The attempt stays the caller's: it is the fencing token.
    update = replace(
        update,
        experiences=document.experiences,
        base_version=base.version if base else None,
        base_revision=base.revision if base else None,
    )
    lineage = _stored_lineage(connection, update, base)
    wanted = {index: kept.records for index, kept in document.past.items()}
    past, details = past_answers(connection, lineage, wanted, details=bool(document.past_details))
    return Plan(
        update=update,
        spec=spec,
        champion=lineage[-1] if lineage else None,
        lineage=tuple(lineage),
        experiences=document.experiences,
        rows=document.parts,
        past=_unchanged(past, document.past),
        past_details={
            index: each
            for index, each in details.items()
            if kept_details(each) == document.past_details.get(index)
        },
        judged=judged,
        margins=document.margins,
        traffic=document.traffic,
        anchors=_stored_anchors(connection, lineage, document, part="audit"),
        anchored_by={index: anchor.update_id for index, anchor in document.anchors.items()},
        gate_anchors=_stored_anchors(connection, lineage, document, part="gate"),
        looks=document.looks,
        audits=_audits(document),
        golden=golden_plan.stored(connection, pipeline, lineage[-1] if lineage else None, document.golden),
        learnt=document.learnt,
        attempt=document.attempt,
        last_audited=document.last_audited,
        freeze=document.freeze,
        references=backlog.screens(connection, pipeline, document.references),
        dispute=Dispute(document.disputed, document.kept, document.kept_shifted),
        inputs=inputs_digest(stored),
    )


def _unchanged(found: Mapping[int, Bits], kept: Mapping[int, Kept | None]) -> dict[int, Bits]:
    """The stored answers that are still those of the document."""
    return {index: bits for index, bits in found.items() if kept_bits(bits) == kept.get(index)}


def _stored_anchors(
    connection: sa.Connection, lineage: Sequence[Version], document: PlanDocument, *, part: Part
) -> dict[int, Bits]:
    found = anchors_of(connection, lineage, dict(document.judged), part=part)
    kept = {
        index: anchor.answers if part == "audit" else anchor.gate
        for index, anchor in document.anchors.items()
    }
    return _unchanged({index: bits for index, (_, bits) in found.items()}, kept)


def _audits(document: PlanDocument) -> dict[int, Audits]:
    failed = document.failed_audits
    return {index: Audits(looks, *failed.get(index, (0, 0))) for index, looks in document.audits.items()}


def _stored_lineage(connection: sa.Connection, update: Update, base: Base | None) -> list[Version]:
    """The lineage of the champion that the stored plan names.

    Raises:
        InputsUnfitError: the version is recorded no more, or as another update's.
    """
    if base is None:
        return []
    lineage = champions.lineage(connection, update.pipeline, base.version)
    recorded = lineage[-1].update_id if lineage else None
    if recorded == base.update_id:
        return lineage
    found = f"is recorded for update {recorded}" if recorded else "is not recorded any more"
    raise InputsUnfitError(
        f"Update {update.id} starts from version {base.version} of {update.pipeline!r}, made by update "
        f"{base.update_id}; that version {found}.",
        fix="The table versions was changed: restore the database from a backup.",
    )


def _require_screens(connection: sa.Connection, plan: Plan, document: PlanDocument) -> None:
    """Refuse other screens than those of the first attempt: the data guard would judge by them.

    Raises:
        ChampionMovedError: another champion may have learnt their experiences anew; the update starts over.
        InputsUnfitError: they were changed.
    """
    if screens_digest(plan.references) != document.references_digest:
        champions.require_unmoved(
            connection, plan.update.pipeline, expected_revision=plan.update.base_revision
        )
        raise InputsUnfitError(
            f"The screens that update {plan.update.id} is compared with changed after its first attempt.",
            fix="The table backlog was changed: restore the database from a backup.",
        )


def _fix(connection: sa.Connection, update: Update, *, limit: int) -> Update:
    """Record what this update learns and from which champion, so that every attempt does the same."""
    if update.experiences:
        # Begun by a release that stored nothing else: from here on it is fixed too, if it is still ours.
        jobs.write(connection, update, {"experiences": list(update.experiences)})
        return update
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
