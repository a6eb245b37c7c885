"""Pure functions from a plan to the trainer's task, and from its result to the gate's evidence."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from service.gate.base import Audit, Evidence, GoldenAnswers, PairedAnswers, PastExperience, Repeat
from service.state.holdouts import Audits
from service.storage import StoreLocation
from service.training.tasks import Anchored, Result, Stored, Task
from service.updates.golden_plan import PlannedGolden
from service.updates.plan import Plan
from strategies.network_choice import Installation


def task_of(
    plan: Plan,
    *,
    folder: Path,
    folder_of: Callable[[str], Path],
    store: StoreLocation,
    installation: Installation,
) -> Task:
    """The trainer's task for a plan.

    Args:
        folder: the folder that the result will be written to.
        folder_of: the checkpoint folder of an update, by its id.
    """
    limit = plan.spec.gate.holdout_records
    return Task(
        update_id=plan.update.id,
        folder=folder,
        store=store,
        champion=folder_of(plan.champion.update_id) if plan.champion else None,
        strategy=plan.spec.strategy.model_dump(mode="json"),
        stream=plan.spec.stream_info,
        gate=plan.spec.gate,
        learn=tuple(Stored(index, plan.rows[index].train.digest) for index in plan.experiences),
        new_holdouts=tuple(Stored(index, plan.rows[index].gate.digest, limit) for index in plan.experiences),
        past_holdouts=tuple(
            Stored(index, plan.rows[index].gate.digest, records) for index, records in plan.judged.items()
        ),
        missing_baselines=plan.unanswered,
        references=tuple(plan.references.values()),
        golden=tuple(map(_stored, plan.golden)),
        missing_golden=tuple(each.number for each in plan.golden if each.past is None),
        golden_anchors=_unanswered_anchors(plan, folder_of),
        sealed=tuple(
            Stored(index, plan.rows[index].audit.digest, records)
            for index, records in {**plan.judged, **dict.fromkeys(plan.experiences, limit)}.items()
            if plan.rows[index].audit.rows
        ),
        installation=installation,
        inputs=plan.inputs,
    )


def _stored(golden: PlannedGolden) -> Stored:
    return Stored(golden.number, golden.part.digest)


def _unanswered_anchors(plan: Plan, folder_of: Callable[[str], Path]) -> tuple[Anchored, ...]:
    """Anchors that must answer golden sets, each with its sets."""
    sets: dict[str, list[Stored]] = {}
    for each in plan.golden:
        if each.anchored_by and each.anchor is None:
            sets.setdefault(each.anchored_by, []).append(_stored(each))
    return tuple(Anchored(folder_of(update_id), tuple(its)) for update_id, its in sets.items())


def evidence_of(plan: Plan, result: Result, *, repeats: Sequence[Repeat]) -> Evidence:
    """The evidence that the gate judges."""
    if not result.learnt:
        return Evidence(
            data=result.data,
            first=plan.champion is None,
            learnt=False,
            shift=result.shift,
            data_findings=result.data_findings,
        )
    return Evidence(
        data=result.data,
        past=tuple(_paired(plan, result, index) for index in plan.judged),
        new=tuple(_paired(plan, result, index) for index in plan.experiences),
        first=plan.champion is None,
        attempt=plan.attempt,
        audit=_audit(plan, result) if plan.champion else None,
        freeze=plan.freeze,
        champion=plan.base_version,
        disturbed=result.disturbed,
        running=result.running,
        repeats=tuple(repeats),
        shift=result.shift,
        disputed=plan.dispute.disputed,
        kept=plan.dispute.kept,
        kept_shifted=plan.dispute.kept_shifted,
        data_findings=result.data_findings,
        classes=plan.classes,
        golden=tuple(_golden(plan, result, each) for each in plan.golden),
        history=tuple(
            PastExperience(each.experience, each.gate_records, archived=each.archived) for each in plan.learnt
        ),
    )


def _paired(plan: Plan, result: Result, index: int) -> PairedAnswers:
    records = result.records.get(index)
    return PairedAnswers(
        experience=index,
        baseline=result.baseline.get(index, plan.past.get(index)),
        challenger=result.challenger.get(index),
        # Only past holdouts have margins; a new one may have an old margin, if a rollback made it new again.
        margin=plan.margins.get(index) if index in plan.judged else None,
        traffic=plan.traffic.get(index),
        looks=plan.looks.get(index, 0),
        near_duplicates=result.near_duplicates.get(index),
        labels=records.labels if records else None,
        groups=records.groups if records else {},
        baseline_details=result.baseline_details.get(index, plan.past_details.get(index)),
        challenger_details=result.challenger_details.get(index),
    )


def _golden(plan: Plan, result: Result, golden: PlannedGolden) -> GoldenAnswers:
    number = golden.number
    return GoldenAnswers(
        number=number,
        name=golden.name,
        records=golden.part.rows,
        baseline=result.golden_baseline.get(number, golden.past) if plan.champion else None,
        challenger=result.golden.get(number),
        anchor=result.golden_anchors.get(number, golden.anchor),
        anchor_version=golden.anchor_version,
        margin=golden.margin,
        looks=golden.looks,
    )


_NONE = Audits(0, 0, 0)


def _audit(plan: Plan, result: Result) -> Audit:
    """The pairs that an audit compares: the challenger and the anchor of each experience."""
    nothing = np.zeros(0, dtype=bool)
    return Audit(
        answers=tuple(
            PairedAnswers(
                experience=index,
                baseline=plan.anchors.get(index) if plan.rows[index].audit.rows else nothing,
                challenger=result.sealed.get(index) if plan.rows[index].audit.rows else nothing,
                margin=plan.margins.get(index),
                looks=audits.looks,
                failures=audits.failures,
                failure_runs=audits.runs,
            )
            for index, audits in ((index, plan.audits.get(index, _NONE)) for index in plan.judged)
        ),
        last_audited=plan.last_audited,
        gate=tuple(
            PairedAnswers(index, bits, result.challenger.get(index))
            for index, bits in plan.gate_anchors.items()
        ),
        history=tuple(
            PastExperience(each.experience, each.sealed_records, archived=each.archived)
            for each in plan.learnt
            if each.sealed_records
        ),
    )
