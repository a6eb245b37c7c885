"""What a person decides, and what becomes of the experiences; on SQLite and on PostgreSQL."""

from functools import partial

import pytest
import sqlalchemy as sa

from service.errors import (
    ChampionMissingError,
    ChampionMovedError,
    DecisionConflictError,
    UpdateUnknownError,
    VersionUnfitError,
)
from service.state import backlog, champions, claims, ledger
from service.state.ledger import By
from service.updates import decisions
from service.updates.decisions import Choice
from service.updates.requests import learn_again
from tests.support.service_parts import (
    NAME,
    add_version,
    claim,
    declare,
    enqueue,
    notes,
    promote,
    read,
    review,
    states,
    three_champions,
    write,
)
from tests.support.threads import outcome, together


def decide(engine: sa.Engine, update_id: str, choice: Choice, actor: str = "Ada") -> ledger.Entry:
    return decisions.decide_review(engine, update_id, choice=choice, by=By(actor, "I looked at it"))


def roll_back(engine: sa.Engine, version: int | None = None) -> ledger.Entry:
    return decisions.roll_back(engine, NAME, version=version, by=By("Ada", "it was worse"))


def champion(engine: sa.Engine) -> int | None:
    with engine.begin() as connection:
        found = champions.current(connection, NAME)
    return found.version if found else None


def chain(engine: sa.Engine) -> list[ledger.Entry]:
    with engine.begin() as connection:
        return ledger.entries(connection, NAME)


def test_an_approval_promotes_and_its_experiences_are_learnt(database: sa.Engine) -> None:
    declare(database, experiences=2)
    update_id = review(database, experiences=[0, 1], version=1)
    entry = decide(database, update_id, "approve")
    assert (entry.action, entry.actor, entry.version, entry.previous_version) == ("promote", "Ada", 1, None)
    assert champion(database) == 1
    assert states(database) == {0: "learnt", 1: "learnt"}
    assert notes(database)[0] == "version 1, approved by Ada"
    update = read(database, update_id)
    assert update.state == "done"
    assert update.decision is not None
    assert {**update.decision, "at": 0} == {
        "choice": "approve",
        "by": "Ada",
        "reason": "I looked at it",
        "at": 0,
    }


def test_a_rejection_parks_the_experiences_and_keeps_the_champion(database: sa.Engine) -> None:
    declare(database, experiences=1)
    add_version(database, 1, parent=None, learnt=[])
    promote(database, 1, base_revision=None)
    update_id = review(database, experiences=[0], version=2)
    entry = decide(database, update_id, "reject")
    assert (entry.action, entry.version, entry.previous_version) == ("reject", 2, 1)
    assert champion(database) == 1
    assert states(database) == {0: "parked"}
    assert notes(database) == {0: "rejected by Ada: I looked at it"}
    assert read(database, update_id).state == "done"


@pytest.mark.parametrize("first", ["approve", "reject"])
@pytest.mark.parametrize("second", ["approve", "reject"])
def test_a_decision_is_taken_once(database: sa.Engine, first: Choice, second: Choice) -> None:
    declare(database, experiences=1)
    update_id = review(database, experiences=[0], version=1)
    decide(database, update_id, first)
    with pytest.raises(DecisionConflictError, match=f"was decided already: {first} by Ada"):
        decide(database, update_id, second, "Bob")
    assert len(chain(database)) == 1


def test_of_people_who_decide_at_once_one_wins_and_the_others_are_told_by_whom(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = review(database, experiences=[0], version=1)
    choices: list[Choice] = ["approve", "reject"] * 4
    outcomes = together(
        8,
        lambda number: outcome(partial(decide, database, update_id, choices[number], f"person {number}")),
    )
    won = [number for number, each in enumerate(outcomes) if isinstance(each, ledger.Entry)]
    assert len(won) == 1, outcomes
    message = f"was decided already: {choices[won[0]]} by person {won[0]}"
    others = [each for number, each in enumerate(outcomes) if number != won[0]]
    assert all(isinstance(each, DecisionConflictError) and message in each.detail for each in others), others
    assert len(chain(database)) == 1
    assert states(database) == {0: "learnt" if choices[won[0]] == "approve" else "parked"}


def acted(acts: list[partial[ledger.Entry]], number: int) -> ledger.Entry | Exception:
    return outcome(acts[number])


def test_a_decision_and_a_rollback_at_once_give_one_chain(database: sa.Engine) -> None:
    for _ in range(5):
        with database.begin() as connection:
            for table in ("ledger", "champions", "versions", "updates", "backlog", "pipelines"):
                connection.execute(sa.text(f"DELETE FROM {table}"))
        declare(database, experiences=4)
        three_champions(database)
        update_id = review(database, experiences=[3], version=4)
        acts = [partial(decide, database, update_id, "reject"), partial(roll_back, database, 1)]
        outcomes = together(2, partial(acted, acts))
        assert all(isinstance(each, ledger.Entry) for each in outcomes), outcomes
        assert ledger.first_break(chain(database)) is None
        assert len(chain(database)) == 5


def test_an_approval_against_a_champion_that_has_moved_is_refused_with_the_way_on(
    database: sa.Engine,
) -> None:
    declare(database, experiences=4)
    three_champions(database)
    update_id = review(database, experiences=[3], version=4)
    roll_back(database)
    with pytest.raises(ChampionMovedError, match="Reject it, then start an update with") as caught:
        decide(database, update_id, "approve")
    assert caught.value.members == {"experiences": [3], "version": 4}
    assert read(database, update_id).state == "review"
    assert champion(database) == 2
    assert states(database)[3] == "review"
    decide(database, update_id, "reject")
    with database.begin() as connection:
        learn_again(connection, NAME, experiences=[3])
        assert backlog.to_learn(connection, NAME, limit=9) == [3]


def test_an_update_that_made_no_version_cannot_be_approved(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = review(database, experiences=[0], version=None)
    with pytest.raises(DecisionConflictError, match="made no version"):
        decide(database, update_id, "approve")
    assert read(database, update_id).state == "review"
    decide(database, update_id, "reject")
    assert states(database) == {0: "parked"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "is running, and does not await a decision"),
        ({"state": "failed"}, "is failed, and does not await a decision"),
        ({"state": "queued"}, "is queued, and does not await a decision"),
        ({"state": "done", "outcome": "promote"}, "was decided by the gate: promote"),
        ({"state": "done"}, "was decided by the gate: nothing to learn"),
    ],
)
def test_an_update_that_awaits_nobody_cannot_be_decided(
    database: sa.Engine, values: dict[str, str], message: str
) -> None:
    update_id = enqueue(database)
    write(database, claim(database), owner="w", **values)
    with pytest.raises(DecisionConflictError, match=message):
        decide(database, update_id, "approve")
    assert chain(database) == []


def test_an_unknown_update_cannot_be_decided(database: sa.Engine) -> None:
    with pytest.raises(UpdateUnknownError):
        decide(database, "u-0", "approve")


def test_a_rollback_parks_what_only_the_newer_versions_had_learnt(database: sa.Engine) -> None:
    declare(database, experiences=4)
    three_champions(database)
    with database.begin() as connection:
        backlog.mark(connection, NAME, experiences=[0, 1, 2], state="learnt", note="")
    roll_back(database, 1)
    assert states(database) == {0: "learnt", 1: "parked", 2: "parked", 3: "waiting"}
    assert notes(database)[2] == "learnt by version 3, which Ada rolled back"
    roll_back(database, 3)
    assert states(database) == {0: "learnt", 1: "learnt", 2: "learnt", 3: "waiting"}
    assert notes(database)[2] == "version 3"


def test_a_rejection_does_not_park_what_the_champion_has_learnt(database: sa.Engine) -> None:
    """Rolled back, asked for again, in review; and then the version that had learnt it comes back."""
    declare(database, experiences=3)
    three_champions(database)
    roll_back(database, 2)
    with database.begin() as connection:
        learn_again(connection, NAME, experiences=[2])
    update_id = review(database, experiences=[2], version=4)
    roll_back(database, 3)
    decide(database, update_id, "reject")
    assert states(database)[2] == "learnt"


def test_a_refused_rollback_changes_nothing(database: sa.Engine) -> None:
    declare(database, experiences=3)
    with pytest.raises(ChampionMissingError):
        roll_back(database)
    three_champions(database)
    before = states(database)
    with pytest.raises(VersionUnfitError):
        roll_back(database, 3)
    assert states(database) == before
    assert len(chain(database)) == 3


def test_after_a_decision_the_next_update_may_run(database: sa.Engine) -> None:
    declare(database, experiences=1)
    update_id = review(database, experiences=[0], version=1)
    following = enqueue(database)
    assert claims.claim(database, "w", lease_seconds=60, max_attempts=3) is None
    decide(database, update_id, "reject")
    assert claim(database).id == following
