"""The report of a verdict: its numbers against values computed by hand, its page and its figure."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from math import nan
from typing import Any

import pytest

from service.evidence import (
    MOST_CHARACTERS,
    ReportInput,
    html_report,
    markdown_summary,
    retention_figure,
    retention_matrix,
)
from service.gate.base import Finding, Note, Verdict

LINEAGE = [("v1", (0,)), ("v2", (0, 1)), ("v4", (0, 1, 2)), ("challenger", (0, 1, 2, 3))]
ACCURACIES = [
    {0: 0.90, 1: 0.30},
    {0: 0.95, 1: 0.80, 2: 0.20},
    {0: 0.85, 1: 0.82, 2: 0.70, 3: 0.10},
    {0: 0.80, 1: 0.84, 2: 0.60, 3: 0.75},
]
HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x.png>"


def finding(**changes: Any) -> Finding:
    return Finding("retention", "pass", "experience 0 kept its accuracy", 0, {"n": 100.0})._replace(**changes)


def verdict(*findings: Finding, reason: str = "all kept") -> Verdict:
    return Verdict("reject", reason, findings or (finding(),))


def report(**changes: Any) -> ReportInput:
    whole = ReportInput(
        pipeline="digits",
        update_id="u-1",
        strategy="replay",
        base_version=4,
        experiences=(3,),
        digests={3: "ab" * 32},
        records=1200,
        verdict=verdict(),
        matrix=retention_matrix(LINEAGE, ACCURACIES),
        challenger=ACCURACIES[3],
        baseline=ACCURACIES[2],
        train_accuracy=0.99,
        seconds=1.25,
        at=1_800_000_000.0,
    )
    return replace(whole, **changes)


def test_promises_stand_apart_from_what_is_to_know() -> None:
    promise = "in blocks of neighbours: a challenger that truly lost 2 points or more on a block is promoted"
    notes = (Note("promise", promise), Note("retention", "a loss could go unseen"))
    found = parsed(html_report(report(verdict=replace(verdict(), notes=notes))))
    assert f"Promise{promise}" in found.text
    to_know, rest = found.text.split("To know", 1)[1].split("Accuracy on each holdout", 1)
    assert "a loss could go unseen" in to_know
    assert promise not in to_know
    assert promise in rest


def test_acc_bwt_and_forgetting_are_what_their_papers_define() -> None:
    found = retention_matrix(LINEAGE, ACCURACIES).metrics()
    assert found["ACC"] == pytest.approx((0.80 + 0.84 + 0.60 + 0.75) / 4)
    # Against the anchors: right after experiences 0, 1 and 2 were learnt.
    assert found["BWT"] == pytest.approx(((0.80 - 0.90) + (0.84 - 0.80) + (0.60 - 0.70)) / 3)
    # Against the best that a version that had learnt it ever did; gains count as negative forgetting.
    assert found["forgetting"] == pytest.approx(((0.95 - 0.80) + (0.82 - 0.84) + (0.70 - 0.60)) / 3)


def test_anchors_are_the_first_versions_that_had_learnt_an_experience() -> None:
    matrix = retention_matrix(LINEAGE, ACCURACIES)
    assert matrix.versions == ("v1", "v2", "v4", "challenger")
    assert matrix.experiences == (0, 1, 2, 3)
    assert matrix.anchors == (0, 1, 2, 3)


def test_a_first_version_has_an_accuracy_and_nothing_to_forget() -> None:
    assert retention_matrix([("challenger", (0, 1))], [{0: 0.5, 1: 0.7}]).metrics() == {
        "ACC": pytest.approx(0.6)
    }


def test_an_experience_that_no_version_learnt_counts_for_nothing() -> None:
    matrix = retention_matrix([("v1", (0,))], [{0: 0.5, 1: 0.1}])
    assert matrix.anchors == (0, None)
    assert matrix.metrics() == {"ACC": pytest.approx(0.5)}


@pytest.mark.parametrize(
    ("accuracies", "left"),
    [
        ([{0: 0.9}, {1: 0.8}], set()),
        ([{}, {0: 0.8, 1: 0.8}], {"ACC"}),
        ([{0: 0.9}, {0: 0.8}], {"ACC", "BWT", "forgetting"}),
    ],
)
def test_what_was_not_measured_is_left_out_and_never_guessed(
    accuracies: list[dict[int, float]], left: set[str]
) -> None:
    assert set(retention_matrix([("v1", (0,)), ("challenger", (0, 1))], accuracies).metrics()) == left


def test_without_any_version_there_are_no_numbers_and_still_a_report() -> None:
    matrix = retention_matrix([], [])
    assert matrix.metrics() == {}
    page = html_report(report(matrix=matrix, challenger={}, baseline={}, base_version=None, seconds=None))
    assert "no champion before" in page
    assert "Retention" not in page


class _Page(HTMLParser):
    """Tags, and every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [name for name, _ in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.loads += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    return parser


def test_the_report_needs_no_network_no_script_and_no_other_file() -> None:
    page = html_report(report())
    found = parsed(page)
    assert found.tags <= {
        *("html", "head", "meta", "title", "style", "body", "div", "h1", "h2", "p", "code"),
        *("table", "tr", "th", "td"),
    }
    assert found.loads == []
    assert not re.search(r"https?:|url\(|@import", page)


def test_the_report_says_what_was_found_and_where_it_comes_from() -> None:
    text = " ".join(parsed(html_report(report())).text.split())
    for phrase in (
        "Rejected: digits",
        "all kept",
        "experience 0 kept its accuracy",
        "compared with champion v4",
        "Champion v4",
        "1,200 records",
        "sha256 " + "ab" * 32,
        "ACC 0.748; BWT -0.053; forgetting +0.077.",
        "2027-01-15",
    ):
        assert phrase in text


@pytest.mark.parametrize("place", ["reason", "sentence", "guard", "pipeline", "strategy", "version"])
def test_hostile_text_stays_text(place: str) -> None:
    hostile = {
        "reason": report(verdict=verdict(reason=HOSTILE)),
        "sentence": report(verdict=verdict(finding(sentence=HOSTILE))),
        "guard": report(verdict=verdict(finding(guard=HOSTILE))),
        "pipeline": report(pipeline=HOSTILE),
        "strategy": report(strategy=HOSTILE),
        "version": report(matrix=retention_matrix([(HOSTILE, (0,))], [{0: 0.5}])),
    }[place]
    found = parsed(html_report(hostile))
    assert not found.tags & {"script", "img"}
    assert HOSTILE in found.text


def drawn(matrix: Any) -> tuple[bytes, tuple[int, int]]:
    figure = retention_figure(matrix)
    file = BytesIO()
    figure.savefig(file, format="png")
    width, height = figure.canvas.get_width_height()
    return file.getvalue(), (width, height)


def test_the_figure_shows_every_number_that_was_measured() -> None:
    matrix = retention_matrix(LINEAGE, ACCURACIES)
    picture, (width, height) = drawn(matrix)
    assert picture.startswith(b"\x89PNG")
    assert min(width, height) > 100
    axes = retention_figure(matrix).axes[0]
    assert sorted(text.get_text() for text in axes.texts) == sorted(
        f"{value:.2f}" for row in ACCURACIES for value in row.values()
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == ["v1", "v2", "v4", "challenger"]


def test_a_pipeline_that_has_learnt_for_years_still_gets_a_figure() -> None:
    lineage = [(f"v{number}", range(number + 1)) for number in range(400)]
    accuracies = [dict.fromkeys(range(number + 1), 0.5) for number in range(400)]
    picture, size = drawn(retention_matrix(lineage, accuracies))
    assert picture.startswith(b"\x89PNG")
    assert max(size) <= 2400


def test_the_report_of_a_pipeline_that_has_learnt_for_years_stays_small() -> None:
    lineage = [(f"v{number}", tuple(range(number))) for number in range(1, 501)]
    accuracies = [dict.fromkeys(learnt, 0.9) for _, learnt in lineage]
    long = retention_matrix(lineage, accuracies)
    page = html_report(report(matrix=long, challenger=accuracies[-1], baseline=accuracies[-1]))
    assert len(page) < 1_000_000
    assert "the last 40 of 500 versions and the last 40 of 500 experiences" in " ".join(page.split())
    assert ">v500<" in page
    assert ">v460<" not in page
    assert long.latest(40).metrics() == pytest.approx(long.metrics()), "all of it is alike here"
    assert long.anchors[:2] == (0, 1)


def test_a_matrix_without_any_measured_cell_is_drawn() -> None:
    assert drawn(retention_matrix([("v1", (0,))], [{0: nan}]))[0].startswith(b"\x89PNG")


def test_the_summary_names_the_worst_findings_first() -> None:
    lines = markdown_summary(
        verdict(
            finding(sentence="kept"),
            finding(answer="undecided", sentence="unclear"),
            finding(answer="fail", sentence="lost"),
        )
    ).splitlines()
    assert lines[0] == "**reject**: all kept"
    assert lines[4:] == [
        "| retention | **failed** | lost |",
        "| retention | *undecided* | unclear |",
        "| retention | passed | kept |",
    ]


def test_the_summary_fits_into_the_store_and_says_what_it_left_out() -> None:
    kept = [finding(sentence=f"experience {number} " + "kept " * 20) for number in range(200)]
    summary = markdown_summary(verdict(*kept, finding(answer="fail", sentence="experience 9 lost")))
    assert len(summary) <= MOST_CHARACTERS + 60
    assert "experience 9 lost" in summary
    shown = summary.count("| retention |")
    assert f"\n{201 - shown} more findings are in report.html." in summary
    assert 10 < shown < 201


def test_the_summary_survives_a_message_of_any_length_and_kind() -> None:
    summary = markdown_summary(
        verdict(finding(sentence="a | b\nc <b> " + "x" * 100_000), reason="y" * 50_000)
    )
    assert len(summary) < 5000
    assert "a \\| b c &lt;b>" in summary
