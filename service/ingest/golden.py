"""Golden sets: files of curated records that are never trained on, added as holdouts of a pipeline."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from service.errors import (
    BatchTooLargeError,
    GoldenUnfitError,
    HoldoutConflictError,
    RecordsInvalidError,
    StoreAwayError,
)
from service.gate.base import GateConfig
from service.gate.sentences import held_to
from service.gate.sizes import floor_records, needed_records, spent_at_first_try
from service.ingest import bodies
from service.ingest.push import decode_all
from service.pipelines import PipelineSpec
from service.state import champions, golden, ledger, pipelines
from service.state.database import lock_pipeline
from service.state.golden import GoldenSet
from service.state.ledger import By
from streams.base import RawBatch, StreamError
from streams.held_out import HeldOut
from streams.records import COMPLETE, LabelMap, Records
from streams.state import status as stream_status
from streams.state.experiences import ExperienceRow
from streams.state.manifest import Manifest, Part
from streams.state.tables import reading
from streams.store.experiences import ExperienceStore

SHOWN_IDS = 20
RELABELLED = "relabelled-"
"""Names of sets that replace relabelled holdouts begin so, and no other's."""
LIKELY = 0.8
"""The chance that a number of records is planned for: that an update which lost nothing passes."""


@dataclass(frozen=True)
class Sizes:
    """How many records a margin takes, at the first try of an update."""

    fewest: int
    """With fewer, no update can pass."""
    likely: int
    """With so many, an update that lost nothing, and flips `planned_churn`, passes 8 times in 10."""

    @staticmethod
    def of(margin: float | None, gate: GateConfig) -> "Sizes | None":
        """None where no answer may be lost: that is a count of any number of records."""
        if margin is None:
            return None
        alpha = spent_at_first_try(gate.alpha)
        likely = needed_records(margin, alpha, churn=gate.planned_churn, power=LIKELY)
        return Sizes(floor_records(margin, alpha), likely)


@dataclass(frozen=True)
class Added:
    """A golden set that was added."""

    golden: GoldenSet
    entry: ledger.Entry
    sizes: Sizes | None
    unchecked: int
    """Experiences whose ids are not known any more, since the retention policy removed their train parts."""
    replaces: str | None = None
    """The golden set that it replaces, which was retired; None: it replaces none."""


def held_out(engine: sa.Engine, store: ExperienceStore, pipeline: str) -> HeldOut:
    """The ids of all golden sets of a pipeline, retired ones too.

    Raises:
        ExperienceDamagedError: the file of one is missing or damaged.
    """
    with reading(engine) as connection:
        sets = golden.of_pipeline(connection, pipeline)
    return HeldOut([_ids(store, each.part) for each in sets])


def _ids(store: ExperienceStore, part: Part) -> pa.StringArray:
    return pa.array(store.open(part.digest, index=0).record_ids.tolist(), pa.string())


def add(
    engine: sa.Engine,
    store: ExperienceStore,
    pipeline: str,
    *,
    name: str,
    margin: float | None,
    body: bytes,
    content_type: str,
    by: By,
) -> Added:
    """Make the records of a body a golden set, which every later update is compared on.

    Args:
        margin: what an update may truly lose less than on it, a share; None: no right answer may be lost.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        RecordsInvalidError: the body holds no records, or one that does not fit or is there twice.
        BatchTooLargeError: it holds more records than are judged of one holdout.
        HoldoutConflictError: the pipeline has a golden set of that name, or it is kept for relabelled ones.
        GoldenUnfitError: the pipeline took one of the records for training, or sealed it for audits.
        StoreAwayError: the store cannot be read or written.
    """
    with reading(engine) as connection:
        spec = pipelines.load_spec(connection, pipeline)
        _require_new_name(connection, pipeline, name)
    records = _decoded(engine, spec, bodies.batch(body, content_type))
    try:
        rows = Manifest(engine).experiences(pipeline)
        _require_unknown(store, records.ids, rows)
        part = Part(store.write(records, spec.record_schema), len(records))
        with engine.begin() as connection:
            lock_pipeline(connection, pipeline)
            _require_new_name(connection, pipeline, name)
            later = _fenced(connection, engine, pipeline)
            known = {row.index for row in rows}
            _require_unknown(store, records.ids, [row for row in later if row.index not in known])
            reason = f"golden set {name} of {len(records)} records, {held_to(margin)}: {by.reason}"
            new = NewSet(name, part, margin)
            entry, added = record(connection, pipeline, new, action="golden", by=By(by.actor, reason))
    except StreamError as error:
        raise store_away(error) from error
    unchecked = sum(row.train_removed_at is not None for row in later)
    return Added(added, entry, Sizes.of(margin, spec.gate), unchecked)


def _fenced(connection: sa.Connection, engine: sa.Engine, pipeline: str) -> list[ExperienceRow]:
    """All experiences; ingest commits nothing from here on that it has read without the new ids."""
    stream_status.fence(connection, pipeline)
    return Manifest(engine).experiences_in(connection, pipeline)


@dataclass(frozen=True)
class NewSet:
    """A set whose file is written and whose row is not."""

    name: str
    part: Part
    margin: float | None


def record(
    connection: sa.Connection, pipeline: str, new: NewSet, *, action: ledger.Action, by: By
) -> tuple[ledger.Entry, GoldenSet]:
    """Insert a set with its entry in the ledger, under the pipeline's lock."""
    champion = champions.current(connection, pipeline)
    version = champion.version if champion else None
    added = golden.add(
        connection, pipeline, name=new.name, part=new.part, margin=new.margin, champion=version
    )
    entry = ledger.append(
        connection, pipeline, action=action, by=by, version=version, previous_version=version
    )
    return entry, added


def store_away(error: StreamError) -> StoreAwayError:
    """The problem of a store that cannot be used."""
    return StoreAwayError(
        f"The experience store cannot be used: {error}",
        fix="Check HOLDFAST_STORE and that this process reaches the files of the other roles, and try again.",
    )


def _require_new_name(connection: sa.Connection, pipeline: str, name: str) -> None:
    if name.startswith(RELABELLED):
        raise HoldoutConflictError(
            f"{name!r} is no name for this set: {RELABELLED} begins those of relabelled holdouts. "
            "Nothing was changed.",
            fix="Choose another name; to correct the labels of a past holdout, use holdfast holdout relabel.",
        )
    if golden.named(connection, pipeline, name) is not None:
        raise HoldoutConflictError(
            f"There is a golden set {name!r} of {pipeline!r} already. Nothing was changed.",
            fix="Choose another name; a retired set keeps its own.",
        )


def _decoded(engine: sa.Engine, spec: PipelineSpec, batch: RawBatch) -> Records:
    """The records of a batch, all of them complete and of a class that the stream knows."""
    limit = spec.gate.holdout_records
    if len(batch.positions) > limit:
        raise BatchTooLargeError(
            f"{len(batch.positions)} records are more than are judged of one holdout: {limit}.",
            fix="Choose fewer records, or raise gate.holdout_records.",
        )
    classes = Manifest(engine).classes(spec.name) or spec.record_schema.classes
    labels = LabelMap(spec.record_schema, classes)
    records = decode_all(batch, spec.record_schema, labels)
    require_known(labels, len(classes))
    if records.carries is not None and (records.carries != COMPLETE).any():
        row = int(np.flatnonzero(records.carries != COMPLETE)[0])
        raise RecordsInvalidError(
            f"Record {row} has no features or no label; none was stored.",
            fix="Give every record of a golden set its id, its features and its label.",
        )
    require_once(records)
    return records


def require_known(labels: LabelMap, known: int) -> None:
    """Refuse labels that the stream has not seen: only the stream makes classes."""
    if len(labels) > known:
        new = ", ".join(repr(name) for name in labels.names[known : known + SHOWN_IDS])
        raise RecordsInvalidError(
            f"No record of the stream has had the label {new}; none was stored.",
            fix="Correct the label, or add the set once the stream has records of that class.",
        )


def require_once(records: Records) -> None:
    """Refuse records of which two have one id."""
    found = records.ids.to_pylist()
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        rows = [str(row) for row, name in enumerate(found) if name == twice[0]]
        raise RecordsInvalidError(
            f"Records {' and '.join(rows[:SHOWN_IDS])} have the same id {twice[0]!r}; none was stored.",
            fix="Give every record an id of its own, or leave one of the two out.",
        )


def _require_unknown(store: ExperienceStore, ids: pa.StringArray, rows: Sequence[ExperienceRow]) -> None:
    """Refuse ids of records that were taken for training, or sealed for audits.

    Raises:
        GoldenUnfitError: it names the first of them, and how many there are.
    """
    wanted = set(ids.to_pylist())
    trained: dict[str, int] = {}
    sealed: dict[str, int] = {}
    for row in rows:
        if row.train_removed_at is None:
            trained |= dict.fromkeys(wanted.intersection(_ids(store, row.train).to_pylist()), row.index)
        sealed |= dict.fromkeys(wanted.intersection(_ids(store, row.audit).to_pylist()), row.index)
    for found, what in ((trained, "were taken for training"), (sealed, "are sealed for audits")):
        if found:
            first = [name for name in ids.to_pylist() if name in found]
            shown = ", ".join(repr(name) for name in first[:3])
            raise GoldenUnfitError(
                f"{len(first)} of {len(ids)} records {what} by this pipeline: {shown}"
                f"{' ...' if len(first) > 3 else ''}. Nothing was added.",
                fix="Leave out the records under `ids`, and send the file again.",
                members={"ids": first[:SHOWN_IDS], "known": len(first)},
            )
