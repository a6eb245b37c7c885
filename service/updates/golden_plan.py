"""Golden sets in a plan: which are judged, with the stored answers of champion and anchor on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from service.gate.base import Bits
from service.state import champions, golden, holdouts
from service.state.champions import Version
from service.updates.inputs import Golden, Kept, kept_bits
from streams.state.experiences import Part


@dataclass(frozen=True)
class PlannedGolden:
    """A golden set that an update is judged on."""

    number: int
    name: str
    part: Part
    margin: float | None
    """None: no right answer may be lost."""
    looks: int
    """Earlier updates that were compared on it."""
    past: Bits | None
    """The champion's stored answers; None: it must answer."""
    anchor_version: int | None
    anchored_by: str | None
    """The update that made the anchor; None: there is none, or the champion is the anchor."""
    anchor: Bits | None
    """The anchor's stored answers; None: it must answer, or the champion is the anchor."""

    def without_answers(self) -> "PlannedGolden":
        """The same, with nothing stored: champion and anchor answer again."""
        return replace(self, past=None, anchor=None)


def planned(
    connection: sa.Connection, pipeline: str, champion: Version | None, *, excluding: str
) -> tuple[PlannedGolden, ...]:
    """The golden sets of a pipeline that are not retired, for an update that starts from `champion`.

    Args:
        excluding: the update itself, whose looks are not counted.
    """
    active = [each for each in golden.of_pipeline(connection, pipeline) if not each.retired]
    if not active:
        return ()
    looks = holdouts.count_looks(connection, pipeline, part="golden", excluding=excluding)
    found = []
    for each in active:
        other = _anchor(connection, pipeline, each.anchor_version, champion)
        found.append(
            PlannedGolden(
                number=each.number,
                name=each.name,
                part=each.part,
                margin=each.margin,
                looks=looks.get(each.number, 0),
                past=_answers(connection, champion, each.number, each.part.rows),
                anchor_version=each.anchor_version,
                anchored_by=other.update_id if other else None,
                anchor=_answers(connection, other, each.number, each.part.rows),
            )
        )
    return tuple(found)


def _anchor(
    connection: sa.Connection, pipeline: str, number: int | None, champion: Version | None
) -> Version | None:
    """The version that is the anchor, where it is another than the champion."""
    if number is None or (champion is not None and champion.version == number):
        return None
    return champions.version(connection, pipeline, number)


def _answers(connection: sa.Connection, version: Version | None, number: int, records: int) -> Bits | None:
    """A version's stored answers on the records of a set; None: there are none."""
    if version is None:
        return None
    stored = holdouts.of_version(
        connection, version.pipeline, version=version.version, part="golden", only=[number]
    ).get(number)
    return stored if stored is not None and len(stored) == records else None


def documents(sets: Sequence[PlannedGolden]) -> tuple[Golden, ...]:
    """The documents of planned sets: answers by digest."""
    return tuple(
        Golden(
            number=each.number,
            name=each.name,
            part=each.part,
            margin=each.margin,
            looks=each.looks,
            past=_kept(each.past),
            anchor_version=each.anchor_version,
            anchored_by=each.anchored_by,
            anchor=_kept(each.anchor),
        )
        for each in sets
    )


def _kept(bits: Bits | None) -> Kept | None:
    return None if bits is None else kept_bits(bits)


def stored(
    connection: sa.Connection, pipeline: str, champion: Version | None, documents: Sequence[Golden]
) -> tuple[PlannedGolden, ...]:
    """The planned sets of stored documents; answers whose digest has changed are left out."""
    found = []
    for each in documents:
        other = _anchor(connection, pipeline, each.anchor_version, champion) if each.anchored_by else None
        past = _answers(connection, champion, each.number, each.part.rows) if each.past else None
        anchor = _answers(connection, other, each.number, each.part.rows) if each.anchor else None
        found.append(
            PlannedGolden(
                number=each.number,
                name=each.name,
                part=each.part,
                margin=each.margin,
                looks=each.looks,
                past=past if _kept(past) == each.past else None,
                anchor_version=each.anchor_version,
                anchored_by=each.anchored_by,
                anchor=anchor if _kept(anchor) == each.anchor else None,
            )
        )
    return tuple(found)


def answered_by(sets: Sequence[PlannedGolden], answered: Mapping[int, Bits]) -> dict[int, dict[int, Bits]]:
    """Version of an anchor -> its new answers, by the number of the set."""
    found: dict[int, dict[int, Bits]] = {}
    for each in sets:
        if each.number in answered and each.anchor_version is not None and each.anchored_by:
            found.setdefault(each.anchor_version, {})[each.number] = answered[each.number]
    return found


def given_again(
    sets: Sequence[Golden], champion: Mapping[int, Bits], anchors: Mapping[int, Bits]
) -> list[tuple[str, Kept, Kept]]:
    """Whose answers on which set, as they were stored and as they are given now, where both are known."""
    sides = [
        (f"{who}'s answers on golden set {each.name}", kept, answered.get(each.number))
        for each in sets
        for who, kept, answered in (("champion", each.past, champion), ("anchor", each.anchor, anchors))
    ]
    return [(name, kept, kept_bits(bits)) for name, kept, bits in sides if kept and bits is not None]
