"""Hooks, forms, decision records and the pages for contributors fit the repository."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import commit_subjects
from tests.support.commit_subjects import LONGEST, RULE_HOLDS_AFTER, problem, subject_of
from tests.support.repository import ROOT, read_yaml, verbs

FORMS = [ROOT / ".github" / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")]
PAGES = ROOT / "docs" / "contributing"
RECORDS = sorted((PAGES / "decisions").glob("0*.md"))
SECTIONS = ["Context", "Decision", "Consequences"]
RECORD_LINES = 45
PACKAGES = re.compile(r"(?:--no-install-recommends) \\\n +([a-z][a-z0-9 -]+)")
"""The packages of Debian's that an installation command names on its second line."""

STOPWATCH = re.compile(
    r"perf_counter|process_time|thread_time|cpu_times|os\.times|total_seconds\(\)"
    r"|[^<>=!]= time\.monotonic\(\) - "
)
WAIT_LIMIT = re.compile(r"monotonic\(\) - .* < ([\d.]+)")
SHORTEST_LIMIT_SECONDS = 8.0


def git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_subjects_of_commits_are_short_enough_since_the_rule_holds() -> None:
    """A shallow clone may not reach back to the rule's beginning: then all that is there came after it."""
    if git("rev-parse", "--verify", "HEAD").returncode:
        assert not (ROOT / ".git").exists(), git("rev-parse", "--verify", "HEAD").stderr
        pytest.skip("there is no git history here: this is not a clone")
    known = git("cat-file", "-e", f"{RULE_HOLDS_AFTER}^{{commit}}").returncode == 0
    excluded = [f"^{RULE_HOLDS_AFTER}"] if known else []
    log = git("log", "--no-merges", "--format=%H%x00%s", "HEAD", *excluded)
    assert log.returncode == 0, log.stderr
    wrong = {}
    for line in log.stdout.splitlines():
        commit, _, subject = line.partition("\0")
        if error := problem(subject):
            wrong[commit[:10]] = error
    assert not wrong


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ("Cut it\n\nBecause.\n", "Cut it"),
        ("# comment of the editor\n\nCut it\n# more\n", "Cut it"),
        ("Cut it\nin two lines\n\nBecause.", "Cut it in two lines"),
        ("# nothing\n", ""),
    ],
)
def test_a_subject_is_the_first_paragraph_as_git_reads_it(message: str, read: str) -> None:
    assert subject_of(message) == read


def test_the_longest_subject_passes_and_one_more_character_does_not() -> None:
    assert problem("x" * LONGEST) is None
    error = problem("x" * (LONGEST + 1))
    assert error is not None
    assert f"has {LONGEST + 1} characters" in error
    assert problem("fixup! " + "x" * LONGEST) is None
    assert problem("fixup! " + "x" * (LONGEST + 1)) is not None
    assert problem("") is not None


@pytest.mark.parametrize(("subject", "refused"), [("Cut it", False), ("Cut it " * 11, True)])
def test_the_hook_lets_git_commit_what_the_rule_allows(subject: str, refused: bool, tmp_path: Path) -> None:
    """A real commit in a new repository, with the command of the hook's configuration."""
    (hook,) = (each for each in hooks() if each["stages"] == ["commit-msg"])
    command = hook["entry"].replace(".venv/bin/python", sys.executable)
    script = tmp_path / ".git" / "hooks" / "commit-msg"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "PYTHONPATH": str(ROOT),
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-c", "user.name=Ada", "-c", "user.email=ada@localhost", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("init", "-q").returncode == 0
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec {command} "$1"\n')
    script.chmod(0o755)
    done = run("commit", "--allow-empty", "-m", subject)
    assert (done.returncode != 0) is refused, done.stderr
    assert ("72 are allowed" in done.stderr) is refused
    assert (run("rev-parse", "--verify", "HEAD").returncode != 0) is refused


def test_the_hook_says_how_it_is_called_when_it_is_called_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert commit_subjects.main([]) == 2
    assert "FILE" in capsys.readouterr().err


def hooks() -> list[Mapping[str, Any]]:
    config = read_yaml(ROOT / ".pre-commit-config.yaml")
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    found: list[Mapping[str, Any]] = config["repos"][0]["hooks"]
    return [{**hook, "stages": hook.get("stages", config["default_stages"])} for hook in found]


def test_every_hook_calls_a_tool_of_the_development_environment() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    development = {re.split(r"[\[<>=]", name)[0] for name in project["optional-dependencies"]["dev"]}
    for hook in hooks():
        program, *words = hook["entry"].split()
        assert hook["language"] == "system", hook["id"]
        assert program.startswith(".venv/bin/"), hook["id"]
        assert Path(program).name in development | {"python"}, hook["id"]
        if words[:1] == ["-m"]:
            assert (ROOT / (words[1].replace(".", "/") + ".py")).exists(), hook["id"]


def test_hooks_run_what_make_check_runs_before_the_tests() -> None:
    checked = re.findall(r"\$\(BIN\)/(ruff check|ruff format|mypy)", (ROOT / "Makefile").read_text())
    called = [" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in hooks()]
    assert set(checked) <= set(called)


def test_the_container_and_the_nightly_run_install_the_packages_of_every_change() -> None:
    (wanted,) = PACKAGES.findall((ROOT / ".ci" / "run").read_text())
    names = set(wanted.split())
    assert {"chromium", "postgresql", "redis-server"} <= names
    for place in (".devcontainer/Dockerfile", ".github/workflows/nightly.yml"):
        (installed,) = PACKAGES.findall((ROOT / place).read_text())
        assert set(installed.split()) == names, place
    (named,) = re.findall(r"^sudo apt-get install (.*)$", (PAGES / "index.md").read_text(), flags=re.M)
    assert set(named.split()) == names


def test_the_container_is_built_from_the_file_beside_it_and_uses_verbs_that_exist() -> None:
    folder = ROOT / ".devcontainer"
    container = json.loads((folder / "devcontainer.json").read_text())
    assert (folder / container["build"]["dockerfile"]).exists()
    assert container["postCreateCommand"].split()[0] == "make"
    assert set(container["postCreateCommand"].split()[1:]) <= verbs()
    assert "python:3.11" in (folder / container["build"]["dockerfile"]).read_text()


def test_editors_wrap_where_ruff_does() -> None:
    sections = re.split(r"^\[(.+)\]$", (ROOT / ".editorconfig").read_text(), flags=re.M)
    settings = dict(zip(sections[1::2], sections[2::2], strict=True))
    length = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"]
    assert f"max_line_length = {length}\n" in settings["*.py"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_has_a_name_and_asks_for_what_is_needed(path: Path) -> None:
    form = read_yaml(path)
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"].get("label") for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_whoever_finds_a_hole_is_sent_to_the_private_way_and_to_no_address() -> None:
    for name in (".github/SECURITY.md", "CODE_OF_CONDUCT.md"):
        text = (ROOT / name).read_text()
        assert "Report a vulnerability" in text
        assert "@" not in text
    assert not read_yaml(ROOT / ".github/ISSUE_TEMPLATE/config.yml")["blank_issues_enabled"]


def test_decision_records_are_numbered_without_a_gap() -> None:
    assert [int(path.name[:4]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))
    assert len(RECORDS) >= 10


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_a_decision_record_is_short_and_has_its_sections(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {path.name[:4]}. ")
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    assert parts[1::2] == SECTIONS
    assert all(len(part.split()) >= 20 for part in parts[2::2])
    assert len(text.splitlines()) <= RECORD_LINES


def test_every_decision_record_is_in_the_index_under_its_title() -> None:
    index = " ".join((PAGES / "decisions" / "index.md").read_text().split())
    for path in RECORDS:
        title = path.read_text().splitlines()[0].removeprefix(f"# {path.name[:4]}. ")
        assert f"[{path.name[:4]}]({path.name}): {title}" in index


def pages() -> list[Path]:
    return sorted(PAGES.rglob("*.md"))


def test_every_page_for_contributors_is_linked_from_their_index() -> None:
    index = (PAGES / "index.md").read_text()
    for path in PAGES.glob("*.md"):
        if path.name != "index.md":
            assert f"]({path.name})" in index, path.name
    assert "](decisions/index.md)" in index


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_every_file_that_a_page_names_is_there(path: Path) -> None:
    """Between backticks: what begins with a folder of the repository, or is a file at its top."""
    tops = {entry.name for entry in ROOT.iterdir() if entry.name != ".venv"}
    for named in re.findall(r"`([\w./-]+)`", path.read_text()):
        if named.split("/")[0] in tops and ("/" in named or "." in named):
            assert (ROOT / named).exists(), named


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_every_test_that_a_page_names_is_there(path: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", path.read_text())) - {"test_"}
    written = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py")) if named else ""
    for name in named:
        assert f"def {name}(" in written, name


def test_no_test_measures_how_fast_the_machine_is() -> None:
    """Speeds belong in the benchmarks; a test may bound a wait, by far more than an idle machine needs."""
    wrong = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if path.name in ("test_cpu_budget.py", "test_habits.py"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            limits = [float(limit) for limit in WAIT_LIMIT.findall(line)]
            if STOPWATCH.search(line) or any(limit < SHORTEST_LIMIT_SECONDS for limit in limits):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert wrong == []


def test_the_page_names_every_verb_of_the_makefile() -> None:
    named = set(re.findall(r"^\| `make ([a-z-]+)", (PAGES / "index.md").read_text(), flags=re.M))
    assert named == verbs()


def test_modules_in_the_table_have_the_tests_that_it_names() -> None:
    rows = re.findall(
        r"^\| `([\w/]+\.py)` \| `([\w/]+\.py)` \|$", (PAGES / "find-tests.md").read_text(), flags=re.M
    )
    assert len(rows) >= 5
    for module, test in rows:
        folder, _, name = module.rpartition("/")
        assert test == f"tests/{folder}/test_{name}"


SYNCED_RENAMES = {
    ("service/training/tasks.py", "publish"): "_sync_tree",
    ("streams/store/experiences.py", "_write"): "os.fsync",
    ("streams/store/objects.py", "replace"): "_written",
    ("strategies/learning/state.py", "write_state"): "_write_files",
}
"""Functions that give files their names, each with what it calls first to bring them to the disk."""
UNSYNCED_RENAMES = {
    ("streams/store/experiences.py", "_fetch"): "a cache, checked by its digest as it is read"
}


def renames(path: Path) -> dict[tuple[str, str], list[str]]:
    """Functions of a module that rename -> what they call, up to the rename."""
    found = {}
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        called = [ast.unparse(call.func) for call in sorted(calls, key=lambda call: call.lineno)]
        # `.rename` of a path, and `replace` of one: that of a text or of a dataclass has other arguments.
        named = ("os.rename", "os.replace", "os.renames", "shutil.move")
        at = [i for i, name in enumerate(called) if name in named or name.endswith(".rename")]
        if at:
            found[path.relative_to(ROOT).as_posix(), function.name] = called[: at[0]]
    return found


def test_whatever_is_renamed_into_place_is_on_the_disk_before() -> None:
    """Else a power loss may keep the name and lose what stands under it."""
    found: dict[tuple[str, str], list[str]] = {}
    for package in ("service", "streams", "strategies"):
        for path in (ROOT / package).rglob("*.py"):
            found |= renames(path)
    assert set(found) == set(SYNCED_RENAMES) | set(UNSYNCED_RENAMES)
    for place, syncs in SYNCED_RENAMES.items():
        assert any(name.endswith(syncs) for name in found[place]), place
