"""Replay of dead letters: each goes back into its stream at most once; on SQLite and on PostgreSQL."""

import pytest
import sqlalchemy as sa

from service.errors import DeadLetterUnfitError, DeadLetterUnknownError, PipelineUnknownError
from service.ingest import replay
from service.ingest.replay import Replay
from streams.state.dead_letters import DeadLetter
from streams.state.manifest import Commit, Manifest, Span
from tests.support.service_parts import NAME, declare
from tests.support.threads import together

GOOD = b'{"id": "%d", "features": [1, 2], "label": "up", "groups": {"site": "north"}}'
BAD = b'{"id": "%d", "features": [1, 2], "label": "sideways", "groups": {"site": "north"}}'


def refuse(engine: sa.Engine, *payloads: bytes, whole_bytes: int = -1) -> list[str]:
    """Store payloads as dead letters of a broker's stream; their ids."""
    found = [
        DeadLetter("p", str(index), "malformed", "No.", payload, whole_bytes, {"wire": "json"})
        for index, payload in enumerate(payloads)
    ]
    Manifest(engine).commit(NAME, Commit(0, {"p": Span("", "end")}, dead_letters=found))
    return [each.name for each in found]


def pending(engine: sa.Engine) -> int:
    return Manifest(engine).pending_records(NAME)


def test_what_is_valid_now_goes_back_once_and_the_rest_says_why(database: sa.Engine) -> None:
    declare(database)
    good, bad = refuse(database, GOOD % 1, BAD % 2)
    first, second = replay.replay(database, NAME, chosen=[good, bad, good])
    assert first == Replay(good, True, "")
    assert (second.dead_letter, second.replayed) == (bad, False)
    assert "sideways" in second.reason
    assert pending(database) == 1
    (again,) = replay.replay(database, NAME, chosen=[good])
    assert again == Replay(good, False, "It was replayed before; it is not learnt twice.")
    assert pending(database) == 1


def test_a_corrected_payload_replaces_what_was_sent(database: sa.Engine) -> None:
    declare(database)
    (bad,) = refuse(database, BAD % 1)
    assert replay.replay(database, NAME, chosen=[bad], payload=GOOD % 1) == [Replay(bad, True, "")]
    assert pending(database) == 1


def test_one_corrected_payload_cannot_replace_two(database: sa.Engine) -> None:
    declare(database)
    ids = refuse(database, BAD % 1, BAD % 2)
    with pytest.raises(DeadLetterUnfitError, match="One corrected payload cannot replace 2 dead letters"):
        replay.replay(database, NAME, chosen=ids, payload=GOOD % 1)
    assert pending(database) == 0


def test_one_whose_head_alone_was_kept_must_be_sent_again(database: sa.Engine) -> None:
    declare(database)
    (cut,) = refuse(database, GOOD % 1, whole_bytes=70_000)
    (refusal,) = replay.replay(database, NAME, chosen=[cut])
    assert refusal.reason == f"Only {len(GOOD % 1)} of its 70,000 bytes were kept: send it again."
    assert replay.replay(database, NAME, chosen=[cut], payload=GOOD % 1)[0].replayed


def test_of_eight_replays_at_once_one_succeeds(database: sa.Engine) -> None:
    declare(database)
    (good,) = refuse(database, GOOD % 1)
    found = together(8, lambda _: replay.replay(database, NAME, chosen=[good])[0].replayed)
    assert sorted(found) == [False] * 7 + [True]
    assert pending(database) == 1


def test_pages_are_newest_first_and_say_where_to_continue(database: sa.Engine) -> None:
    declare(database)
    refuse(database, *(BAD % number for number in range(5)))
    first = replay.page(database, NAME, limit=3)
    rest = replay.page(database, NAME, limit=3, after=first.next)
    assert ([len(each.dead_letters) for each in (first, rest)], rest.next) == ([3, 2], None)
    assert first.next == first.dead_letters[-1].name
    ids = {each.name for page in (first, rest) for each in page.dead_letters}
    assert len(ids) == 5
    assert replay.page(database, NAME, reason="bad-id").dead_letters == []


def test_unknown_names_are_refused(database: sa.Engine) -> None:
    with pytest.raises(PipelineUnknownError):
        replay.page(database, NAME)
    declare(database)
    with pytest.raises(DeadLetterUnknownError, match="no dead letter '0000' in 'p'"):
        replay.replay(database, NAME, chosen=["0000"])
    with pytest.raises(DeadLetterUnknownError):
        replay.page(database, NAME, after="0000")
