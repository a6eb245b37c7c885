"""Relabelled holdouts: a golden set with corrected labels replaces a past holdout."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import sqlalchemy as sa

from service.errors import GoldenUnfitError, HoldoutUnknownError, RecordsInvalidError
from service.gate.base import GateConfig
from service.gate.sentences import held_to
from service.gate.sizes import settled_margin, spent_at_first_try
from service.ingest import bodies
from service.ingest.golden import (
    LIKELY,
    RELABELLED,
    SHOWN_IDS,
    Added,
    NewSet,
    Sizes,
    record,
    require_known,
    require_once,
    store_away,
)
from service.ingest.push import decode_all
from service.pipelines import PipelineSpec
from service.state import champions, golden, holdouts, pipelines
from service.state.database import lock_pipeline
from service.state.golden import GoldenSet
from service.state.ledger import By
from streams.base import RawBatch, StreamError
from streams.records import FEATURES_ONLY, LabelMap, Records
from streams.state import status as stream_status
from streams.state.manifest import Manifest, Part
from streams.state.tables import reading
from streams.store.experiences import ExperienceStore


@dataclass(frozen=True)
class _Holdout:
    """What is relabelled: the gate part of an experience, or the set that stands in its place."""

    part: Part
    margin: float | None
    """Its own. None: no right answer of a golden set may be lost; a gate part has none of its own."""
    before: GoldenSet | None
    name: str
    """Of the set that replaces it."""


def relabel(
    engine: sa.Engine,
    store: ExperienceStore,
    pipeline: str,
    experience: int,
    *,
    body: bytes,
    content_type: str,
    by: By,
) -> Added:
    """Retire a past holdout, and judge later updates on its records with the labels of a body.

    The body names records of the holdout by id, each with its label; the others keep theirs. Where the
    holdout was relabelled before, the set that replaced it is relabelled again, unless that is retired.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        HoldoutUnknownError: the champion learnt no such experience, so it has no past holdout.
        RecordsInvalidError: the body holds no records, or one that does not fit, or an id twice.
        GoldenUnfitError: an id is not in the holdout, or no label differs.
        StoreAwayError: the store cannot be read or written.
    """
    with reading(engine) as connection:
        spec = pipelines.load_spec(connection, pipeline)
        found = _holdout(connection, engine, pipeline, experience)
    labels = _labels(engine, spec, bodies.batch(body, content_type))
    try:
        old = store.records(found.part.digest, spec.record_schema)
        new, changed = _relabelled(old, labels, experience)
        part = Part(store.write(new, spec.record_schema), len(new))
        with engine.begin() as connection:
            lock_pipeline(connection, pipeline)
            found = _unmoved(found, _holdout(connection, engine, pipeline, experience))
            margin = found.margin
            if margin is None and found.before is None:
                margin = _settled(part.rows, spec.gate)
            stream_status.fence(connection, pipeline)
            _retire(connection, pipeline, experience, found)
            replaces = found.before.name if found.before else None
            place = f" in place of {replaces}" if replaces else ""
            held = f"{changed} labels changed, now golden set {found.name}{place}, {held_to(margin)}"
            because = By(by.actor, f"holdout of experience {experience}: {held}: {by.reason}")
            new_set = NewSet(found.name, part, margin)
            entry, added = record(connection, pipeline, new_set, action="relabel", by=because)
    except StreamError as error:
        raise store_away(error) from error
    return Added(added, entry, Sizes.of(margin, spec.gate), unchecked=0, replaces=replaces)


def _holdout(connection: sa.Connection, engine: sa.Engine, pipeline: str, experience: int) -> _Holdout:
    champion = champions.current(connection, pipeline)
    version = champions.version(connection, pipeline, champion.version) if champion else None
    if version is None or experience not in version.learnt:
        raise HoldoutUnknownError(
            f"Experience {experience} has no past holdout: no champion of {pipeline!r} learnt it.",
            fix="Choose one of GET /v1/pipelines/{pipeline}/holdouts.",
        )
    stem = f"{RELABELLED}{experience}"
    earlier = [
        each
        for each in golden.of_pipeline(connection, pipeline)
        if each.name == stem or each.name.startswith(f"{stem}-")
    ]
    # Retired ones count: a name is never used twice.
    name = f"{stem}-{len(earlier) + 1}" if earlier else stem
    active = [each for each in earlier if not each.retired]
    if active:
        last = active[-1]
        return _Holdout(last.part, last.margin, last, name)
    row = Manifest(engine).experiences_in(connection, pipeline)[experience]
    mark = holdouts.marks(connection, pipeline).get(experience, holdouts.UNMARKED)
    return _Holdout(row.gate, mark.margin, None, name)


def _unmoved(before: _Holdout, now: _Holdout) -> _Holdout:
    """What is relabelled, if nobody else relabelled it meanwhile."""
    if before.part == now.part:
        return now
    raise GoldenUnfitError(
        "The holdout was relabelled by somebody else meanwhile. Nothing was changed.",
        fix="Look at `holdfast holdout list`, and send the file again if it still applies.",
    )


def _retire(connection: sa.Connection, pipeline: str, experience: int, found: _Holdout) -> None:
    if found.before is not None:
        golden.set_retired(connection, pipeline, found.before.number, retired=True)
    mark = holdouts.marks(connection, pipeline).get(experience, holdouts.UNMARKED)
    holdouts.set_mark(connection, pipeline, experience=experience, mark=replace(mark, retired=True))


def _labels(engine: sa.Engine, spec: PipelineSpec, batch: RawBatch) -> Mapping[str, int]:
    """Id -> class id, of a body whose records need no features."""
    # Such records are those of a stream whose labels come late.
    schema = spec.record_schema.model_copy(update={"labels_within_seconds": 1.0})
    classes = Manifest(engine).classes(spec.name) or schema.classes
    labels = LabelMap(schema, classes)
    records = decode_all(batch, schema, labels)
    require_known(labels, len(classes))
    if records.carries is not None and (records.carries == FEATURES_ONLY).any():
        row = int(np.flatnonzero(records.carries == FEATURES_ONLY)[0])
        raise RecordsInvalidError(
            f"Record {row} has no label; nothing was changed.",
            fix='Give every record its id and its label: {"id": "a1", "label": "up"}.',
        )
    require_once(records)
    return dict(zip(records.ids.to_pylist(), records.labels.tolist(), strict=True))


def _relabelled(old: Records, labels: Mapping[str, int], experience: int) -> tuple[Records, int]:
    """The records with their new labels, and how many changed."""
    ids = old.ids.to_pylist()
    unknown = sorted(labels.keys() - set(ids))
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:3])
        raise GoldenUnfitError(
            f"{len(unknown)} of {len(labels)} ids are not in the holdout of experience {experience}: {shown}"
            f"{' ...' if len(unknown) > 3 else ''}. Nothing was changed.",
            fix="Leave out the ids under `ids`, and send the file again.",
            members={"ids": unknown[:SHOWN_IDS], "unknown": len(unknown)},
        )
    before = np.asarray(old.labels, dtype=np.int64)
    after = np.array([labels.get(name, label) for name, label in zip(ids, before.tolist(), strict=True)])
    changed = int((after != before).sum())
    if not changed:
        raise GoldenUnfitError(
            f"No label differs from that in the holdout of experience {experience}. Nothing was changed.",
            fix="Send the records whose labels are wrong, with the right ones.",
        )
    return replace(old, labels=after.astype(np.int64)), changed


def _settled(records: int, gate: GateConfig) -> float:
    """The margin that so many records settle, at most `single_margin`, in full tenths of a point."""
    alpha = spent_at_first_try(gate.alpha)
    settled = settled_margin(records, alpha, churn=gate.planned_churn, power=LIKELY)
    tenths = np.ceil(min(settled, 1.0) * 1000 - 1e-9) / 1000
    return float(min(max(gate.margin, tenths), max(gate.single_margin, gate.margin)))
