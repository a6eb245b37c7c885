"""One update from claim to recorded decision: plan, learn, decide, publish, settle.

Each step can be done twice: the trainer's folder and MLflow's run and version are found again by update
id, and the settlement is one fenced transaction. A crash anywhere repeats steps, never effects.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service.errors import ChampionMovedError
from service.gate.base import DISPUTE, Verdict
from service.gate.decide import decide
from service.registry import Registry
from service.settings import Settings
from service.state import backlog, champions, claims, endings, freezes, holdouts, inputs, jobs, ledger
from service.state.database import lock_pipeline, now
from service.state.jobs import Update
from service.state.ledger import GATE, By
from service.storage import store_location
from service.training import repeats
from service.training.tasks import OnProgress, Result, Task, is_done, read_result
from service.updates.comparison import evidence_of, task_of
from service.updates.golden_plan import answered_by
from service.updates.inputs import encode
from service.updates.plan import Plan, make_plan
from service.updates.publication import accuracies, publication
from service.updates.results import result_document
from streams.state.manifest import Manifest
from streams.state.tables import reading


class Updater:
    """Runs updates. One per dispatcher; thread-safe."""

    def __init__(
        self,
        engine: sa.Engine,
        settings: Settings,
        *,
        train: Callable[[Task, OnProgress], None],
        registry: Registry,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._train = train
        self._registry = registry

    def run(self, update: Update, on_progress: OnProgress) -> Verdict | None:
        """Run a claimed update to its recorded decision; None when there was nothing to learn.

        Raises:
            LostLeaseError: another worker owns the update; nothing more was written.
            StreamError, StrategyError: the data or the learner make this update impossible.
            ChampionMovedError: the champion is not the one that this update started from.
            TrainerDiedError: worth another attempt.
        """
        plan = make_plan(self._engine, update)
        if not plan.experiences:
            self._close_empty(plan)
            return None
        result = self._learn(plan, on_progress)
        learnt_again = repeats.evidence(self.folder(update.id), result, repeats=plan.spec.gate.repeats)
        verdict = decide(evidence_of(plan, result, repeats=learnt_again), plan.spec.gate)
        on_progress({"stage": jobs.RECORDING})
        prepared = publication(self._engine, plan, result, verdict, folder=self.folder(update.id))
        # MLflow has no fencing: a worker that has lost its lease must not write there a second time.
        claims.confirm(self._engine, update)
        with reading(self._engine) as connection:
            # No version may be called promoted there if the settlement is sure to refuse it.
            base = plan.update.base_revision
            champions.require_unmoved(connection, update.pipeline, expected_revision=base)
        run_id, version = self._registry.publish(prepared)
        self._settle(plan, result, verdict, run_id=run_id, version=version)
        repeats.remove(self.folder(update.id))
        project(self._engine, self._registry, update.pipeline)
        return verdict

    def _learn(self, plan: Plan, on_progress: OnProgress) -> Result:
        folder, others = self.folder(plan.update.id), plan.spec.gate.repeats
        found = read_result(folder)
        if found is not None and (found.origin is None or found.origin.inputs != plan.inputs):
            # An older release did not store what it was made for: it may be of other holdouts.
            self._remove(plan.update.id)
        repeats.remove_stale(folder, inputs=plan.inputs)
        if others or not is_done(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            task = task_of(
                plan,
                folder=folder,
                folder_of=self.folder,
                store=store_location(self._settings),
                installation=self._settings.installation,
            )
            if others:
                repeats.learn(self._train, task, on_progress, repeats=others)
            else:
                self._train(task, on_progress)
        finished = read_result(folder)
        if finished is None:
            raise FileNotFoundError(
                f"the trainer of update {plan.update.id} left no result in {folder}; "
                "trainers and dispatcher must share that storage"
            )
        return finished

    def folder(self, update_id: str) -> Path:
        """Where a trainer leaves an update's checkpoint and answers."""
        return self._settings.checkpoints / update_id

    def _remove(self, update_id: str) -> None:
        """Delete what trainers left of an update, complete or not."""
        folder = self.folder(update_id)
        repeats.remove(folder)
        for left in (folder, *folder.parent.glob(f"{folder.name}.*.tmp")):
            shutil.rmtree(left, ignore_errors=True)

    def _settle(
        self, plan: Plan, result: Result, verdict: Verdict, *, run_id: str, version: int | None
    ) -> None:
        """Record everything that follows from the verdict, in one fenced transaction."""
        values: dict[str, Any] = {
            "state": "review" if verdict.outcome == "review" else "done",
            "lease_until": None,
            "progress": None,
            "outcome": verdict.outcome,
            "reason": verdict.reason,
            "cause": verdict.cause,
            "verdict": verdict.as_dict(),
            "accuracy": {str(index): value for index, value in accuracies(result.challenger).items()},
            "version": version,
            "run_id": run_id,
            "error": None,
        }
        pipeline, base = plan.update.pipeline, plan.update.base_revision
        with self._engine.begin() as connection:
            lock_pipeline(connection, pipeline)
            jobs.write(connection, plan.update, {**values, "finished_at": now(connection)})
            # A rejection too is void if the champion it was compared with was rolled back meanwhile.
            champions.require_unmoved(connection, pipeline, expected_revision=base)
            document = result_document(result, values["verdict"])
            inputs.save(connection, plan.update.id, {"result": encode(document)})
            self._keep_answers(connection, plan, result, run_id=run_id, version=version)
            _act(connection, plan, result, verdict, version=version)
            _count_looks(connection, plan, result, verdict)
            if backlog.count_untried(connection, pipeline):
                jobs.ensure_queued(connection, pipeline, requested_by="trigger")

    def _keep_answers(
        self, connection: sa.Connection, plan: Plan, result: Result, *, run_id: str, version: int | None
    ) -> None:
        pipeline = plan.update.pipeline
        for experience, screen in result.screens.items():
            backlog.save_screen(connection, pipeline, experience=experience, screen=screen)
        if plan.champion:
            holdouts.save(
                connection,
                pipeline,
                version=plan.champion.version,
                answered=result.baseline,
                details=result.baseline_details,
            )
            holdouts.save(
                connection,
                pipeline,
                version=plan.champion.version,
                answered=result.golden_baseline,
                part="golden",
            )
        for anchor, answered in answered_by(plan.golden, result.golden_anchors).items():
            holdouts.save(connection, pipeline, version=anchor, answered=answered, part="golden")
        if version is not None:
            champions.add_version(
                connection,
                pipeline,
                number=version,
                update_id=plan.update.id,
                parent=plan.base_version,
                learnt=plan.learnt_after,
                run_id=run_id,
            )
            holdouts.save(
                connection,
                pipeline,
                version=version,
                answered=result.challenger,
                details=result.challenger_details,
            )
            holdouts.save(connection, pipeline, version=version, answered=result.sealed, part="audit")
            holdouts.save(connection, pipeline, version=version, answered=result.golden, part="golden")

    def start_over(self, update: Update, error: ChampionMovedError) -> None:
        """End an update whose champion was moved meanwhile; queue one against the present champion."""
        with self._engine.begin() as connection:
            lock_pipeline(connection, update.pipeline)
            jobs.write(
                connection,
                update,
                {
                    "state": "failed",
                    "finished_at": now(connection),
                    "lease_until": None,
                    "error": f"{error.detail} A new update was queued in its place.",
                },
            )
            jobs.ensure_queued(connection, update.pipeline, requested_by="champion moved")
        repeats.remove(self.folder(update.id))

    def _close_empty(self, plan: Plan) -> None:
        update = plan.update
        pending = Manifest(self._engine).pending_records(update.pipeline)
        reason = "Nothing to learn: no record has arrived since the last update."
        if pending:
            reason = (
                f"Nothing to learn: the {pending} records that wait are all put aside by the split; "
                "they are learnt from with the next ones that are not."
            )
        with self._engine.begin() as connection:
            jobs.write(
                connection,
                update,
                {"state": "done", "finished_at": now(connection), "lease_until": None, "reason": reason},
            )

    def clear_cancelled(self, update: Update) -> bool:
        """Remove a trainer's files of a cancelled update; False: it was not cancelled."""
        with reading(self._engine) as connection:
            if not jobs.get(connection, update.id).cancelled:
                return False
        self._remove(update.id)
        return True

    def fail(self, update: Update, error: Exception) -> None:
        """Record that an update cannot work, and park its experiences for a person.

        Raises:
            LostLeaseError: another worker owns the update.
        """
        endings.fail(self._engine, update, error=str(error))
        repeats.remove(self.folder(update.id))


def _count_looks(connection: sa.Connection, plan: Plan, result: Result, verdict: Verdict) -> None:
    """Count the looks at each holdout; freeze promotion where the audit did not pass."""
    if not result.learnt:
        return
    pipeline, update_id = plan.update.pipeline, plan.update.id
    passed = verdict.outcome == "promote"
    # Each try until one is promoted also looks at the new holdouts.
    seen = [*plan.judged, *plan.experiences]
    holdouts.note_looks(connection, pipeline, update_id=update_id, experiences=seen, passed=passed)
    compared = [each.number for each in plan.golden] if plan.champion else []
    holdouts.note_looks(
        connection, pipeline, update_id=update_id, experiences=compared, part="golden", passed=passed
    )
    if not verdict.audit:
        return
    looked = [index for index in plan.judged if plan.rows[index].audit.rows]
    holdouts.note_looks(
        connection, pipeline, update_id=update_id, experiences=looked, part="audit", passed=passed
    )
    if verdict.freezes:
        freezes.begin(
            connection,
            pipeline,
            last_audited=plan.last_audited,
            champion=plan.base_version,
            by=By(GATE, verdict.reason, update_id),
        )


def _act(
    connection: sa.Connection, plan: Plan, result: Result, verdict: Verdict, *, version: int | None
) -> None:
    """Apply the verdict to the champion, the backlog and the ledger."""
    pipeline, by = plan.update.pipeline, By(GATE, verdict.reason, plan.update.id)
    if verdict.outcome == "promote" and version is not None:
        champions.promote(
            connection,
            pipeline,
            number=version,
            expected_revision=plan.update.base_revision,
            experiences=plan.experiences,
            by=by,
        )
        return
    ledger.append(
        connection,
        pipeline,
        action="review" if verdict.outcome == "review" else "reject",
        by=by,
        version=version,
        previous_version=plan.base_version,
    )
    if verdict.outcome == "review":
        asked = {index for each in verdict.findings if each.guard == DISPUTE for index in each.experiences}
        holdouts.end_keeping(connection, pipeline, asked & set(plan.dispute.kept))
        note = f"update {plan.update.id} awaits a decision"
        backlog.mark(connection, pipeline, experiences=plan.experiences, state="review", note=note)
    elif result.stopped:
        # The others were never tried: they go into the next update as they are.
        backlog.park(connection, pipeline, experiences=result.stopped, note=verdict.reason)
    else:
        backlog.carry_or_park(
            connection,
            pipeline,
            experiences=plan.experiences,
            max_carries=plan.spec.max_carries,
            note=verdict.reason,
        )


def aliases(connection: sa.Connection, pipeline: str) -> tuple[int | None, int | None]:
    """The versions that MLflow's aliases `champion` and `challenger` must name."""
    champion = champions.current(connection, pipeline)
    return (champion.version if champion else None), champions.challenger(connection, pipeline)


def project(engine: sa.Engine, registry: Registry, pipeline: str) -> None:
    """Make MLflow's aliases follow the champion row."""
    with reading(engine) as connection:
        champion, challenger = aliases(connection, pipeline)
    registry.project(pipeline, {"champion": champion, "challenger": challenger})
