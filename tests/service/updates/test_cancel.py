"""A person cancels an update, and what becomes of its experiences; on SQLite and on PostgreSQL."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import sqlalchemy as sa

from service.errors import CancelConflictError, DecisionConflictError, LostLeaseError, UpdateUnknownError
from service.state import backlog, claims, endings, jobs, ledger
from service.state.ledger import By
from service.updates import decisions
from tests.support.service_parts import (
    NAME,
    claim,
    claim_none,
    declare,
    enqueue,
    notes,
    queued,
    read,
    review,
    states,
    write,
)
from tests.support.threads import outcome, together


def cancel(engine: sa.Engine, update_id: str, actor: str = "Ada") -> jobs.Update:
    return decisions.cancel(engine, update_id, by=By(actor, "wrong settings"))


def ask(engine: sa.Engine, experiences: list[int]) -> str:
    with engine.begin() as connection:
        return jobs.enqueue(connection, NAME, requested_by="test", asked=experiences)


def mark(engine: sa.Engine, state: backlog.State, *experiences: int) -> None:
    with engine.begin() as connection:
        backlog.mark(connection, NAME, experiences=experiences, state=state, note="")


def assert_no_decision_was_recorded(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        assert ledger.entries(connection, NAME) == []


def test_a_queued_update_ends_and_what_it_would_have_learnt_is_parked(database: sa.Engine) -> None:
    declare(database, experiences=2)
    update_id = enqueue(database)
    ended = cancel(database, update_id)
    assert (ended.state, ended.cancelled) == ("failed", True)
    assert ended.error == "Cancelled by Ada: wrong settings"
    assert ended.finished_at is not None
    assert ended.decision == {
        "choice": "cancel",
        "by": "Ada",
        "reason": "wrong settings",
        "at": ended.finished_at,
    }
    assert states(database) == {0: "parked", 1: "parked"}
    assert notes(database)[0] == f"Update {update_id} was cancelled by Ada: wrong settings"
    assert (claim_none(database), queued(database)) == (True, [])
    assert_no_decision_was_recorded(database)


def test_a_running_update_ends_and_its_worker_can_write_nothing_more(database: sa.Engine) -> None:
    declare(database, experiences=2)
    enqueue(database)
    running = claim(database)
    write(database, running, experiences=[0], progress={"stage": "learning", "step": 3})
    ended = cancel(database, running.id)
    assert (ended.state, ended.progress, ended.attempt) == ("failed", None, 1)
    for act in (
        partial(claims.heartbeat, database, running, lease_seconds=9, progress=None),
        partial(claims.confirm, database, running),
        partial(endings.fail, database, running, error="late"),
        partial(endings.retry, database, running, error="late", max_attempts=3),
        partial(endings.release, database, running),
    ):
        with pytest.raises(LostLeaseError):
            act()
    assert read(database, running.id) == ended
    assert states(database) == {0: "parked", 1: "waiting"}
    # What it did not try gets an update, which may run at once.
    (following,) = queued(database)
    assert claim(database).id == following.id
    assert_no_decision_was_recorded(database)


def test_an_update_that_waits_for_its_next_attempt_parks_what_it_has_tried(database: sa.Engine) -> None:
    declare(database, experiences=2)
    update = claim(database) if enqueue(database) else None
    assert update is not None
    write(database, update, experiences=[0])
    endings.retry(database, update, error="no luck", max_attempts=3, pause_seconds=60)
    assert cancel(database, update.id).error == "Cancelled by Ada: wrong settings"
    assert states(database) == {0: "parked", 1: "waiting"}
    assert len(queued(database)) == 1


def test_an_update_of_named_experiences_parks_those_and_no_others(database: sa.Engine) -> None:
    declare(database, experiences=4)
    mark(database, "review", 3)
    asked = ask(database, [1, 3])
    cancel(database, asked)
    assert states(database) == {0: "waiting", 1: "parked", 2: "waiting", 3: "review"}
    assert len(queued(database)) == 1


def test_more_than_one_update_takes_is_left_to_the_next(database: sa.Engine) -> None:
    declare(database, experiences=3, max_experiences_per_update=2)
    cancel(database, enqueue(database))
    assert states(database) == {0: "parked", 1: "parked", 2: "waiting"}
    assert len(queued(database)) == 1


def test_what_another_update_learns_is_not_parked(database: sa.Engine) -> None:
    declare(database, experiences=3)
    enqueue(database)
    running = claim(database)
    write(database, running, experiences=[0])
    asked, second, third = ask(database, [1]), enqueue(database), enqueue(database, wants_cut=True)
    cancel(database, third)
    assert states(database) == dict.fromkeys(range(3), "waiting"), "the second learns it all the same"
    cancel(database, second)
    assert states(database) == {0: "waiting", 1: "waiting", 2: "parked"}
    assert [update.id for update in queued(database)] == [asked], "no update for what another one learns"
    assert read(database, running.id).state == "running"


def test_the_records_of_a_cancelled_request_wait_for_their_trigger(database: sa.Engine) -> None:
    declare(database)
    cancel(database, enqueue(database, wants_cut=True))
    with database.begin() as connection:
        assert jobs.wanting_cut(connection, NAME) == []
    assert queued(database) == []


def test_an_experience_learnt_meanwhile_stays_learnt(database: sa.Engine) -> None:
    declare(database, experiences=1)
    enqueue(database)
    running = claim(database)
    write(database, running, experiences=[0])
    mark(database, "learnt", 0)
    cancel(database, running.id)
    assert states(database) == {0: "learnt"}


def test_a_second_cancel_is_told_who_was_first_and_when(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = enqueue(database)
    first = cancel(database, update_id)
    with pytest.raises(CancelConflictError, match=r"was cancelled already, by Ada at \d{4}-\d\d-\d\dT"):
        cancel(database, update_id, "Bob")
    assert read(database, update_id) == first
    with pytest.raises(DecisionConflictError, match="was cancelled by Ada"):
        decisions.decide_review(database, update_id, choice="approve", by=By("Bob", "why not"))


@pytest.mark.parametrize(
    ("values", "message", "instead"),
    [
        ({"state": "done", "outcome": "promote"}, "has ended already: promote", "rollback"),
        ({"state": "done"}, "has ended already: nothing to learn", "rollback"),
        ({"state": "failed", "error": "broken"}, "has failed already", "`error`"),
        ({"progress": {"stage": "recording"}}, "is being recorded", "Wait some seconds"),
    ],
)
def test_an_update_that_cannot_be_cancelled_says_what_to_do(
    database: sa.Engine, values: dict[str, object], message: str, instead: str
) -> None:
    declare(database, experiences=1)
    enqueue(database)
    update = claim(database)
    write(database, update, experiences=[0], **values)
    before = read(database, update.id)
    with pytest.raises(CancelConflictError, match=message) as caught:
        cancel(database, update.id)
    assert instead in caught.value.fix
    assert read(database, update.id) == before
    assert states(database) == {0: "waiting"}


def test_an_update_in_review_is_decided_not_cancelled(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = review(database, experiences=[0], version=1)
    with pytest.raises(CancelConflictError, match="awaits a decision") as caught:
        cancel(database, update_id)
    assert f"holdfast update reject {update_id}" in caught.value.fix
    assert (read(database, update_id).state, states(database)) == ("review", {0: "review"})


def test_an_unknown_update_cannot_be_cancelled(database: sa.Engine) -> None:
    with pytest.raises(UpdateUnknownError):
        cancel(database, "u-0")


def test_the_stage_of_a_dead_attempt_does_not_keep_the_next_one_from_being_cancelled(
    database: sa.Engine,
) -> None:
    declare(database, experiences=1)
    enqueue(database)
    claims.confirm(database, claim(database, lease_seconds=-1.0))
    second = claim(database)
    assert second.attempt == 2
    assert cancel(database, second.id).cancelled


def test_of_people_who_cancel_at_once_one_does(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = enqueue(database)
    outcomes = together(8, lambda number: outcome(partial(cancel, database, update_id, f"person {number}")))
    (won,) = [each for each in outcomes if isinstance(each, jobs.Update)]
    assert won.decision is not None
    message = f"was cancelled already, by {won.decision['by']}"
    others = [each for each in outcomes if each is not won]
    assert all(isinstance(each, CancelConflictError) and message in each.detail for each in others), outcomes


@pytest.mark.parametrize("end", ["record", "end", "fail", "claim"])
def test_a_cancel_and_a_worker_at_once_agree_on_the_end(database: sa.Engine, end: str) -> None:
    declare(database)
    for number in range(12):
        with database.begin() as connection:
            backlog.add(connection, NAME, number)
        update_id = enqueue(database)
        if end == "claim":
            worker: Callable[[], object] = partial(claim_none, database)
        else:
            update = claim(database)
            write(database, update, experiences=[number])
            worker = {
                "record": partial(claims.confirm, database, update),
                "end": partial(write, database, update, state="done", outcome="reject"),
                "fail": partial(endings.fail, database, update, error="broken"),
            }[end]
        said, did = together(2, partial(acted, [partial(cancel, database, update_id), worker]))
        ended = read(database, update_id)
        if end == "claim":
            # Whichever came first: a cancel takes both.
            assert ended.cancelled
        else:
            assert isinstance(said, CancelConflictError) != ended.cancelled, (said, did)
            assert isinstance(did, LostLeaseError) == ended.cancelled, (said, did)
        with database.begin() as connection:
            connection.execute(sa.text("DELETE FROM updates"))


def acted(acts: Sequence[Callable[[], object]], number: int) -> object:
    return outcome(acts[number])
