"""Migrations, and how each database is opened."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from service.errors import DatabaseAwayError, SettingsError
from service.state import database as module
from service.state import holdouts, jobs, outcomes
from service.state.database import answering, connect, lock_pipeline, migrate, now
from service.state.outcomes import Outcomes
from service.training.answers import details
from streams.state import status
from streams.state.dead_letters import get
from streams.state.manifest import METADATA, Commit, Manifest, Span
from tests.support import postgres
from tests.support.threads import together


def differences(engine: sa.Engine) -> list[object]:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, METADATA))


def migrate_down(engine: sa.Engine, revision: str) -> None:
    """What a person does who goes back to an older release."""
    config = Config()
    scripts = str(Path(module.__file__).parent / "migrations").replace("%", "%%")
    config.set_main_option("script_location", scripts)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def test_migrations_from_empty_give_exactly_the_declared_tables(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine)
    assert differences(engine) == []
    engine.dispose()


def test_migrating_twice_is_harmless(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO pipelines VALUES ('kept', '{}', 0)"))
    migrate(engine)
    with engine.begin() as connection:
        assert connection.execute(sa.text("SELECT name FROM pipelines")).scalar() == "kept"
    assert differences(engine) == []
    engine.dispose()


def test_dead_letters_of_the_release_before_get_their_names_and_can_be_replayed(
    empty_database_url: str,
) -> None:
    engine = connect(empty_database_url)
    migrate(engine, revision="0001")
    letters = [("p", place, b'{"id": "r%d"}' % number) for number, place in enumerate(["1:1", "1:2", "2:1"])]
    with engine.begin() as connection:
        insert = sa.text(
            "INSERT INTO dead_letters (pipeline, partition, position, reason, detail, payload, created_at) "
            "VALUES ('digits', :partition, :position, 'malformed', 'No.', :payload, 7.5)"
        )
        for partition, position, payload in letters:
            connection.execute(insert, {"partition": partition, "position": position, "payload": payload})
        connection.execute(sa.text("INSERT INTO offsets VALUES ('digits', 'p', '2:1')"))
    migrate(engine)
    assert differences(engine) == []
    manifest = Manifest(engine)
    assert manifest.cursors("digits") == {"p": "2:1"}
    found = manifest.dead_letters("digits")
    assert sorted((each.partition, each.position, each.payload) for each in found) == letters
    for letter in found:
        assert (letter.whole, letter.form, letter.replayed_at) == (True, {"wire": "json"}, None)
        with engine.begin() as connection:
            assert get(connection, "digits", letter.name) == letter
    manifest.commit("digits", Commit(0, {"p": Span("2:1", "3:1")}, dead_letters=found))
    assert len(manifest.dead_letters("digits")) == 3
    engine.dispose()


def test_dead_letters_keep_their_names_when_the_column_is_renamed_and_back(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine, revision="0005")
    with engine.begin() as connection:
        insert = sa.text(
            "INSERT INTO dead_letters (pipeline, letter, partition, position, reason, detail, payload, "
            "whole_bytes, form, created_at) VALUES ('digits', :letter, 'p', :letter, 'malformed', 'No.', "
            ":payload, 3, '{}', 7.5)"
        )
        for letter in ("0f3c5d7e9a1b2c4d", "1f3c5d7e9a1b2c4d"):
            connection.execute(insert, {"letter": letter, "payload": b"\x00no"})
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(insert, {"letter": "0f3c5d7e9a1b2c4d", "payload": b"\x00no"})
    migrate(engine)
    assert differences(engine) == []
    with engine.begin() as connection:
        found = get(connection, "digits", "0f3c5d7e9a1b2c4d")
        assert found is not None
        assert (found.name, found.payload, found.replayed_at) == ("0f3c5d7e9a1b2c4d", b"\x00no", None)
        insert = sa.text(str(insert).replace("letter,", "name,", 1))
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(insert, {"letter": "1f3c5d7e9a1b2c4d", "payload": b"\x00no"})
    migrate_down(engine, "0005")
    with engine.begin() as connection:
        kept = connection.execute(sa.text("SELECT letter FROM dead_letters ORDER BY letter")).scalars().all()
        assert kept == ["0f3c5d7e9a1b2c4d", "1f3c5d7e9a1b2c4d"]
    migrate(engine)
    assert differences(engine) == []
    engine.dispose()


def test_answers_without_details_are_kept_and_can_get_them(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine, revision="0003")
    with engine.begin() as connection:
        row = {"pipeline": "p", "version": 1, "experience": 0, "part": "gate", "records": 2, "bits": b"\x80"}
        names = ", ".join(row)
        places = ", ".join(f":{name}" for name in row)
        connection.execute(sa.text(f"INSERT INTO answers ({names}) VALUES ({places})"), row)
    migrate(engine)
    assert differences(engine) == []
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5]], dtype=np.float32)
    said = details(probabilities, np.array([0, 1]))
    with engine.begin() as connection:
        assert holdouts.of_version(connection, "p", version=1)[0].tolist() == [True, False]
        assert holdouts.details_of_version(connection, "p", version=1) == {}
        bits = {0: np.array([False, False])}
        for each in (said, replace(said, brier=said.brier + 1)):
            holdouts.save(connection, "p", version=1, answered=bits, details={0: each})
        assert holdouts.of_version(connection, "p", version=1)[0].tolist() == [True, False]
        kept = holdouts.details_of_version(connection, "p", version=1)[0]
    assert kept.brier.tolist() == [0.125, 0.5]
    assert kept.score is not None
    assert kept.score.tolist() == [0.25, 0.5]
    assert kept.predicted.tolist() == [0, 0]
    engine.dispose()


def test_reported_records_without_a_match_keep_their_number_under_the_new_name(
    empty_database_url: str,
) -> None:
    engine = connect(empty_database_url)
    migrate(engine, revision="0005")
    stored = {"a": '{"records": 3, "waiting": 2}', "b": "{}"}
    columns = "pipeline, revision, status, reason, actor, since, pending, duplicates, aged_out"
    insert = sa.text(
        f"INSERT INTO stream_states ({columns}) VALUES (:name, 4, 'running', '', 'x', 1.5, :pending, 5, 6)"
    )
    with engine.begin() as connection:
        for name, pending in stored.items():
            connection.execute(insert, {"name": name, "pending": pending})
    migrate(engine)
    assert differences(engine) == []
    with engine.begin() as connection:
        state = status.read(connection, "a")
        assert (state.pending, state.revision, state.aged_out) == ({"records": 3, "unmatched": 2}, 4, 6)
        assert status.read(connection, "b").pending == {}
    migrate_down(engine, "0005")
    with engine.begin() as connection:
        rows = connection.execute(sa.text("SELECT pending FROM stream_states ORDER BY pipeline")).scalars()
        kept = [json.loads(row) if isinstance(row, str) else row for row in rows]
        assert kept == [{"records": 3, "waiting": 2}, {}]
    engine.dispose()


def test_updates_of_earlier_releases_get_the_guard_that_decided_from_their_verdicts(
    empty_database_url: str,
) -> None:
    engine = connect(empty_database_url)
    migrate(engine, revision="0008")
    found = [
        {"guard": "values", "answer": "pass", "sentence": "the worst of them"},
        {"guard": "retention", "answer": "undecided", "sentence": "experience 0 may have lost"},
        {"guard": "budget", "answer": "undecided", "sentence": "the worst of them"},
    ]
    verdict = json.dumps({"reason": "the worst of them", "findings": found})
    other = json.dumps({"reason": "in other words", "findings": found})
    stored: list[tuple[str, str | None, str | None]] = [
        ("a", "review", verdict),
        ("b", "reject", verdict),
        ("c", "promote", verdict),
    ]
    # One whose verdict does not say it, and one that has none.
    stored += [("d", "review", other), ("e", None, None)]
    # More than are read at a time.
    stored += [(f"f{number:03}", "review", verdict) for number in range(250)]
    columns = "id, pipeline, requested_by, wants_cut, state, attempt, failures, not_before, created_at"
    insert = sa.text(
        f"INSERT INTO updates ({columns}, experiences, outcome, verdict, finished_at) "
        "VALUES (:id, 'p', 'test', :no, 'done', 1, 0, 0, 1.5, '[]', :outcome, :verdict, 2.5)"
    )
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO pipelines VALUES ('p', '{}', 0)"))
        for name, outcome, document in stored:
            values = {"id": name, "no": False, "outcome": outcome, "verdict": document}
            connection.execute(insert, values)
    migrate(engine)
    assert differences(engine) == []
    counted = {"budget": 251, "unknown": 1}
    for _ in range(2):
        with engine.begin() as connection:
            assert [jobs.get(connection, name).cause for name in "abcde"] == ["budget"] * 2 + [None] * 3
            latest = outcomes.latest(connection, ["p"], last=1000)["p"]
            assert latest == Outcomes(1, asked=counted, rejected={"budget": 1}, nothing_to_learn=1)
        migrate_down(engine, "0008")
        migrate(engine)
    assert differences(engine) == []
    engine.dispose()


def test_processes_that_migrate_at_once_do_not_disturb_each_other(empty_database_url: str) -> None:
    script = "import sys; from service.state.database import connect, migrate; migrate(connect(sys.argv[1]))"
    command = [sys.executable, "-W", "error", "-c", script, empty_database_url]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    engine = connect(empty_database_url)
    assert differences(engine) == []
    engine.dispose()


def test_sqlite_survives_power_loss_and_lets_readers_go_on(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'test.db'}")
    with engine.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    engine.dispose()


def test_postgresql_lets_a_waiter_see_what_it_waited_for(postgres_server: postgres.Server) -> None:
    engine = connect(
        postgres_server.url(postgres.TEMPLATE) + "?options=-cdefault_transaction_isolation=serializable"
    )
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
    engine.dispose()


def test_a_user_without_rights_and_a_password_in_the_query_end_in_one_sentence(
    postgres_server: postgres.Server,
) -> None:
    url = sa.make_url(postgres_server.empty_database())
    owner = connect(url.render_as_string(hide_password=False))
    with owner.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE guest LOGIN")
    guest = connect(url.set(username="guest", query={"password": "hunter2"}).render_as_string())
    with pytest.raises(DatabaseAwayError, match="permission denied") as caught, answering(guest):
        migrate(guest)
    assert "hunter2" not in str(caught.value)
    with owner.begin() as connection:
        connection.exec_driver_sql("DROP ROLE guest")
    for engine in (owner, guest):
        engine.dispose()
    postgres_server.drop(str(url))


def test_a_wrong_statement_is_no_database_that_is_away(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    with pytest.raises(sa.exc.DBAPIError), answering(engine), engine.begin() as connection:
        connection.exec_driver_sql("SELECT nothing FROM nowhere")
    engine.dispose()


def test_a_folder_with_a_per_cent_sign_can_be_migrated_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "100% ours"
    shutil.copytree(Path(module.__file__).parent / "migrations", folder / "migrations")
    monkeypatch.setattr(module, "__file__", str(folder / "database.py"))
    engine = connect(f"sqlite:///{tmp_path / 'test.db'}")
    migrate(engine)
    assert differences(engine) == []
    engine.dispose()


def test_the_clock_is_the_time_of_day_in_seconds(database: sa.Engine) -> None:
    with database.begin() as connection:
        assert now(connection) == pytest.approx(time.time(), abs=60)
        earlier = now(connection)
        assert now(connection) >= earlier


def test_one_pipeline_is_held_by_one_transaction_at_a_time(database: sa.Engine) -> None:
    inside: list[int] = []
    most: list[int] = []

    def hold(number: int) -> None:
        for _ in range(5):
            with database.begin() as connection:
                lock_pipeline(connection, "p")
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    together(8, hold)
    assert max(most) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://root:secret@host/name", "names a 'mysql' database"),
        ("not a url with secret", "is not a database URL"),
    ],
)
def test_another_database_is_refused_without_showing_the_password(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        connect(url)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingsError, match=r"holdfast-cl\[postgres\]"):
        connect("postgresql://postgres@127.0.0.1:1/name")


def test_marks_of_the_release_before_are_kept_and_nobody_is_made_to_keep_a_holdout(
    empty_database_url: str,
) -> None:
    engine = connect(empty_database_url)
    migrate(engine, revision="0008")
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO holdout_states (pipeline, experience, retired, pinned, margin) "
                "VALUES ('p', 3, :no, :yes, 0.125)"
            ),
            {"no": False, "yes": True},
        )
    migrate(engine)
    assert differences(engine) == []
    with engine.begin() as connection:
        assert holdouts.marks(connection, "p") == {3: holdouts.Mark(pinned=True, margin=0.125)}
        holdouts.set_mark(connection, "p", experience=3, mark=holdouts.Mark(kept=True, kept_through=2))
        holdouts.set_mark(connection, "p", experience=5, mark=holdouts.Mark(traffic=0.25))
        holdouts.set_mark(connection, "p", experience=4, mark=holdouts.Mark(kept=True))
        holdouts.end_keeping(connection, "p", {3, 9})
        assert holdouts.marks(connection, "p") == {
            3: holdouts.Mark(),
            4: holdouts.Mark(kept=True),
            5: holdouts.Mark(traffic=0.25),
        }
        holdouts.end_keeping(connection, "p", set())
    migrate_down(engine, "0008")
    migrate(engine)
    assert differences(engine) == []
    engine.dispose()
