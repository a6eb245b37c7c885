"""What is told of an exception: our own words, and never those of others."""

import ast
import re
from typing import cast

import pytest
import sqlalchemy as sa
import structlog

from service.errors import SettingsError
from service.incidents import tell
from service.settings import Settings
from service.state.jobs import Update
from service.updates import dispatcher
from service.updates.update import Updater
from strategies.errors import StrategyError
from streams.base import SourceError, StreamError
from tests.support.repository import ROOT
from tests.support.service_parts import claim, declare, enqueue, notes, read

FOLDERS = ("service/updates", "service/ingest", "service/state", "service/training", "service/api")


@pytest.mark.parametrize(
    "error",
    [StreamError("Odd."), SourceError("No."), StrategyError("Not so."), SettingsError("A.", fix="B.")],
)
def test_our_own_words_are_shown_as_they_are(error: Exception) -> None:
    told = tell(error, role="ingest")
    assert (told.text, told.incident) == (str(error), None)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("http://user:S3KRET@host"),
        OSError(2, "S3KRET", "/srv/S3KRET"),
        sa.exc.IntegrityError("INSERT S3KRET", {"a": "S3KRET"}, Exception("S3KRET")),
        KeyError("S3KRET"),
    ],
)
def test_of_a_foreign_exception_only_the_type_is_shown_and_a_number_for_the_log(error: Exception) -> None:
    told = tell(error, role="dispatch")
    assert "S3KRET" not in told.text
    assert re.fullmatch(
        rf"{type(error).__name__}: .* the dispatch role has it as incident [0-9a-f]{{12}}\.",
        told.text.replace("The log of ", ""),
    )
    assert told.incident is not None
    assert told.text.endswith(f"{told.incident}.")
    assert told != tell(error, role="dispatch")


def test_an_update_shows_no_word_of_a_foreign_exception_and_the_log_has_its_number(
    database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(database, experiences=1)
    update_id = enqueue(database)

    class Failing:
        def run(self, update: Update, note: object) -> None:
            raise RuntimeError("http://user:S3KRET@host")

    with structlog.testing.capture_logs() as lines:
        dispatcher._run_one(database, Settings(max_attempts=1), cast(Updater, Failing()), claim(database))
    failed = read(database, update_id)
    assert failed.state == "failed"
    assert failed.error is not None
    assert "S3KRET" not in failed.error
    (line,) = [line for line in lines if line["event"] == "update attempt failed"]
    assert line["incident"] in failed.error
    assert not any("S3KRET" in note for note in notes(database).values())


def test_no_part_of_the_service_writes_type_and_text_of_any_exception() -> None:
    """`f"{type(error).__name__}: {error}"` is how passwords came into answers."""
    found = []
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.JoinedStr):
                    continue
                text = ast.unparse(node)
                if "__name__" in text and "{error}" in text:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
