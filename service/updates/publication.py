"""Publication of an update in MLflow: parameters, metrics, tags, figures, verdict and report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service import evidence
from service.gate.base import Bits, DataEvidence, Verdict
from service.registry import Publication
from service.state import holdouts
from service.training.tasks import SERVED_FILE, Result
from service.updates.plan import Plan
from streams.state.tables import reading


def publication(
    engine: sa.Engine, plan: Plan, result: Result, verdict: Verdict, *, folder: Path
) -> Publication:
    """Everything about one update, ready for `Registry.publish`. `folder` is the trainer's."""
    report = _report(plan, result, verdict, matrix=_matrix(engine, plan, result))
    figures = {"retention.png": evidence.retention_figure(report.matrix)} if report.matrix.experiences else {}
    return Publication(
        pipeline=report.pipeline,
        update_id=report.update_id,
        at=report.at,
        params=_params(plan),
        metrics=_metrics(report, result.data),
        tags=_tags(plan, verdict),
        description=evidence.markdown_summary(verdict),
        texts={
            "verdict.json": json.dumps(verdict.as_dict(), indent=2, sort_keys=True),
            "report.html": evidence.html_report(report),
        },
        figures=figures,
        served=folder / SERVED_FILE if result.learnt else None,
        served_sha256=result.origin.made.get(SERVED_FILE) if result.origin else None,
        input_shape=plan.spec.record_schema.shape,
        classes=plan.classes,
    )


def accuracies(answered: Mapping[int, Bits]) -> dict[int, float]:
    """Experience -> share of right answers, for holdouts that are not empty."""
    return {index: float(bits.mean()) for index, bits in answered.items() if len(bits)}


def _report(
    plan: Plan, result: Result, verdict: Verdict, *, matrix: evidence.RetentionMatrix
) -> evidence.ReportInput:
    return evidence.ReportInput(
        pipeline=plan.update.pipeline,
        update_id=plan.update.id,
        strategy=plan.spec.strategy.name,
        base_version=plan.base_version,
        experiences=plan.experiences,
        digests={index: plan.rows[index].train.digest for index in plan.experiences},
        records=sum(plan.rows[index].train.rows for index in plan.experiences),
        verdict=verdict,
        matrix=matrix,
        challenger=accuracies(result.challenger),
        baseline=accuracies({**plan.past, **result.baseline}),
        train_accuracy=result.train_accuracy,
        seconds=result.report.seconds if result.report else None,
        at=plan.update.started_at or plan.update.created_at,
        pictures=result.pictures,
        feature_names=plan.spec.record_schema.columns,
        classes=plan.classes,
    )


def _matrix(engine: sa.Engine, plan: Plan, result: Result) -> evidence.RetentionMatrix:
    numbers = [version.version for version in plan.lineage]
    with reading(engine) as connection:
        known = holdouts.accuracies(connection, plan.update.pipeline, numbers)
    if plan.champion:
        known[plan.champion.version] |= accuracies(result.baseline)
    lineage = [(f"v{version.version}", tuple(version.learnt)) for version in plan.lineage]
    rows = [known[number] for number in numbers]
    if result.learnt:
        lineage.append(("challenger", plan.learnt_after))
        rows.append(accuracies(result.challenger))
    return evidence.retention_matrix(lineage, rows)


def _params(plan: Plan) -> dict[str, str]:
    strategy: dict[str, Any] = plan.spec.strategy.model_dump(mode="json")
    gate: dict[str, Any] = plan.spec.gate.model_dump(mode="json")
    return {
        **{f"strategy.{name}": str(value) for name, value in strategy.items()},
        **{f"gate.{name}": str(value) for name, value in gate.items()},
        "base_version": str(plan.base_version or "none"),
        "experiences": ",".join(str(index) for index in plan.experiences),
    }


def _metrics(report: evidence.ReportInput, data: DataEvidence) -> dict[str, float]:
    metrics = {f"challenger.accuracy.{index}": value for index, value in report.challenger.items()}
    metrics |= {f"champion.accuracy.{index}": value for index, value in report.baseline.items()}
    if report.challenger:
        metrics |= report.matrix.metrics()
    optional = {"train_accuracy": report.train_accuracy, "learn_seconds": report.seconds}
    metrics |= {name: value for name, value in optional.items() if value is not None}
    metrics |= {"data.label_error_rate": data.label_error_rate, "data.anomaly_rate": data.anomaly_rate}
    return metrics | {"records": float(report.records)}


def _tags(plan: Plan, verdict: Verdict) -> dict[str, str]:
    return {
        "holdfast.verdict": verdict.outcome,
        "holdfast.reason": verdict.reason,
        "holdfast.strategy": plan.spec.strategy.name,
        "holdfast.experiences": ",".join(str(index) for index in plan.experiences),
        "holdfast.experience_digest": ",".join(plan.rows[index].train.digest for index in plan.experiences),
    }
