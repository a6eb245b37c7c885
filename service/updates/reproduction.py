"""Reproduces an update: makes its challenger and verdict again from stored bytes, and compares both.

The stored result serves to compare with, and for nothing else: the champion's checkpoint is restored, the
stored experiences are learnt into a temporary folder, champion and anchors answer the holdouts again, and the
gate decides again. The installation does not change: no row, no file, no MLflow run.

The command `holdfast update reproduce` runs this on a machine that has the checkpoints and a trainer's
libraries. There is no route for it: it takes as long as the update did, and the API process has neither torch
nor a worker.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from service.differences import document_differences
from service.errors import NotReproducibleError, SettingsError
from service.gate.base import GATE_VERSION, Bits, Verdict
from service.gate.decide import decide
from service.settings import Settings
from service.state import inputs as stored_inputs
from service.state import jobs
from service.state.database import answering, connect, require
from service.state.inputs import Name, StoredDocument
from service.state.jobs import Update
from service.storage import StoreLocation, store_location
from service.training import repeats, trainer
from service.training.origin import installed
from service.training.tasks import OnProgress, Result, Stored, Task, read_result
from service.updates import input_checks as check
from service.updates.comparison import evidence_of, task_of
from service.updates.golden_plan import given_again
from service.updates.input_checks import Check
from service.updates.inputs import PlanDocument, decode, kept_bits, kept_details, screens_digest
from service.updates.plan import Plan, stored_plan
from service.updates.results import ResultDocument, verdict_digest
from service.updates.verification import (
    Outcome,
    Reproduction,
    challenger_check,
    conclusion,
    verdict_check,
)
from strategies.base import StrategyError
from streams.state.manifest import Manifest
from streams.state.tables import reading
from streams.store.objects import ObjectError


@dataclass(frozen=True)
class _Inputs:
    """An update with its stored documents, and the plan read from them."""

    update: Update
    plan: Plan
    document: PlanDocument
    result: ResultDocument
    anchors: Mapping[str, Mapping[str, str]]
    """Id of each update that made an anchor -> sha256 of its checkpoint's files; empty: none were stored."""


def run(settings: Settings, update_id: str, on_progress: OnProgress) -> Reproduction:
    """Reproduce one update of this installation.

    Raises:
        SettingsError: the settings name a SQLite file that does not exist.
        UpdateUnknownError: there is no such update.
        DatabaseAwayError: the database cannot be used.
        DatabaseRevisionError: a newer release migrated it.
        NotReproducibleError: it has no verdict or no stored inputs, it learnt on another device, or its store
            cannot be read.
        InputsUnfitError: another release stored its inputs, or its champion's version is not recorded.
    """
    _require_database(settings)
    require(settings.database, migrated=False)
    engine = connect(settings.database)
    try:
        with answering(engine), tempfile.TemporaryDirectory(prefix="holdfast-reproduce-") as scratch:
            return reproduce(engine, settings, update_id, scratch=Path(scratch), on_progress=on_progress)
    except ObjectError as error:
        raise NotReproducibleError(
            f"The experience store cannot be read: {error}",
            fix="Check HOLDFAST_STORE and the credentials of its bucket, and try again.",
        ) from error
    finally:
        engine.dispose()


def _require_database(settings: Settings) -> None:
    """Refuse a SQLite file that does not exist: connecting would create it."""
    url = sa.make_url(settings.database)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise SettingsError(
            f"There is no database {url.database}.",
            fix="Set HOLDFAST_HOME or HOLDFAST_DATABASE_URL to the installation that made the update.",
        )


def reproduce(
    engine: sa.Engine, settings: Settings, update_id: str, *, scratch: Path, on_progress: OnProgress
) -> Reproduction:
    """As `run`, with the caller's engine; the new challenger is written to `scratch`."""
    with reading(engine) as connection:
        update, stored = _read(connection, update_id)
        checks = check.checked_documents(stored)
        if damaged := _damaged(checks):
            return _stopped(update, checks, damaged)
        found = _inputs(connection, update, stored)
    checks += _rows(found)
    if damaged := _damaged(checks):
        return _stopped(update, checks, damaged)
    checks += _files(engine, settings, found, scratch=scratch)
    if damaged := _damaged(checks):
        return _stopped(update, checks, damaged)
    _take_machine(found)
    task = _task(settings, found.plan, scratch=scratch)
    try:
        result = _learn(task, found.plan, on_progress)
        anchors = _anchors(task, found, settings) if result.learnt else _Anchors({}, {})
    except StrategyError as error:
        reason = f"The same inputs cannot be learnt again: {error}"
        return Reproduction(update.id, update.pipeline, "differs", reason, tuple(checks))
    checks += _answers(found, result, anchors)
    return _judged(found, result, anchors, checks, task=task, stored=settings.checkpoints / update.id)


def _read(connection: sa.Connection, update_id: str) -> tuple[Update, dict[Name, StoredDocument]]:
    """The update and its documents; refuses an update without a verdict or without documents."""
    if not stored_inputs.are_kept(connection):
        raise NotReproducibleError(
            "The database is of a release that stored no inputs of updates.",
            fix="Run `holdfast migrate`; updates from then on can be reproduced.",
        )
    update = jobs.get(connection, update_id)
    stored = stored_inputs.read(connection, update_id)
    _require_verdict(update)
    missing = {"configuration", "plan", "result"} - stored.keys()
    if missing:
        raise NotReproducibleError(
            f"The inputs of update {update.id} are not stored (no {' and no '.join(sorted(missing))}): the "
            "release that made it did not store them.",
            fix="Name an update that this release planned and judged.",
        )
    return update, stored


def _require_verdict(update: Update) -> None:
    if update.verdict is not None:
        return
    if update.cancelled:
        happened = "was cancelled, so it made neither challenger nor verdict"
    elif update.state == "failed":
        happened = f"failed, so it made neither challenger nor verdict: {update.error}"
    elif update.state == "done":
        happened = "had nothing to learn, so it made neither challenger nor verdict"
    else:
        happened = f"is {update.state}: it has no verdict yet"
    fix = "Wait until it is decided." if update.state in ("queued", "running") else "Name another update."
    raise NotReproducibleError(f"Update {update.id} {happened.rstrip('.')}.", fix=fix)


def _inputs(connection: sa.Connection, update: Update, stored: Mapping[Name, StoredDocument]) -> _Inputs:
    plan = stored_plan(connection, update, stored)
    made_by = {}
    golden = {each.anchored_by for each in plan.golden if each.anchored_by}
    for anchor in sorted({*plan.anchored_by.values(), *golden}):
        result = stored_inputs.read(connection, anchor).get("result")
        made_by[anchor] = decode(result, ResultDocument).origin.made if result and result.intact else {}
    return _Inputs(
        update=update,
        # Stored answers are compared with those that are given again, and serve nothing else.
        plan=replace(
            plan,
            past={},
            past_details={},
            anchors={},
            gate_anchors={},
            golden=tuple(each.without_answers() for each in plan.golden),
        ),
        document=decode(stored["plan"], PlanDocument),
        result=decode(stored["result"], ResultDocument),
        anchors=made_by,
    )


def _rows(found: _Inputs) -> list[Check]:
    """Compare the rows that the documents name by digest."""
    plan, verdict = found.plan, verdict_digest(found.update.verdict or {})
    screens = screens_digest(plan.references)
    made_for = found.result.origin.inputs
    rows = [
        ("inputs that the result was made for", made_for, plan.inputs, "configuration or plan was changed"),
        ("stored verdict", found.result.verdict, verdict, "the verdict in the table updates was changed"),
        (
            "screens of earlier experiences",
            found.document.references_digest,
            screens,
            "the table backlog was changed",
        ),
    ]
    return [
        Check("row", name, "same" if then == now else "differs", then, now, "" if then == now else detail)
        for name, then, now, detail in rows
    ]


def _files(engine: sa.Engine, settings: Settings, found: _Inputs, *, scratch: Path) -> list[Check]:
    """Compare experience files, checkpoints, own networks and weight files with their stored digests."""
    plan, origin = found.plan, found.result.origin
    rows = Manifest(engine).experiences(plan.update.pipeline)
    removed_at = {row.index: row.train_removed_at for row in rows}
    store = _store(settings, scratch).open()
    checks = check.checked_parts(store, plan, removed_at)
    if found.document.base:
        folder = settings.checkpoints / found.document.base.update_id
        name = f"version {found.document.base.version}"
        checks += check.checked_files(folder, origin.base, kind="base checkpoint", name=name)
    for update_id, files in found.anchors.items():
        if found.document.base and update_id != found.document.base.update_id:
            folder, name = settings.checkpoints / update_id, f"update {update_id}"
            checks += check.checked_files(folder, files, kind="anchor checkpoint", name=name)
    strategy = plan.spec.strategy.model_dump(mode="json")
    return checks + check.checked_installation(origin.installed, installed(strategy, settings.installation))


def _store(settings: Settings, scratch: Path) -> StoreLocation:
    """The experience store; a bucket gets an empty cache, so that the bucket's own bytes are checked."""
    location = store_location(settings)
    return location if location.bucket is None else replace(location, folder=scratch / "experiences")


def _damaged(checks: list[Check]) -> list[Check]:
    return [each for each in checks if each.state != "same"]


def _stopped(update: Update, checks: list[Check], damaged: list[Check]) -> Reproduction:
    """Stop before learning: what other bytes give proves nothing."""
    differs = [each.name for each in damaged if each.state == "differs"]
    gone = [f"{each.name} ({each.detail.rstrip('.')})" for each in damaged if each.state == "gone"]
    reasons = [f"Changed since the update: {', '.join(differs)}."] if differs else []
    reasons += [f"Missing: {'; '.join(gone)}."] if gone else []
    outcome: Outcome = "differs" if differs else "impossible"
    return Reproduction(
        update.id, update.pipeline, outcome, f"{' '.join(reasons)} Nothing was learnt.", tuple(checks)
    )


def _take_machine(found: _Inputs) -> None:
    """Set this process to the trainer's device and number of threads."""
    then = found.result.origin.environment
    if then.device == "cpu":
        # Before torch looks: the config may say "auto", and there may be a GPU here.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from strategies.learning.environment import device_here, use_threads

    here = device_here()
    if here != then.device:
        raise NotReproducibleError(
            f"Update {found.update.id} learnt on {then.device}; this machine has {here}.",
            fix=f"Run this on a machine with {then.device}.",
        )
    use_threads(then.threads)


def _task(settings: Settings, plan: Plan, *, scratch: Path) -> Task:
    """The update's task, with results in `scratch`; the champion answers every past holdout again."""
    return task_of(
        plan,
        folder=scratch / plan.update.id,
        folder_of=lambda update_id: settings.checkpoints / update_id,
        store=_store(settings, scratch),
        installation=settings.installation,
    )


def _learn(task: Task, plan: Plan, on_progress: OnProgress) -> Result:
    """Learn, then repeat with other seeds, one after the other: they share one random state."""
    trainer.run(task, on_progress)
    result = read_result(task.folder)
    if result is None:
        raise FileNotFoundError(f"the trainer left no result in {task.folder}")
    for number in range(1, 1 + (plan.spec.gate.repeats if result.learnt else 0)):
        folder = repeats.repeat_folder(task.folder, number)
        trainer.run(replace(task, folder=folder, repeat=number), on_progress)
    return result


@dataclass(frozen=True)
class _Anchors:
    """The anchors' answers, by experience."""

    sealed: Mapping[int, Bits]
    gate: Mapping[int, Bits]


def _anchors(task: Task, found: _Inputs, settings: Settings) -> _Anchors:
    """Each anchor's answers on its audit and gate parts, where the update had its answers too."""
    rows = found.plan.rows
    sealed: dict[int, Bits] = {}
    gate: dict[int, Bits] = {}
    for update_id in found.anchors:
        its = {index: each for index, each in found.document.anchors.items() if each.update_id == update_id}
        if not its:
            continue  # an anchor of golden sets alone, which the trainer asks
        parts = [Stored(index, rows[index].audit.digest, each.answers.records) for index, each in its.items()]
        sealed |= trainer.answers_of(settings.checkpoints / update_id, parts, task)
        parts = [
            Stored(index, rows[index].gate.digest, each.gate.records)
            for index, each in its.items()
            if each.gate
        ]
        gate |= trainer.answers_of(settings.checkpoints / update_id, parts, task)
    return _Anchors(sealed, gate)


def _answers(found: _Inputs, result: Result, anchors: _Anchors) -> list[Check]:
    """Compare the digests of the stored answers with what champion and anchors answer now."""
    wanted = found.document
    compared = [
        *(
            (f"champion's answers on the holdout of experience {index}", kept, kept_bits(bits))
            for index, kept in wanted.past.items()
            if (bits := result.baseline.get(index)) is not None
        ),
        *(
            (f"champion's details on the holdout of experience {index}", kept, kept_details(details))
            for index, kept in wanted.past_details.items()
            if (details := result.baseline_details.get(index)) is not None
        ),
        *(
            (f"anchor's answers on the audit part of experience {index}", each.answers, kept_bits(bits))
            for index, each in wanted.anchors.items()
            if (bits := anchors.sealed.get(index)) is not None
        ),
        *(
            (f"anchor's answers on the gate part of experience {index}", each.gate, kept_bits(bits))
            for index, each in wanted.anchors.items()
            if each.gate and (bits := anchors.gate.get(index)) is not None
        ),
        *given_again(wanted.golden, result.golden_baseline, result.golden_anchors),
    ]
    detail = "the stored answers are not those that the checkpoint gives"
    return [
        Check("answers", name, "same", then.digest, now.digest)
        if then == now
        else Check("answers", name, "differs", then.digest, now.digest, detail)
        for name, then, now in compared
    ]


def _judged(
    found: _Inputs,
    result: Result,
    anchors: _Anchors,
    checks: list[Check],
    *,
    task: Task,
    stored: Path,
) -> Reproduction:
    """Compare the challenger with the stored one, decide again, and compare the verdicts."""
    then = found.result.origin
    challenger = challenger_check(then.made, made=task.folder, stored=stored)
    again = _decided(found, result, anchors, folder=task.folder)
    verdict = verdict_check(dict(found.update.verdict or {}), gate=found.result.gate, made=again)
    now = result.origin.environment if result.origin else then.environment
    environment = tuple(document_differences(asdict(then.environment), asdict(now)))
    outcome, reason = conclusion(checks, challenger, verdict)
    if outcome == "differs" and then.environment.device != "cpu":
        reason += (
            f" It learnt on {then.environment.device}; only CPU results are promised to be equal bit for bit."
        )
    elif outcome == "differs" and environment:
        reason += " This machine or its libraries differ from the trainer's."
    return Reproduction(
        found.update.id,
        found.update.pipeline,
        outcome,
        reason,
        tuple(checks),
        challenger,
        verdict,
        environment,
    )


def _decided(found: _Inputs, result: Result, anchors: _Anchors, *, folder: Path) -> Verdict | None:
    """The verdict, decided again; None: another gate version judged the update."""
    if found.result.gate != GATE_VERSION:
        return None
    if result.running:
        # Times cannot be measured again: the stored ones are inputs.
        result = replace(result, running=replace(result.running, **asdict(found.result.measured)))
    gate = found.plan.spec.gate
    again = repeats.evidence(folder, result, repeats=gate.repeats)
    plan = replace(found.plan, anchors=anchors.sealed, gate_anchors=anchors.gate)
    return decide(evidence_of(plan, result, repeats=again), gate)
