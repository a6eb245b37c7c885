"""The evidence of a verdict: figures, tables and one self-contained HTML report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from numpy.typing import NDArray

from service.gate.base import PROMISE, Deviation, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"

LARGEST_INCHES = 24.0
MOST_NUMBERS = 40
"""A matrix with more rows or columns is drawn as colours only, and its table has the last of them: a pipeline
may learn for years."""
MOST_CHARACTERS = 4500
"""Limit of a version's description: MLflow's store has a column of 5000."""


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

    def latest(self, most: int) -> "RetentionMatrix":
        """Its last rows and columns, at most so many of each; anchors that are left out are None."""
        rows = max(0, len(self.versions) - most)
        anchors = (None if anchor is None or anchor < rows else anchor - rows for anchor in self.anchors)
        return RetentionMatrix(
            versions=self.versions[rows:],
            experiences=self.experiences[-most:],
            accuracy=self.accuracy[rows:, -most:],
            anchors=tuple(anchors)[-most:],
        )

    def metrics(self) -> dict[str, float]:
        """ACC, BWT and forgetting of the last row; what cannot be computed is left out.

        ACC is the mean of the last row over what it learnt. BWT is the mean over earlier experiences j of
        R[T, j] - R[anchor of j, j] (Lopez-Paz & Ranzato 2017, arXiv 1706.08840). Forgetting is the mean
        over the same j of max over earlier rows l of R[l, j] - R[T, j] (Chaudhry et al. 2018, arXiv
        1801.10112); the maximum runs over rows that had learnt j.
        """
        if not self.versions:
            return {}
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
            # fmax passes over what was not measured, and stays NaN where nothing was.
            forgotten.append(np.fmax.reduce(earlier) - self.accuracy[last, j])
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
    column = {experience: j for j, experience in enumerate(experiences)}
    table = np.full((len(lineage), len(experiences)), np.nan)
    for i, row in enumerate(accuracies):
        for experience, accuracy in row.items():
            table[i, column[experience]] = accuracy
    first: dict[int, int] = {}
    for i, (_, learnt) in enumerate(lineage):
        for experience in learnt:
            first.setdefault(experience, i)
    anchors = [first.get(experience) for experience in experiences]
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
    width, height = min(1.6 + 0.9 * columns, LARGEST_INCHES), min(1.4 + 0.55 * rows, LARGEST_INCHES)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix.accuracy, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    if max(rows, columns) <= MOST_NUMBERS:
        for i, j in np.argwhere(~np.isnan(matrix.accuracy)):
            axes.text(j, i, f"{matrix.accuracy[i, j]:.2f}", ha="center", va="center", fontsize=9)
    across, down = (range(0, size, 1 + size // MOST_NUMBERS) for size in (columns, rows))
    axes.set_xticks(across, [str(matrix.experiences[j]) for j in across])
    axes.set_yticks(down, [matrix.versions[i] for i in down])
    axes.set_xlabel("holdout of experience")
    axes.set_title("Retention: accuracy on each holdout", fontsize=10)
    figure.colorbar(image, ax=axes, label="accuracy")
    return figure


@dataclass(frozen=True)
class ReportInput:
    """Contents of the report."""

    pipeline: str
    update_id: str
    strategy: str
    base_version: int | None
    experiences: Sequence[int]
    digests: Mapping[int, str]
    """Experience -> sha256 of its train part."""
    records: int
    verdict: Verdict
    matrix: RetentionMatrix
    challenger: Mapping[int, float]
    """Accuracy on each holdout."""
    baseline: Mapping[int, float]
    train_accuracy: float | None
    seconds: float | None
    at: float
    pictures: Mapping[str, str] = field(default_factory=dict)
    """Record id -> data URI, of the verdict's worst records that are images."""
    feature_names: Sequence[str] = ()
    """Names of a table's columns; empty: features are numbered."""
    classes: Sequence[str] = ()
    """Class names by id."""


def html_report(report: ReportInput) -> str:
    """One page that needs no network, no script and no other file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["points"] = lambda share: f"{100 * share:.1f}"
    environment.filters["deviation"] = lambda seen: _deviation(seen, report.feature_names)
    return environment.get_template("report.html.j2").render(
        report=report,
        metrics=report.matrix.metrics(),
        matrix=_shaded(report.matrix.latest(MOST_NUMBERS)),
        columns=report.matrix.experiences[-MOST_NUMBERS:],
        left_out=max(len(report.matrix.versions), len(report.matrix.experiences)) > MOST_NUMBERS,
        at=datetime.fromtimestamp(report.at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        holdouts=sorted(report.challenger),
        promises=[note for note in report.verdict.notes if note.about == PROMISE],
        to_know=[note for note in report.verdict.notes if note.about != PROMISE],
    )


def _deviation(seen: Deviation, names: Sequence[str]) -> str:
    name = names[seen.feature] if seen.feature < len(names) else f"feature {seen.feature}"
    return f"{name} is {seen.value:.4g}, usually {seen.low:.4g} to {seen.high:.4g}"


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
    """Text of a version's page in MLflow: the outcome, and findings in their own words, worst first."""
    signs = {"pass": "passed", "fail": "**failed**", "undecided": "*undecided*"}
    head = f"**{verdict.outcome}**: {_cell(verdict.reason)}\n\n| guard | answer | finding |\n|---|---|---|"
    order = ("fail", "undecided", "pass")
    rows = [
        f"| {_cell(finding.guard.replace('_', ' '))} | {signs[finding.answer]} | {_cell(finding.sentence)} |"
        for finding in sorted(verdict.findings, key=lambda finding: order.index(finding.answer))
    ]
    lengths = np.cumsum([len(head), *(1 + len(row) for row in rows)])
    shown = int(np.searchsorted(lengths, MOST_CHARACTERS, side="right")) - 1
    left_out = len(rows) - max(shown, 0)
    rest = [f"\n{left_out} more findings are in report.html."] if left_out else []
    return "\n".join([head, *rows[: max(shown, 0)], *rest])


def _cell(text: str) -> str:
    """Text that stays in its cell of a markdown table, whatever an error message in it holds."""
    bounded = text if len(text) <= MOST_CHARACTERS // 3 else text[: MOST_CHARACTERS // 3] + " ..."
    return " ".join(bounded.split()).replace("|", "\\|").replace("<", "&lt;")
