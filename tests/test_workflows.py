"""Workflows call what exists, may do no more than they must, and publish only what was tried."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import ROOT, read_yaml, verbs

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
RELEASED = "## [1.2.3] - 2026-11-30\n"


def jobs_of(path: Path) -> Mapping[str, Any]:
    jobs: Mapping[str, Any] = read_yaml(path)["jobs"]
    return jobs


def steps(path: Path) -> Iterator[Mapping[str, Any]]:
    for job in jobs_of(path).values():
        yield from job.get("steps", [])


def test_there_is_a_workflow_for_every_change_every_night_and_every_release() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "nightly", "release"]
    commands = {path.stem: [step["run"] for step in steps(path) if "run" in step] for path in WORKFLOWS}
    assert {".ci/run", "make docs"} <= set(commands["ci"])
    assert "make test-all" in commands["nightly"]
    assert jobs_of(ROOT / ".github/workflows/release.yml")["ci"]["uses"] == "./.github/workflows/ci.yml"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_only_verbs_and_programs_that_exist(path: Path) -> None:
    commands = "\n".join(step["run"] for step in steps(path) if "run" in step)
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= verbs()
    for program in re.findall(r"\.ci/[\w.-]+", commands):
        assert (ROOT / program).exists(), program
        if program.endswith(".py"):
            assert f"python {program}" in commands
        else:
            assert os.access(ROOT / program, os.X_OK), program


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_with_their_version_beside_it(path: Path) -> None:
    used = re.findall(r"uses: (.*)$", path.read_text(), flags=re.M)
    for action in used:
        if not action.startswith("./"):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
        else:
            assert (ROOT / action).exists(), action


def test_one_action_has_one_commit_in_all_workflows() -> None:
    used = {
        line for path in WORKFLOWS for line in re.findall(r"uses: ([^.].*@.*)$", path.read_text(), flags=re.M)
    }
    assert len({line.split("@")[0] for line in used}) == len(used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_only_publishing_has_an_identity(path: Path) -> None:
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    more = {name: job["permissions"] for name, job in jobs_of(path).items() if "permissions" in job}
    assert more == ({"publish": {"id-token": "write"}} if path.stem == "release" else {})
    assert "secrets." not in path.read_text()
    # YAML 1.1 reads the key `on` as a truth value.
    assert "pull_request_target" not in workflow[True]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_job_ends_and_leaves_no_credential_in_its_checkout(path: Path) -> None:
    for name, job in jobs_of(path).items():
        assert "timeout-minutes" in job or "uses" in job, name
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_no_expression_of_an_event_is_pasted_into_a_shell() -> None:
    for path in WORKFLOWS:
        for step in steps(path):
            assert "${{" not in step.get("run", ""), path.name


def test_what_publishes_waits_for_tests_and_for_the_tried_wheel_and_checks_out_nothing() -> None:
    jobs = jobs_of(ROOT / ".github/workflows/release.yml")
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}
    assert jobs["publish"]["environment"] == "release"
    assert [step["uses"].split("@")[0] for step in jobs["publish"]["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]


def test_pins_and_actions_are_raised_by_proposals() -> None:
    updates = read_yaml(ROOT / ".github" / "dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"pip", "github-actions"}


@pytest.mark.parametrize(
    ("tag", "changelog", "files", "message"),
    [
        ("v1.2.3", RELEASED, ("holdfast_cl-1.2.3-py3-none-any.whl", "holdfast_cl-1.2.3.tar.gz"), ""),
        (
            "v1.2.4",
            RELEASED,
            ("holdfast_cl-1.2.3-py3-none-any.whl", "holdfast_cl-1.2.3.tar.gz"),
            "tag v1.2.3",
        ),
        (
            "v1.2.3",
            "## [Unreleased]\n",
            ("holdfast_cl-1.2.3-py3-none-any.whl", "holdfast_cl-1.2.3.tar.gz"),
            "no line '## [1.2.3]",
        ),
        ("v1.2.3", RELEASED, ("holdfast-1.2.3-py3-none-any.whl",), "instead of"),
    ],
)
def test_a_release_is_published_only_where_tag_changelog_and_files_agree(
    tag: str, changelog: str, files: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    project = '[project]\nname = "holdfast-cl"\nversion = "1.2.3"\n'
    (tmp_path / "pyproject.toml").write_text(project)
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    (tmp_path / "dist").mkdir()
    for name in files:
        (tmp_path / "dist" / name).touch()
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "check_release.py"), tag, "dist"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (1 if message else 0), done.stderr
    assert message in done.stderr
