"""Verdict -> figures, tables and one self-contained HTML report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from numpy.typing import NDArray

from service.gate.base import GateConfig, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class RetentionMatrix:
    """R[i, j]: accuracy of version i on the holdout of experience j; NaN where it was not measured.

    Rows are the champions of one lineage, oldest first, and the challenger last.
    """

    versions: tuple[str, ...]
    experiences: tuple[int, ...]
    accuracy: NDArray[np.float64]
    """(len(versions), len(experiences))."""
    anchors: tuple[int | None, ...]
    """For each experience, the row of the version right after it was learnt; None: not learnt yet."""

    def metrics(self) -> dict[str, float]:
        """ACC, BWT and forgetting of the last row; what cannot be computed is left out.

        ACC is the mean of the last row over what it learnt. BWT is the mean over earlier experiences j of
        R[T, j] - R[anchor of j, j] (Lopez-Paz & Ranzato 2017, arXiv 1706.08840). Forgetting is the mean
        over the same j of max over earlier rows l of R[l, j] - R[T, j] (Chaudhry et al. 2018, arXiv
        1801.10112); the maximum runs over rows that had learnt j.
        """
        last = len(self.versions) - 1
        learnt = [j for j, anchor in enumerate(self.anchors) if anchor is not None]
        final = self.accuracy[last, learnt]
        result: dict[str, float] = {}
        if len(final) and not np.isnan(final).any():
            result["ACC"] = float(final.mean())
        moved, forgotten = [], []
        for j, anchor in enumerate(self.anchors):
            if anchor is None or anchor == last:
                continue
            earlier = self.accuracy[anchor:last, j]
            moved.append(self.accuracy[last, j] - self.accuracy[anchor, j])
            forgotten.append(np.nanmax(earlier) - self.accuracy[last, j] if len(earlier) else np.nan)
        for name, values in (("BWT", moved), ("forgetting", forgotten)):
            if values and not np.isnan(values).any():
                result[name] = float(np.mean(values))
        return result


def retention_matrix(
    lineage: Sequence[tuple[str, Sequence[int]]], accuracies: Sequence[Mapping[int, float]]
) -> RetentionMatrix:
    """The matrix of a lineage.

    Args:
        lineage: (name, experiences learnt so far) of each version, oldest first, challenger last.
        accuracies: of each version, experience -> accuracy.
    """
    experiences = sorted({experience for row in accuracies for experience in row})
    table = np.full((len(lineage), len(experiences)), np.nan)
    for i, row in enumerate(accuracies):
        for experience, accuracy in row.items():
            table[i, experiences.index(experience)] = accuracy
    anchors = [
        next((i for i, (_, learnt) in enumerate(lineage) if experience in learnt), None)
        for experience in experiences
    ]
    return RetentionMatrix(
        versions=tuple(name for name, _ in lineage),
        experiences=tuple(experiences),
        accuracy=table,
        anchors=tuple(anchors),
    )


def retention_figure(matrix: RetentionMatrix) -> "Figure":
    """The matrix as a heat map; drawn without pyplot, whose global state does not suit threads."""
    from matplotlib.figure import Figure

    rows, columns = matrix.accuracy.shape
    figure = Figure(figsize=(1.6 + 0.9 * columns, 1.4 + 0.55 * rows), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix.accuracy, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for i in range(rows):
        for j in range(columns):
            if not np.isnan(matrix.accuracy[i, j]):
                axes.text(j, i, f"{matrix.accuracy[i, j]:.2f}", ha="center", va="center", fontsize=9)
    axes.set_xticks(range(columns), [str(experience) for experience in matrix.experiences])
    axes.set_yticks(range(rows), list(matrix.versions))
    axes.set_xlabel("holdout of experience")
    axes.set_title("Retention: accuracy on each holdout", fontsize=10)
    figure.colorbar(image, ax=axes, label="accuracy")
    return figure


@dataclass(frozen=True)
class ReportInput:
    """What the report shows."""

    pipeline: str
    update_id: str
    strategy: str
    base_version: int | None
    experiences: Sequence[int]
    digests: Mapping[int, str]
    """Experience -> sha256 of its train part."""
    records: int
    verdict: Verdict
    gate: GateConfig
    matrix: RetentionMatrix
    challenger: Mapping[int, float]
    """Accuracy on each holdout."""
    baseline: Mapping[int, float]
    train_accuracy: float | None
    seconds: float | None
    at: float


def html_report(report: ReportInput) -> str:
    """One page that needs no network, no script and no other file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["points"] = lambda share: f"{100 * share:.1f}"
    return environment.get_template("report.html.j2").render(
        report=report,
        metrics=report.matrix.metrics(),
        matrix=_shaded(report.matrix),
        at=datetime.fromtimestamp(report.at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        holdouts=sorted(report.challenger),
    )


def _shaded(matrix: RetentionMatrix) -> list[tuple[str, list[tuple[str, str]]]]:
    """Rows of (version, cells of (text, colour)): red at 0 to green at 1, as a CSS colour."""
    rows = []
    for name, values in zip(matrix.versions, matrix.accuracy, strict=True):
        cells = [
            ("", "transparent") if np.isnan(value) else (f"{value:.3f}", f"hsl({120 * value:.0f} 60% 80%)")
            for value in values
        ]
        rows.append((name, cells))
    return rows


def markdown_summary(verdict: Verdict) -> str:
    """What MLflow shows on a version's page: the outcome, and each finding in its own words."""
    signs = {"pass": "passed", "fail": "**failed**", "undecided": "*undecided*"}
    lines = [f"**{verdict.outcome}**: {verdict.reason}", "", "| guard | answer | finding |", "|---|---|---|"]
    lines += [
        f"| {finding.guard} | {signs[finding.answer]} | {finding.sentence} |" for finding in verdict.findings
    ]
    return "\n".join(lines)
