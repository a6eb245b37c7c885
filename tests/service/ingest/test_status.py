"""The state of a stream, and the pause and resume of a person; on SQLite and on PostgreSQL."""

import pytest
import sqlalchemy as sa

from service.errors import PipelineUnknownError, StreamConflictError
from service.ingest import status
from service.state.ledger import By
from streams.sources.datasets import DIGITS_SCHEMA
from streams.state import status as stream_status
from streams.state.dead_letters import DeadLetter
from streams.state.manifest import Commit, Manifest, Span
from tests.support.service_parts import NAME, declare


def test_a_new_stream_runs_and_holds_nothing(database: sa.Engine) -> None:
    declare(database)
    found = status.look(database, NAME)
    assert (found.state.status, found.experiences, found.records, found.last_cut) == ("running", 0, 0, None)
    assert (found.backlog_records, found.classes, found.dead_letters) == (0, 2, {})


def test_a_stream_that_nobody_pushes_to_has_no_backlog(database: sa.Engine) -> None:
    declare(database, schema=DIGITS_SCHEMA.model_dump(), source={"kind": "datasets"})
    assert status.look(database, NAME).backlog_records is None


def test_dead_letters_are_counted_by_reason(database: sa.Engine) -> None:
    declare(database)
    refused = [DeadLetter("p", str(index), reason, "No.", b"") for index, reason in enumerate("aab")]
    Manifest(database).commit(NAME, Commit(0, {"p": Span("", "3")}, dead_letters=refused))
    found = status.look(database, NAME)
    assert (found.dead_letters, found.replayed_dead_letters) == ({"a": 2, "b": 1}, 0)
    assert found.cursors == {"p": "3"}


def test_a_person_pauses_and_resumes_once_each(database: sa.Engine) -> None:
    declare(database)
    with pytest.raises(StreamConflictError, match="is running, not held"):
        status.resume(database, NAME, by=By("Ada", "why not"))
    status.pause(database, NAME, by=By("Ada", "it is being moved"))
    state = status.look(database, NAME).state
    assert (state.status, state.actor, state.reason) == ("paused", "Ada", "it is being moved")
    with pytest.raises(StreamConflictError, match="is paused already: it is being moved"):
        status.pause(database, NAME, by=By("Bob", "me too"))
    status.resume(database, NAME, by=By("Bob", "it was moved"))
    state = status.look(database, NAME).state
    assert (state.status, state.actor, state.reason) == ("running", "Bob", "Resumed: it was moved")


def test_a_stream_of_no_pipeline_is_unknown(database: sa.Engine) -> None:
    for act in (status.pause, status.resume):
        with pytest.raises(PipelineUnknownError):
            act(database, NAME, by=By("Ada", "why"))
    with pytest.raises(PipelineUnknownError):
        status.look(database, NAME)


@pytest.mark.parametrize("refused", [1, 3, 40])
def test_a_stream_that_refuses_everything_says_so_at_once(database: sa.Engine, refused: int) -> None:
    declare(database)
    dead = [DeadLetter("p", str(index), "bad-label", f"No {index}.", b"") for index in range(refused)]
    Manifest(database).commit(NAME, Commit(0, {"p": Span("", str(refused))}, dead_letters=dead))
    (warning,) = status.look(database, NAME).warnings
    assert f"All {refused} records" in warning
    assert f"{refused} bad-label" in warning
    assert "The newest: No " in warning


@pytest.mark.parametrize(("taken", "warned"), [(0, True), (2, True), (3, False), (1000, False)])
def test_a_stream_that_takes_as_many_as_it_refuses_does_not(
    database: sa.Engine, taken: int, warned: bool
) -> None:
    declare(database)
    dead = [DeadLetter("p", str(index), "malformed", "No.", b"") for index in range(3)]
    Manifest(database).commit(NAME, Commit(0, {"p": Span("", "3")}, dead_letters=dead))
    with database.begin() as connection:
        stream_status.note_pending(connection, NAME, {"records": taken, "unmatched": 0})
    assert bool(status.look(database, NAME).warnings) is warned
