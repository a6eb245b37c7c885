"""What is produced in a crash run: every payload follows from its lane and its place, so that the truth is
known without asking any part of the product.

A lane is an ordered list of payloads: a partition of Kafka, a stream of Redis, a row of files, the requests
of one sender. Poison stands at known places in every lane.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from streams.base import RecordSchema

Variant = Literal["plain", "window", "late", "s3"]
VARIANTS: tuple[Variant, ...] = ("plain", "window", "late", "s3")
"""One after the other: as it is; a duplicate window, and records sent twice; features and labels apart; the
experiences in S3."""

LANES = (0, 1)
RECORDS = 40
"""In one experience."""
CHUNK = 20
"""Payloads that are sent at a time."""
WINDOW = 4_000
"""Far more records than lie between a record and its copy."""

CLASSES = ("down", "up")
_SCHEMA = RecordSchema(columns=("x", "y"), classes=CLASSES)
_EVERY = 13
_BACK = 33


@dataclass(frozen=True)
class Item:
    """One payload, and what must become of it."""

    record: str
    """The id of the record, or half of one, that it holds; empty: it is poison."""
    json: bytes
    csv: bytes
    copy: bool = False
    """Whether this record is sent a second time."""


@dataclass(frozen=True)
class Truth:
    """What must be found after a run."""

    records: Counter[str]
    """Ids of complete records: each in an experience once."""
    copies: int
    """Records that were sent a second time, and must have been dropped."""


def schema_of(variant: Variant) -> RecordSchema:
    if variant != "late":
        return _SCHEMA
    return RecordSchema(columns=("x", "y"), classes=CLASSES, labels_within_seconds=30 * 86_400)


def values_of(record: str) -> tuple[float, float, int]:
    """Features and class id of a record, which follow from its id."""
    lane, _, place = record.rpartition("-")
    number = int(place)
    return float(number), float(lane or 0), (number + int(lane or 0)) % 2


def item(variant: Variant, lane: int, place: int) -> Item:
    """The payload at a place of a lane."""
    if _is_poison(lane, place):
        return _poison(lane, place)
    if variant == "late":
        return _half(lane, place)
    original = _original(lane, place) if variant == "window" else None
    return _whole(*(original or (lane, place)), copy=original is not None)


def chunk(variant: Variant, lane: int, number: int) -> list[Item]:
    """The payloads that are sent together."""
    return [item(variant, lane, place) for place in range(number * CHUNK, (number + 1) * CHUNK)]


def lane_items(variant: Variant, lane: int, chunks: int) -> list[Item]:
    return [one for number in range(chunks) for one in chunk(variant, lane, number)]


def truth(variant: Variant, chunks: int) -> Truth:
    """What so many chunks of every lane hold."""
    lanes = [lane_items(variant, lane, chunks) for lane in LANES]
    sent = [one for items in lanes for one in items]
    if variant != "late":
        whole = Counter(one.record for one in sent if one.record and not one.copy)
        return Truth(whole, sum(one.copy for one in sent))
    features, labels = ({one.record for one in items if one.record} for items in lanes)
    return Truth(Counter(features & labels), 0)


def complete(variant: Variant, number: int) -> int:
    """How many records this chunk of every lane brings together."""
    lanes = [{one.record for one in chunk(variant, lane, number) if not one.copy} - {""} for lane in LANES]
    return len(lanes[0] & lanes[1]) if variant == "late" else sum(map(len, lanes))


def good(items: Iterable[Item]) -> list[str]:
    return [one.record for one in items if one.record]


def _is_poison(lane: int, place: int) -> bool:
    return place % _EVERY == 3 + lane


def _original(lane: int, place: int) -> tuple[int, int] | None:
    """The record that is sent again at this place; half of them were first sent in the other lane."""
    if place % 10 != 7:
        return None
    other = lane if place % 20 == 7 else 1 - lane
    earlier = place - _BACK
    while _is_poison(other, earlier) or earlier % 10 == 7:
        earlier -= 1
    return (other, earlier) if earlier >= 0 else None


def _whole(lane: int, place: int, *, copy: bool) -> Item:
    name = f"{lane}-{place}"
    x, y, label = values_of(name)
    fields = {"id": name, "features": [x, y], "label": CLASSES[label]}
    return Item(name, json.dumps(fields).encode(), f"{name},{x},{y},{CLASSES[label]}".encode(), copy)


def _half(lane: int, place: int) -> Item:
    name = str(place)
    x, y, label = values_of(name)
    fields = {"id": name, "features": [x, y]} if lane == 0 else {"id": name, "label": CLASSES[label]}
    return Item(name, json.dumps(fields).encode(), b"")


def _poison(lane: int, place: int) -> Item:
    name = f"bad-{lane}-{place}"
    kinds = (
        (f"{name} is no JSON", f"{name},1.0"),
        (json.dumps({"id": name, "features": [1, 2], "label": "sideways"}), f"{name},1.0,2.0,sideways"),
        (json.dumps({"id": name, "features": [1, 2, 3], "label": "up"}), f"{name},1.0,2.0,up,3.0"),
        (json.dumps({"id": name, "features": [1, float("nan")], "label": "up"}), f"{name},1.0,nan,up"),
    )
    as_json, as_csv = kinds[place // _EVERY % len(kinds)]
    return Item("", as_json.encode(), as_csv.encode())
