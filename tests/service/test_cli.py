"""The command `holdfast` as people and scripts run it, against a real API process."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from service.state.database import ledger, updates
from tests.support.api_parts import Api, ingest, learn, record, running_api, spec
from tests.support.commands import holdfast
from tests.support.running import free_port

NAMES = count()
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def run(api: Api) -> Run:
    """The command, pointed at the API."""
    return lambda *arguments, **more: holdfast(
        *arguments, env={"HOLDFAST_URL": api.url, "USER": "ada"}, **more
    )


@pytest.fixture
def pipeline(api: Api, run: Run, tmp_path: Path) -> Iterator[str]:
    name = f"p{next(NAMES)}"
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(spec(name)))
    done = run("pipeline", "create", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Pipeline {name} is declared.\nWith 1,000 records an experience, about ")
    yield name
    with api.engine.begin() as connection:
        connection.execute(sa.update(updates).values(state="done"))


def refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One line on standard error that holds the words, and nothing else."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("holdfast: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def ndjson(*names: str, **changes: Any) -> str:
    return "".join(json.dumps(record(name, **changes)) + "\n" for name in names)


def test_help_imports_nothing_heavy() -> None:
    # What it costs, `make bench AREA=loop` says.
    heavy = ("torch", "ray", "mlflow", "fastapi", "numpy", "sqlalchemy", "httpx", "rich")
    script = (
        "import sys, typer.testing, service.cli as cli\n"
        "assert typer.testing.CliRunner().invoke(cli.app, ['--help']).exit_code == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    # typer's own test runner imports rich; the command does not.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.replace("'", '"'))) <= {"rich"}
    assert "pipeline" in holdfast("--help").stdout


def test_a_yaml_file_becomes_a_pipeline(run: Run, pipeline: str) -> None:
    shown = run("pipeline", "show", pipeline)
    assert json.loads(shown.stdout)["spec"]["name"] == pipeline
    assert f"{pipeline}: no champion, 0 experiences\n" in run("pipeline", "list").stdout
    listed = json.loads(run("pipeline", "list", "--json").stdout)
    assert pipeline in [view["spec"]["name"] for view in listed]


def test_a_declaration_prints_what_its_gate_means_also_as_json(api: Api, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(spec("says", split={"audit": 0})))
    done = run("pipeline", "create", file)
    assert done.returncode == 0, done.stderr
    lines = " ".join(done.stdout.split())
    assert "harmless updates that flip 6 % of the answers will ask you" in lines
    assert lines.endswith("Nothing is sealed (split.audit is 0), so the budget is never held.")
    file.write_text(yaml.safe_dump(spec("says-json")))
    view = json.loads(run("pipeline", "create", file, "--json").stdout)
    assert view["gate_plan"]["records"] == 1000
    file.write_text(yaml.safe_dump(spec("says-no", trigger={"records": 30})))
    refused(run("pipeline", "create", file), 1, "With 30 records an experience", "accept: true")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "not YAML"),
        ("name: 2026-01-31", "date"),
        ("- a list", "must be a JSON object"),
        (yaml.safe_dump({**spec("x"), "gate": {"margin": 7}}), "gate.margin"),
    ],
)
def test_a_yaml_file_that_is_no_pipeline_is_refused_in_one_line(
    run: Run, tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    refused(run("pipeline", "create", file), 1, words)


def test_a_file_that_cannot_be_read_is_wrong_usage(run: Run, tmp_path: Path) -> None:
    refused(run("pipeline", "create", tmp_path / "nowhere.yaml"), 2, "cannot be read")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    refused(run("pipeline", "create", tmp_path / "binary"), 2, "UTF-8")
    done = run("push", "p", tmp_path / "nowhere.ndjson")
    assert done.returncode == 2
    assert "nowhere.ndjson" in done.stderr


def test_a_file_of_records_is_pushed_in_batches_and_quietly(run: Run, api: Api, pipeline: str) -> None:
    done = run("push", pipeline, "-", "--batch", "2", text=ndjson("a", "b", "c") + "\n")
    assert (done.returncode, done.stdout) == (0, "3 records are stored and will be learnt once.\n")
    assert done.stderr == ""
    assert api.http.get(f"/v1/pipelines/{pipeline}").json()["pending_records"] == 3


def test_a_sending_with_a_key_can_be_repeated(run: Run, api: Api, pipeline: str) -> None:
    stored = "is stored and will be learnt once.\n"
    for names, shown in (
        ("ab", "2 records are stored and will be learnt once.\n"),
        ("abc", f"1 record {stored}2 records were stored before, and not again.\n"),
        ("abc", "3 records were stored before, and not again.\n"),
    ):
        done = run("push", pipeline, "-", "--batch", "2", "--key", "monday", text=ndjson(*names))
        assert (done.returncode, done.stdout) == (0, shown)
    other = run("push", pipeline, "-", "--batch", "2", "--key", "monday", text=ndjson("a", "x"))
    refused(other, 1, "'monday:0' was used before", "a key of their own")
    assert api.http.get(f"/v1/pipelines/{pipeline}").json()["pending_records"] == 3


def test_a_bad_record_says_what_was_stored_before_it(run: Run, api: Api, pipeline: str) -> None:
    text = ndjson("a", "b") + ndjson("c", label="sideways")
    refused(
        run("push", pipeline, "-", "--batch", "2", text=text), 1, "first 2 records are stored", "'sideways'"
    )
    assert api.http.get(f"/v1/pipelines/{pipeline}").json()["pending_records"] == 2


def test_an_empty_file_is_no_success(run: Run, pipeline: str) -> None:
    refused(run("push", pipeline, "-", text="\n\n"), 1, "no record")


def test_an_update_is_started_listed_and_shown(run: Run, pipeline: str) -> None:
    run("push", pipeline, "-", text=ndjson("a"))
    started = run("update", "start", pipeline, "--no-wait", "--key", "k")
    assert started.returncode == 0
    update = started.stdout.strip()
    view = json.loads(run("update", "show", update).stdout)
    assert (view["state"], view["requested_by"]) == ("queued", "ada")
    assert update in run("update", "list", pipeline).stdout
    assert json.loads(run("update", "list", pipeline, "--json").stdout)[0]["id"] == update
    refused(run("update", "start", pipeline, "--no-wait", "--key", "k"), 1, update)


def test_an_update_is_cancelled_with_a_reason(run: Run, pipeline: str) -> None:
    run("push", pipeline, "-", text=ndjson("a"))
    update = run("update", "start", pipeline, "--no-wait").stdout.strip()
    refused(run("update", "cancel", update, "-m", " "), 1, "reason", "must not be empty")
    done = run("update", "cancel", update, "--reason", "wrong day")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{update}: cancelled by ada.\n", "")
    assert "failed            Cancelled by ada: wrong day\n" in run("update", "list", pipeline).stdout
    refused(run("update", "cancel", update, "-m", "again"), 1, "cancelled already, by ada at")
    refused(run("update", "cancel", "u-1", "-m", "why"), 1, "There is no update 'u-1'")
    without = run("update", "cancel", update)
    assert without.returncode == 2
    assert "--reason" in without.stderr


def test_waiting_for_an_update_ends_in_time(run: Run, pipeline: str) -> None:
    run("push", pipeline, "-", text=ndjson("a"))
    refused(run("update", "start", pipeline, "--timeout", "0"), 1, "still queued", "dispatcher")


def test_a_review_is_approved_then_rolled_back_and_the_ledger_tells(
    run: Run, api: Api, pipeline: str
) -> None:
    learn(api, pipeline, "promote")
    update = learn(api, pipeline, "review")
    refused(run("update", "approve", update, "-m", "  "), 1, "reason", "must not be empty")
    approved = run("update", "approve", update, "-m", "looks right")
    assert (approved.returncode, approved.stdout) == (0, f"{update}: approved by ada.\n")
    refused(run("update", "reject", update, "-m", "no"), 1, "ada")
    assert json.loads(run("champion", pipeline).stdout)["version"] == 2
    assert run("rollback", pipeline, "-m", "strange").stdout == (
        f"Version 1 is the champion of {pipeline} again.\n"
    )
    refused(run("rollback", pipeline, "-m", "more"), 1, "first champion")
    refused(run("rollback", pipeline, "-m", "more", "--version", "9"), 1, "never champion")
    shown = run("ledger", pipeline)
    assert shown.returncode == 0
    assert [line.split()[2] for line in shown.stdout.splitlines()[:-1]] == [
        "promote",
        "review",
        "promote",
        "rollback",
    ]
    assert shown.stdout.endswith("The chain of hashes holds.\n")
    assert len(json.loads(run("ledger", pipeline, "--json").stdout)["entries"]) == 4


def test_a_rejected_review_leaves_its_experience_parked(run: Run, api: Api, pipeline: str) -> None:
    update = learn(api, pipeline, "review")
    assert run("update", "reject", update, "-m", "too risky").returncode == 0
    shown = run("pipeline", "experiences", pipeline)
    assert "parked" in shown.stdout
    assert "too risky" in shown.stdout
    assert json.loads(run("pipeline", "experiences", pipeline, "--json").stdout)[0]["state"] == "parked"


def test_a_broken_ledger_is_a_failure(run: Run, api: Api, pipeline: str) -> None:
    learn(api, pipeline, "promote")
    with api.engine.begin() as connection:
        connection.execute(sa.update(ledger).where(ledger.c.pipeline == pipeline).values(reason="forged"))
    done = run("ledger", pipeline)
    assert done.returncode == 1
    assert done.stdout.endswith("THE CHAIN OF HASHES IS BROKEN.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("pipeline", "show", "nobody"),
        ("pipeline", "experiences", "a/b?c#d"),
        ("update", "list", "../../healthz"),
        ("update", "show", "u-1"),
    ],
)
def test_what_does_not_exist_is_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    refused(run(*arguments), 1, "There is no")


def test_an_api_that_is_not_there_is_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    refused(holdfast("pipeline", "list", "--url", url), 1, "does not answer", "holdfast up")


def test_a_stranger_on_the_port_is_one_line() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as stranger:
        Thread(target=stranger.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{stranger.server_port}"
        refused(holdfast("pipeline", "list", "--url", url), 1, "not as Holdfast's API does", "--url")
        stranger.shutdown()


def test_a_url_that_is_none_is_wrong_usage() -> None:
    refused(holdfast("pipeline", "list", "--url", "nonsense"), 2, "not the URL")


def test_a_bad_setting_is_named() -> None:
    refused(holdfast("ledger", "x", env={"HOLDFAST_PORT": "x"}), 2, "HOLDFAST_PORT:")
    refused(holdfast("serve", "api", env={"HOLDFAST_TRAINERS": "0"}), 2, "HOLDFAST_TRAINERS:")


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = str(tmp_path / "file" / "home")
    refused(holdfast("serve", "api", env={"HOLDFAST_HOME": home}), 2, home, "HOLDFAST_HOME")


def test_a_database_url_is_explained_and_its_password_is_not_shown(tmp_path: Path) -> None:
    url = "oracle://me:hunter2@host/db"
    done = holdfast("serve", "api", env={"HOLDFAST_HOME": str(tmp_path), "HOLDFAST_DATABASE_URL": url})
    refused(done, 2, "HOLDFAST_DATABASE_URL")
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    "command",
    ["migrate", "update reproduce u-1", "up", "serve api", "serve ingest", "serve dispatch"],
)
def test_a_database_that_is_away_is_one_line(command: str, tmp_path: Path) -> None:
    url = f"postgresql://me:hunter2@127.0.0.1:{free_port()}/db"
    env = {"HOLDFAST_HOME": str(tmp_path), "HOLDFAST_DATABASE_URL": url}
    done = holdfast(*command.split(), env=env)
    refused(done, 1, "127.0.0.1", "cannot be used: connection failed", "HOLDFAST_DATABASE_URL")
    assert "hunter2" not in done.stderr


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "holdfast.db").write_text("this is not a database, but a text of more than a page" * 50)
    for command in ("migrate", "serve api"):
        refused(holdfast(*command.split(), env={"HOLDFAST_HOME": str(tmp_path)}), 1, "not a database")


def test_a_database_of_another_release_is_one_line(tmp_path: Path) -> None:
    env = {"HOLDFAST_HOME": str(tmp_path)}
    for role in ("ingest", "dispatch"):
        refused(holdfast("serve", role, env=env), 1, "empty, or of an older release", "holdfast migrate")
    assert holdfast("migrate", env=env).returncode == 0
    with sqlite3.connect(tmp_path / "holdfast.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")
    commands = ("migrate", "up", "serve api", "serve ingest", "serve dispatch", "update reproduce u-1")
    for command in commands:
        refused(holdfast(*command.split(), env=env), 1, "A newer release", "0099", "upgrades")


def test_wrong_usage_shows_the_usage() -> None:
    for arguments in (("push",), ("update", "start"), ("surprise",), ("ledger", "x", "--surprise")):
        done = holdfast(*arguments)
        assert done.returncode == 2
        assert "Usage: " in done.stderr
        assert "Traceback" not in done.stderr


def test_log_lines_can_be_json_a_traceback_included(tmp_path: Path) -> None:
    with running_api(tmp_path, HOLDFAST_LOG_FORMAT="json") as api:
        with api.engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE roles RENAME TO gone"))
        assert api.http.get("/readyz").status_code == 503
        lines = [json.loads(line) for line in api.log.splitlines()]
    (failure,) = [line for line in lines if line["level"] == "error"]
    assert failure["event"] == "database does not answer"
    assert "no such table" in failure["exception"]


def files_pipeline(api: Api, run: Run, tmp_path: Path, *lines: bytes) -> str:
    """A pipeline that has read a file with these lines, in this process."""
    name = f"p{next(NAMES)}"
    folder = api.settings.root / "incoming" / name
    folder.mkdir(parents=True)
    source = {"kind": "files", "location": str(folder), "settle_seconds": 0}
    (tmp_path / "files.yaml").write_text(yaml.safe_dump(spec(name, source=source)))
    assert run("pipeline", "create", tmp_path / "files.yaml").returncode == 0
    (folder / "a.ndjson").write_bytes(b"".join(line + b"\n" for line in lines))
    ingest(api, name)
    return name


def test_a_stream_is_shown_in_a_few_lines(api: Api, run: Run, tmp_path: Path) -> None:
    name = files_pipeline(api, run, tmp_path, json.dumps(record("r1")).encode(), b"poison")
    done = run("stream", "status", name)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{name}: running"
    assert "  source files, trigger records, 2 classes" in lines
    assert "  dead letters: 1 malformed" in lines
    assert json.loads(run("stream", "status", name, "--json").stdout)["pipeline"] == name
    refused(run("stream", "status", "none"), 1, "no pipeline 'none'")


def test_a_held_stream_is_exit_status_one_until_it_is_resumed(run: Run, pipeline: str) -> None:
    assert run("stream", "pause", pipeline, "--reason", "It is being moved.").stdout == (
        f"The stream of {pipeline} is paused.\n"
    )
    done = run("stream", "status", pipeline)
    assert done.returncode == 1
    assert "It is being moved. (ada)" in done.stdout
    refused(run("stream", "pause", pipeline, "-m", "again"), 1, "paused already")
    assert run("stream", "resume", pipeline, "-m", "It stands.").returncode == 0
    assert run("stream", "status", pipeline).returncode == 0
    refused(run("stream", "resume", pipeline, "-m", "again"), 1, "not held")


def test_dead_letters_are_listed_shown_and_replayed(api: Api, run: Run, tmp_path: Path) -> None:
    bad = json.dumps(record("r2", label="sideways")).encode()
    name = files_pipeline(api, run, tmp_path, b"poison", bad)
    listed = run("stream", "dead-letters", name).stdout.splitlines()
    assert len(listed) == 2
    (line,) = run("stream", "dead-letters", name, "--only", "unknown-label").stdout.splitlines()
    dead_letter = line.split()[0]
    assert "'sideways'" in line
    assert json.loads(run("stream", "show", name, dead_letter).stdout)["text"] == bad.decode()
    done = run("stream", "replay", name)
    assert done.returncode == 1
    assert done.stdout.startswith("0 dead letters are in the stream again.\n")
    corrected = tmp_path / "corrected.json"
    corrected.write_text(json.dumps(record("r2")))
    done = run("stream", "replay", name, dead_letter, "--payload", corrected)
    assert (done.returncode, done.stdout) == (0, "1 dead letter is in the stream again.\n")
    done = run("stream", "replay", name, dead_letter, "--payload", "-", text=json.dumps(record("r2")))
    assert done.returncode == 1
    assert "replayed before" in done.stdout
    assert "replayed" in run("stream", "dead-letters", name).stdout
    refused(run("stream", "show", name, "../../x"), 1, "dead-letters")
    refused(run("stream", "replay", name, "0" * 16), 1, "no dead letter")
