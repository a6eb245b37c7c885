"""Replay of dead letters: each is decoded again and, if valid now, pushed back into its stream once."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from service.errors import DeadLetterUnfitError, DeadLetterUnknownError
from service.pipelines import PipelineSpec
from service.state import pipelines
from service.state.database import now
from streams.records import LabelMap, Records
from streams.state import dead_letters
from streams.state.dead_letters import DeadLetter, batch_of
from streams.state.manifest import Manifest
from streams.state.pushed import PushedLog
from streams.state.tables import reading
from streams.wire.decode import decode

MOST_AT_A_TIME = 1000
_REPLAYED_BEFORE = "It was replayed before; it is not learnt twice."


@dataclass(frozen=True)
class Replay:
    """The result for one dead letter."""

    dead_letter: str
    """Its id."""
    replayed: bool
    reason: str
    """Why it is still refused; empty when it was replayed."""


def replay(
    engine: sa.Engine, pipeline: str, *, chosen: Sequence[str], payload: bytes | None = None
) -> list[Replay]:
    """Decode dead letters again and put those that are valid now back into the stream, each at most once.

    `payload` replaces the payload of a single dead letter: the same record, corrected.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        DeadLetterUnknownError: there is no dead letter with that id.
        DeadLetterUnfitError: a corrected payload is given for more than one dead letter.
    """
    if payload is not None and len(chosen) != 1:
        raise DeadLetterUnfitError(
            f"One corrected payload cannot replace {len(chosen)} dead letters.",
            fix="Send a corrected payload for one dead letter at a time.",
        )
    with reading(engine) as connection:
        spec = pipelines.load_spec(connection, pipeline)
        found = [known(connection, pipeline, each) for each in dict.fromkeys(chosen)]
    return [_replay_one(engine, spec, each, payload) for each in found]


@dataclass(frozen=True)
class Page:
    """Some dead letters, newest first."""

    dead_letters: Sequence[DeadLetter]
    next: str | None
    """Id to continue after; None: there are no more."""


def page(
    engine: sa.Engine,
    pipeline: str,
    *,
    limit: int = MOST_AT_A_TIME,
    reason: str | None = None,
    replayed: bool | None = None,
    after: str | None = None,
) -> Page:
    """The latest dead letters, or those after `after`, filtered by `reason` and `replayed` where given.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        DeadLetterUnknownError: there is no dead letter `after`.
    """
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
        last = known(connection, pipeline, after) if after is not None else None
        # One more shows whether there are more.
        found = dead_letters.latest(
            connection, pipeline, limit=limit + 1, reason=reason, replayed=replayed, after=last
        )
    return Page(found[:limit], found[limit - 1].name if len(found) > limit else None)


def known(connection: sa.Connection, pipeline: str, dead_letter: str) -> DeadLetter:
    """One dead letter by its id.

    Raises:
        DeadLetterUnknownError: there is no dead letter with that id.
    """
    found = dead_letters.get(connection, pipeline, dead_letter)
    if found is None:
        raise DeadLetterUnknownError(
            f"There is no dead letter {dead_letter!r} in {pipeline!r}.",
            fix="List them with GET /v1/pipelines/{pipeline}/dead-letters.",
        )
    return found


def _replay_one(
    engine: sa.Engine, spec: PipelineSpec, dead_letter: DeadLetter, payload: bytes | None
) -> Replay:
    def refused(reason: str) -> Replay:
        return Replay(dead_letter.name, False, reason)

    if dead_letter.replayed_at is not None:
        return refused(_REPLAYED_BEFORE)
    if payload is None and not dead_letter.whole:
        kept, sent = len(dead_letter.payload), dead_letter.whole_bytes
        return refused(f"Only {kept:,} of its {sent:,} bytes were kept: send it again.")
    schema = spec.record_schema
    labels = LabelMap(schema, Manifest(engine).classes(spec.name) or None)
    decoded = decode(batch_of(dead_letter, payload=payload), schema, labels)
    if decoded.rejected:
        return refused(decoded.rejected[0].detail)
    if not _append(engine, spec, dead_letter, decoded.records, labels):
        return refused(_REPLAYED_BEFORE)
    return Replay(dead_letter.name, True, "")


def _append(
    engine: sa.Engine, spec: PipelineSpec, dead_letter: DeadLetter, records: Records, labels: LabelMap
) -> bool:
    """Mark the dead letter replayed and append its record to the pushed log, in one transaction."""
    log = PushedLog(engine)
    log.ensure(spec.name)
    with engine.begin() as connection:
        if not dead_letters.mark_replayed(connection, spec.name, dead_letter.name, now(connection)):
            return False
        log.append_in(connection, spec.name, spec.record_schema, records, names=labels.names)
    return True
