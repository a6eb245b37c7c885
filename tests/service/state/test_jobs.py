"""The lease table: claims, leases, fencing, retries; on SQLite and on PostgreSQL."""

import re
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import sqlalchemy as sa

from service.errors import LostLeaseError, UpdateDuplicateError, UpdateUnknownError
from service.state import backlog, claims, endings, jobs
from tests.support.service_parts import (
    NAME,
    claim,
    claim_none,
    declare,
    enqueue,
    notes,
    queued,
    read,
    states,
    write,
)
from tests.support.threads import outcome, together

EXPIRED = -1.0
"""A lease that has run out when it is given."""


def test_the_oldest_update_is_claimed_first(database: sa.Engine) -> None:
    first, second = enqueue(database, name="a"), enqueue(database, name="b")
    assert [claim(database).id, claim(database).id] == [first, second]
    assert claim_none(database)


def test_a_claim_gives_a_lease_an_owner_and_the_first_attempt(database: sa.Engine) -> None:
    enqueue(database)
    update = claim(database, "worker-1", lease_seconds=60)
    assert (update.state, update.attempt, update.owner) == ("running", 1, "worker-1")
    assert update.lease_until is not None
    assert update.started_at is not None
    assert update.lease_until - update.started_at == pytest.approx(60, abs=1)


def test_one_update_of_a_pipeline_runs_at_a_time(database: sa.Engine) -> None:
    first, second = enqueue(database), enqueue(database)
    running = claim(database)
    assert running.id == first
    assert claim_none(database)
    with database.begin() as connection:
        waiting = jobs.blocking(connection, jobs.get(connection, second))
    assert waiting is not None
    assert waiting.id == first
    write(database, running, state="done")
    assert claim(database).id == second


def test_an_update_that_awaits_a_person_holds_its_pipeline(database: sa.Engine) -> None:
    enqueue(database)
    write(database, claim(database), state="review")
    second = enqueue(database)
    other = enqueue(database, name="other")
    assert claim(database).id == other
    assert claim_none(database)
    with database.begin() as connection:
        blocker = jobs.blocking(connection, jobs.get(connection, second))
    assert blocker is not None
    assert blocker.state == "review"


def test_an_update_is_not_claimed_before_its_records_are_cut(database: sa.Engine) -> None:
    update_id = enqueue(database, wants_cut=True)
    assert claim_none(database)
    with database.begin() as connection:
        assert jobs.wanting_cut(connection, NAME) == [update_id]
        jobs.cut_done(connection, [update_id])
        assert jobs.wanting_cut(connection, NAME) == []
    assert claim(database).id == update_id


def test_eight_workers_run_every_update_once_and_one_a_pipeline(database: sa.Engine) -> None:
    pipelines = [f"p{number}" for number in range(4)]
    ids = [enqueue(database, name=pipelines[number % 4]) for number in range(80)]
    running: Counter[str] = Counter()
    clashes: list[str] = []
    done: list[str] = []

    def work(number: int) -> None:
        deadline = time.monotonic() + 60
        while len(done) < len(ids) and time.monotonic() < deadline:
            update = claims.claim(database, f"w{number}", lease_seconds=60, max_attempts=3)
            if update is None:
                time.sleep(0.001)
                continue
            running[update.pipeline] += 1
            if running[update.pipeline] > 1:
                clashes.append(update.pipeline)
            claims.heartbeat(database, update, lease_seconds=60, progress={"step": number})
            running[update.pipeline] -= 1
            write(database, update, state="done")
            done.append(update.id)

    together(8, work)
    assert clashes == []
    assert sorted(done) == sorted(ids)


def test_a_lease_that_runs_out_hands_the_update_over_as_the_next_attempt(database: sa.Engine) -> None:
    update_id = enqueue(database)
    first = claim(database, "silent", lease_seconds=EXPIRED)
    second = claim(database, "awake")
    assert (second.id, second.attempt, second.owner) == (update_id, 2, "awake")
    assert second.started_at == first.started_at


def test_a_heartbeat_keeps_the_lease_and_records_progress(database: sa.Engine) -> None:
    enqueue(database)
    update = claim(database, lease_seconds=EXPIRED)
    claims.heartbeat(database, update, lease_seconds=60, progress={"stage": "learning", "step": 3})
    assert claim_none(database)
    assert read(database, update.id).progress == {"stage": "learning", "step": 3}


STALE: dict[str, Callable[[sa.Engine, jobs.Update], object]] = {
    "heartbeat": lambda engine, update: claims.heartbeat(engine, update, lease_seconds=9, progress={"x": 1}),
    "write": lambda engine, update: write(engine, update, state="done", outcome="promote"),
    "confirm": claims.confirm,
    "retry": lambda engine, update: endings.retry(engine, update, error="late", max_attempts=3),
    "last retry": lambda engine, update: endings.retry(engine, update, error="late", max_attempts=1),
    "fail": lambda engine, update: endings.fail(engine, update, error="late"),
}


@pytest.mark.parametrize("act", STALE)
@pytest.mark.parametrize("ended", [False, True], ids=["taken over", "ended"])
def test_a_worker_that_lost_its_lease_changes_nothing(database: sa.Engine, act: str, ended: bool) -> None:
    declare(database, experiences=1)
    enqueue(database)
    stale = claim(database, "stale", lease_seconds=EXPIRED)
    owner = claim(database, "owner")
    write(database, owner, experiences=[0], state="done" if ended else "running")
    before = read(database, stale.id)
    with pytest.raises(LostLeaseError, match="attempt 1, is no longer this worker's"):
        STALE[act](database, stale)
    assert read(database, stale.id) == before
    assert states(database) == {0: "waiting"}
    assert queued(database) == []


def test_stopping_in_good_order_uses_up_no_attempt(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = enqueue(database)
    for attempt in range(1, 6):
        update = claim(database, max_attempts=2)
        assert (update.attempt, update.failures) == (attempt, 0)
        endings.release(database, update)
        with pytest.raises(LostLeaseError):
            endings.release(database, update)
    assert read(database, update_id).state == "queued"


def test_the_pause_before_the_next_attempt_doubles(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = enqueue(database)
    for pause in (0.5, 1.0, 2.0):
        update = claim(database)
        before = time.time()
        endings.retry(database, update, error="away", max_attempts=9, pause_seconds=0.5)
        after = time.time()
        assert claim_none(database)
        # However long the machine takes between the two.
        waiting = read(database, update_id)
        assert before + pause - 0.01 <= waiting.not_before <= after + pause + 0.01
        time.sleep(max(0.0, waiting.not_before - time.time()) + 0.05)


def test_a_failure_that_may_pass_is_tried_again_until_the_attempts_are_used_up(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = enqueue(database)
    for attempt in (1, 2):
        update = claim(database, max_attempts=3)
        assert update.attempt == attempt
        write(database, update, experiences=[0])
        assert endings.retry(database, update, error=f"no luck {attempt}", max_attempts=3)
        waiting = read(database, update_id)
        assert (waiting.state, waiting.owner, waiting.error) == ("queued", None, f"no luck {attempt}")
        assert states(database) == {0: "waiting"}
    assert not endings.retry(database, claim(database), error="no luck 3", max_attempts=3)
    failed = read(database, update_id)
    assert (failed.state, failed.error) == ("failed", "no luck 3")
    assert failed.finished_at is not None
    assert states(database) == {0: "parked"}
    assert notes(database) == {0: f"Update {update_id} failed: no luck 3"}


def exhaust_by_silence(engine: sa.Engine, attempts: int) -> jobs.Update:
    for _ in range(attempts):
        update = claim(engine, lease_seconds=EXPIRED, max_attempts=attempts)
        write(engine, update, experiences=[0])
    return update


def test_an_update_whose_workers_all_died_fails_and_its_experiences_are_parked(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = enqueue(database)
    last = exhaust_by_silence(database, 2)
    assert claims.claim(database, "w", lease_seconds=60, max_attempts=2) is None
    failed = read(database, update_id)
    assert (failed.state, failed.attempt) == ("failed", 2)
    assert failed.error == "Its worker died in each of 2 attempts; the dispatcher's log says why."
    assert states(database) == {0: "parked"}
    with pytest.raises(LostLeaseError):
        claims.heartbeat(database, last, lease_seconds=60, progress=None)


def test_many_workers_give_an_update_up_once(database: sa.Engine) -> None:
    declare(database, experiences=2)
    enqueue(database)
    exhaust_by_silence(database, 2)
    made = together(8, lambda number: claims.claim(database, f"w{number}", lease_seconds=60, max_attempts=2))
    assert states(database) == {0: "parked", 1: "waiting"}
    # Experience 1 was not part of the failure: one update is made for it.
    with database.begin() as connection:
        assert len(jobs.of_pipeline(connection, NAME)) == 2
    assert len([update for update in made if update]) + len(queued(database)) == 1


ENDS: dict[str, Callable[[sa.Engine, jobs.Update], object]] = {
    "failure": lambda engine, update: endings.fail(engine, update, error="broken"),
    "last attempt": lambda engine, update: endings.retry(engine, update, error="x", max_attempts=1),
    "silence": lambda engine, update: claims.claim(engine, "w", lease_seconds=60, max_attempts=1),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_a_failed_update_did_not_try_gets_an_update(database: sa.Engine, end: str) -> None:
    declare(database, experiences=2)
    enqueue(database)
    failing = claim(database, lease_seconds=EXPIRED, max_attempts=1)
    write(database, failing, experiences=[0])
    ENDS[end](database, failing)
    assert read(database, failing.id).state == "failed"
    assert states(database) == {0: "parked", 1: "waiting"}
    with database.begin() as connection:
        live = [update for update in jobs.of_pipeline(connection, NAME) if update.state != "failed"]
    assert len(live) == 1


@pytest.mark.parametrize("end", ENDS)
def test_a_failed_update_does_not_park_what_the_champion_has_learnt(database: sa.Engine, end: str) -> None:
    declare(database, experiences=1)
    enqueue(database)
    failing = claim(database, lease_seconds=EXPIRED, max_attempts=1)
    write(database, failing, experiences=[0])
    with database.begin() as connection:
        # A rollback to a version that had learnt it, while the update ran.
        backlog.mark(connection, NAME, experiences=[0], state="learnt", note="version 3")
    ENDS[end](database, failing)
    assert states(database) == {0: "learnt"}


def test_an_experience_that_arrives_before_a_second_attempt_gets_its_own_update(database: sa.Engine) -> None:
    enqueue(database)
    update = claim(database)
    write(database, update, experiences=[0])
    endings.retry(database, update, error="no luck", max_attempts=3)
    with database.begin() as connection:
        made = jobs.ensure_queued(connection, NAME, requested_by="trigger")
        assert made != update.id
        assert jobs.ensure_queued(connection, NAME, requested_by="trigger") == made


def test_ensure_queued_and_claims_at_once_leave_an_update_that_sees_the_news(database: sa.Engine) -> None:
    """Whatever is committed together with `ensure_queued` is there before a claim of the update it names."""
    declare(database)
    count = 30
    seen: set[int] = set()

    def cut() -> None:
        for experience in range(count):
            with database.begin() as connection:
                backlog.add(connection, NAME, experience)
                jobs.ensure_queued(connection, NAME, requested_by="trigger")

    def learn() -> None:
        deadline = time.monotonic() + 60
        while len(seen) < count and time.monotonic() < deadline:
            update = claims.claim(database, "w", lease_seconds=60, max_attempts=3)
            if update is None:
                time.sleep(0.001)
                continue
            with database.begin() as connection:
                learnt = backlog.to_learn(connection, NAME, limit=100)
                backlog.mark(connection, NAME, experiences=learnt, state="learnt", note="")
                jobs.write(connection, update, {"state": "done"})
            seen.update(learnt)

    together(2, lambda number: (cut, learn)[number]())
    assert seen == set(range(count))


def test_a_key_used_again_is_told_the_first_update(database: sa.Engine) -> None:
    first = enqueue(database, key="k")
    with pytest.raises(UpdateDuplicateError, match=f"already started update {first}") as caught:
        enqueue(database, key="k")
    assert caught.value.members == {"update": first}
    assert enqueue(database, key="other") != first
    assert enqueue(database, name="other", key="k") != first


def enqueued(engine: sa.Engine, key: str, _number: int) -> str | Exception:
    return outcome(partial(enqueue, engine, key=key))


def test_of_eight_requests_with_one_key_one_starts_an_update(database: sa.Engine) -> None:
    for round_number in range(5):
        key = f"key {round_number}"
        outcomes = together(8, partial(enqueued, database, key))
        started = [each for each in outcomes if isinstance(each, str)]
        refused = [each for each in outcomes if isinstance(each, UpdateDuplicateError)]
        assert (len(started), len(refused)) == (1, 7), outcomes
        assert {error.members["update"] for error in refused} == set(started)
    with database.begin() as connection:
        assert len(jobs.of_pipeline(connection, NAME)) == 5


def test_the_transaction_of_a_refused_request_can_go_on(database: sa.Engine) -> None:
    first = enqueue(database, key="k")
    with database.begin() as connection:
        with pytest.raises(UpdateDuplicateError):
            jobs.enqueue(connection, NAME, requested_by="test", request_key="k")
        assert jobs.get(connection, first).state == "queued"


def test_live_updates_are_those_that_have_not_ended(database: sa.Engine) -> None:
    ids = [enqueue(database) for _ in range(3)]
    write(database, claim(database), state="done")
    with database.begin() as connection:
        assert jobs.live(connection, NAME) == 2
        assert [update.id for update in jobs.of_pipeline(connection, NAME)] == ids[::-1]
        assert [update.id for update in jobs.of_pipeline(connection, NAME, limit=1)] == ids[-1:]


@pytest.mark.parametrize("update_id", ["u-0", "", "u-0\0"])
def test_an_unknown_update_is_named(database: sa.Engine, update_id: str) -> None:
    with pytest.raises(UpdateUnknownError, match=re.escape(f"no update {update_id!r}")):
        read(database, update_id)
