"""Dead letters that become records after all: decoded again, once, and pushed back into their stream."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from service.errors import DeadLetterUnfitError, DeadLetterUnknownError
from service.pipelines import PipelineSpec
from service.state import pipelines
from service.state.database import now
from streams.records import LabelMap, Records
from streams.state import dead_letters as dead_letter_rows
from streams.state.dead_letters import DeadLetter, batch_of
from streams.state.manifest import Manifest
from streams.state.pushed import PushedLog
from streams.state.tables import reading
from streams.wire.decode import decode

MOST_AT_A_TIME = 1000


@dataclass(frozen=True)
class Replay:
    """What became of one letter."""

    letter: str
    replayed: bool
    reason: str
    """Why it still is no record; empty when it is one."""


def replay(
    engine: sa.Engine, pipeline: str, *, chosen: Sequence[str], payload: bytes | None = None
) -> list[Replay]:
    """Decode letters again and put those that fit now back into the stream, each at most once.

    `payload` replaces what one letter held: the same record, mended.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        DeadLetterUnknownError: there is no letter of that name.
        DeadLetterUnfitError: a mended payload is given for more than one letter.
    """
    if payload is not None and len(chosen) != 1:
        raise DeadLetterUnfitError(
            f"One mended payload cannot stand for {len(chosen)} letters.",
            fix="Send a mended payload for one letter at a time.",
        )
    with reading(engine) as connection:
        spec = pipelines.load_spec(connection, pipeline)
        found = [known(connection, pipeline, name) for name in dict.fromkeys(chosen)]
    return [_replay_one(engine, spec, letter, payload) for letter in found]


@dataclass(frozen=True)
class Page:
    """Some letters, newest first."""

    letters: Sequence[DeadLetter]
    next: str | None
    """The letter to go on after; None: there are no more."""


def page(
    engine: sa.Engine,
    pipeline: str,
    *,
    limit: int = MOST_AT_A_TIME,
    reason: str | None = None,
    replayed: bool | None = None,
    after: str | None = None,
) -> Page:
    """The latest letters, or those that come after one; of one reason, replayed or not, if that is asked for.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        DeadLetterUnknownError: there is no letter `after`.
    """
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
        last = known(connection, pipeline, after) if after is not None else None
        # One more tells whether there are more.
        found = dead_letter_rows.latest(
            connection, pipeline, limit=limit + 1, reason=reason, replayed=replayed, after=last
        )
    return Page(found[:limit], found[limit - 1].name if len(found) > limit else None)


def known(connection: sa.Connection, pipeline: str, name: str) -> DeadLetter:
    """One letter.

    Raises:
        DeadLetterUnknownError: there is no letter of that name.
    """
    letter = dead_letter_rows.get(connection, pipeline, name)
    if letter is None:
        raise DeadLetterUnknownError(
            f"There is no dead letter {name!r} in {pipeline!r}.",
            fix="List them with GET /v1/pipelines/{pipeline}/dead-letters.",
        )
    return letter


def _replay_one(engine: sa.Engine, spec: PipelineSpec, letter: DeadLetter, payload: bytes | None) -> Replay:
    if letter.replayed_at is not None:
        return Replay(letter.name, False, "It was replayed before; it is not learnt twice.")
    if payload is None and not letter.whole:
        reason = f"Only {len(letter.payload):,} of its {letter.whole_bytes:,} bytes were kept: send it anew."
        return Replay(letter.name, False, reason)
    schema = spec.record_schema
    labels = LabelMap(schema, Manifest(engine).classes(spec.name) or None)
    decoded = decode(batch_of(letter, payload=payload), schema, labels)
    if decoded.rejected:
        return Replay(letter.name, False, decoded.rejected[0].detail)
    if not _append(engine, spec, letter, decoded.records, labels):
        return Replay(letter.name, False, "It was replayed before; it is not learnt twice.")
    return Replay(letter.name, True, "")


def _append(
    engine: sa.Engine, spec: PipelineSpec, letter: DeadLetter, records: Records, labels: LabelMap
) -> bool:
    """In one transaction: the letter is done with, and its record is in the pushed log."""
    log = PushedLog(engine)
    log.ensure(spec.name)
    with engine.begin() as connection:
        if not dead_letter_rows.mark_replayed(connection, spec.name, letter.name, now(connection)):
            return False
        log.append_in(connection, spec.name, spec.record_schema, records, names=labels.names)
    return True
