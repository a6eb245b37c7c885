"""Requests to start an update: what they queue, and what they refuse; on SQLite and on PostgreSQL."""

from functools import partial

import pytest
import sqlalchemy as sa

from service.errors import NothingToLearnError, PipelineUnknownError, UpdateDuplicateError
from service.ingest.push import push
from service.state import backlog
from service.updates.requests import learn_again, request_update
from streams.sources.datasets import DIGITS_SCHEMA
from tests.support.service_parts import NAME, claim, declare, notes, queued, read, states
from tests.support.threads import outcome, together


def request(
    engine: sa.Engine, *, key: str | None = None, experiences: list[int] | None = None, name: str = NAME
) -> str:
    return request_update(engine, name, by="Ada", request_key=key, experiences=experiences)


def send_one(engine: sa.Engine) -> None:
    body = b'{"records": [{"id": "a", "features": [1, 2], "label": "up", "groups": {"site": "north"}}]}'
    push(engine, NAME, body=body, content_type="", request_key=None, max_backlog_records=1)


def test_an_unknown_pipeline_starts_no_update(database: sa.Engine) -> None:
    with pytest.raises(PipelineUnknownError, match="no pipeline 'p'"):
        request(database)


def test_an_update_asked_for_waits_until_what_has_arrived_is_cut(database: sa.Engine) -> None:
    declare(database)
    send_one(database)
    update = read(database, request(database))
    assert (update.state, update.wants_cut, update.requested_by) == ("queued", True, "Ada")


def test_an_update_of_what_is_left_over_needs_no_cut(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = request(database)
    assert not read(database, update_id).wants_cut
    assert claim(database).id == update_id


def test_with_nothing_to_learn_no_update_is_started_and_the_key_stays_free(database: sa.Engine) -> None:
    declare(database)
    with pytest.raises(NothingToLearnError, match="No record of 'p' waits to be learnt"):
        request(database, key="k")
    assert queued(database) == []
    send_one(database)
    assert request(database, key="k")


def test_parked_experiences_are_learnt_when_they_are_named(database: sa.Engine) -> None:
    declare(database, experiences=2)
    with database.begin() as connection:
        backlog.mark(connection, NAME, experiences=[0, 1], state="parked", note="")
    with pytest.raises(NothingToLearnError):
        request(database)
    update = read(database, request(database, experiences=[1]))
    assert not update.wants_cut
    assert states(database) == {0: "parked", 1: "waiting"}


def test_an_experience_that_cannot_be_learnt_starts_no_update(database: sa.Engine) -> None:
    declare(database, experiences=1)
    with pytest.raises(NothingToLearnError, match="Experience 5"):
        request(database, experiences=[0, 5], key="k")
    assert queued(database) == []
    assert states(database) == {0: "waiting"}
    assert request(database, experiences=[0], key="k")


def test_a_source_that_is_read_is_always_asked_to_cut(database: sa.Engine) -> None:
    declare(database, schema=DIGITS_SCHEMA.model_dump(), source={"kind": "datasets"})
    assert read(database, request(database)).wants_cut


def test_of_eight_requests_for_an_update_with_one_key_one_starts_it(database: sa.Engine) -> None:
    declare(database, experiences=1)
    outcomes = together(8, lambda _: outcome(partial(request, database, key="k", experiences=[0])))
    started = [each for each in outcomes if isinstance(each, str)]
    assert len(started) == 1, outcomes
    refused = [each for each in outcomes if isinstance(each, UpdateDuplicateError)]
    assert len(refused) == 7, outcomes
    assert len(queued(database)) == 1


@pytest.mark.parametrize("state", ["waiting", "carried", "parked"])
def test_an_experience_can_be_learnt_again_while_it_is_not_learnt(
    database: sa.Engine, state: backlog.State
) -> None:
    declare(database, experiences=1)
    with database.begin() as connection:
        backlog.mark(connection, NAME, experiences=[0], state=state, note="")
        learn_again(connection, NAME, experiences=[0])
    assert states(database) == {0: "waiting"}
    assert notes(database) == {0: "asked for again"}


@pytest.mark.parametrize(
    ("state", "message"),
    [("learnt", "is in state 'learnt'"), ("review", "is in state 'review'"), (None, "does not exist")],
)
def test_an_experience_that_is_learnt_in_review_or_unknown_cannot_be_learnt_again(
    database: sa.Engine, state: backlog.State | None, message: str
) -> None:
    declare(database, experiences=2 if state else 1)
    with database.begin() as connection:
        if state:
            backlog.mark(connection, NAME, experiences=[1], state=state, note="")
        with pytest.raises(NothingToLearnError, match=f"Experience 1 of 'p' {message}"):
            learn_again(connection, NAME, experiences=[0, 1])
    assert states(database)[0] == "waiting"
