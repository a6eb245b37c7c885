"""Decoders: good records survive their neighbours, and no bytes do more harm than a rejection."""

import json
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.base import RawBatch, RecordInvalidError, RecordSchema
from streams.records import Records, join_records
from streams.wire.decode import (
    PAYLOAD_CAP_BYTES,
    Decoded,
    Reason,
    decode,
    decode_batch,
    decode_json,
    encode_batch,
    encode_json,
)

SQUARE = RecordSchema(shape=(2, 2), classes=("cat", "dog", "3"), minimum=-1.5, maximum=16.0)
PIXELS = RecordSchema(shape=(3,), dtype="uint8", classes=("0", "1"), groups=("site", "sensor"))


def record(**changes: Any) -> bytes:
    fields = {"id": "a", "features": [1, 2, 3, 4], "label": "cat"} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def pixels(**changes: Any) -> bytes:
    fields = {"features": [0, 7, 255], "label": 1, "groups": {"site": "north", "sensor": 4}} | changes
    return record(**fields)


def decoded(*payloads: bytes, schema: RecordSchema = SQUARE) -> Decoded:
    return decode_json(payloads, schema, positions=[str(index) for index in range(len(payloads))])


def equal(one: Records, other: Records) -> bool:
    columns = ("ids", "features", "labels", "split_keys")
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)
        and np.array_equal(one.times, other.times, equal_nan=True)
        and one.features.dtype == other.features.dtype
        and {k: v.tolist() for k, v in one.groups.items()} == {k: v.tolist() for k, v in other.groups.items()}
    )


def test_reads_every_form_of_a_good_record() -> None:
    found = decoded(
        record(),
        record(id="b", features=[[1, 2], [3, 4.5]], label=3, time=12.5, split_key="person-1"),
        record(id="c", label="dog", time="1970-01-01T01:00:10+01:00", groups={}),
    )
    assert not found.rejected
    assert found.positions == ["0", "1", "2"]
    assert found.records.ids.tolist() == ["a", "b", "c"]
    assert found.records.features.shape == (3, 2, 2)
    assert found.records.features.dtype == np.float32
    assert found.records.labels.tolist() == [0, 2, 1]
    assert np.array_equal(found.records.times, [np.nan, 12.5, 10.0], equal_nan=True)
    assert found.records.split_keys.tolist() == ["a", "person-1", "c"]


def test_reads_groups_and_whole_numbers() -> None:
    found = decoded(pixels(), schema=PIXELS)
    assert found.records.features.dtype == np.uint8
    assert {name: column.tolist() for name, column in found.records.groups.items()} == {
        "site": ["north"],
        "sensor": ["4"],
    }


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 100_000, "malformed"),
        (record() + record(), "malformed"),
        (record(extra=1), "malformed"),
        (record(label=...), "malformed"),
        (record(features=...), "malformed"),
        (record(label=True), "malformed"),
        (record(time="2024-01-01"), "malformed"),
        (record(time="2024-01-01T00:00:00"), "malformed"),
        (b'{"id":"a","features":[1,2,3,1e999],"label":"cat"}', "malformed"),
        (record(features=[1, 2, 3]), "wrong-shape"),
        (record(features=[]), "wrong-shape"),
        (record(features=[[1, 2], [3]]), "wrong-shape"),
        (record(features=[[1, 2, 3, 4]]), "wrong-shape"),
        (record(features=[[[1, 2], [3, 4]]]), "wrong-shape"),
        (record(features=[1, 2, 3, float("nan")]), "not-finite"),
        (record(features=[1, 2, 3, float("-inf")]), "not-finite"),
        (record(features=[1, 2, 3, 1e300]), "not-finite"),
        (record(features=[1, 2, 3, 16.001]), "out-of-range"),
        (record(features=[1, 2, 3, -1.6]), "out-of-range"),
        (record(label="bird"), "unknown-label"),
        (record(label=0), "unknown-label"),
        (record(id=""), "bad-id"),
        (record(id="x" * 201), "bad-id"),
        (record(id="a\0"), "bad-id"),
        (record(split_key=""), "bad-split-key"),
        (record(groups={"site": "north"}), "unknown-group"),
    ],
)
def test_isolates_a_poison_record_with_its_reason(payload: bytes, reason: str) -> None:
    found = decoded(record(id="before"), payload, record(id="after"))
    assert found.records.ids.tolist() == ["before", "after"]
    assert list(found.positions) == ["0", "2"]
    (bad,) = found.rejected
    assert (bad.position, bad.reason) == ("1", reason)
    assert bad.detail.endswith(".")
    assert bad.payload == payload[:PAYLOAD_CAP_BYTES]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (pixels(features=[0, 1, 256]), "out-of-range"),
        (pixels(features=[0, 1, -1]), "out-of-range"),
        (pixels(features=[0, 1, 0.5]), "out-of-range"),
        (pixels(groups={"site": "north"}), "missing-group"),
        (pixels(groups=...), "missing-group"),
        (pixels(groups={"site": "", "sensor": 1}), "bad-group"),
    ],
)
def test_holds_whole_numbers_and_groups(payload: bytes, reason: str) -> None:
    found = decoded(pixels(), payload, schema=PIXELS)
    assert len(found.records) == 1
    assert [bad.reason for bad in found.rejected] == [reason]


def test_a_float32_at_its_limit_passes() -> None:
    schema = RecordSchema(shape=(1,), classes=("0", "1"), minimum=0.1, maximum=0.7)
    sent = [float(np.float32(0.1)), float(np.float32(0.7))]
    payloads = [record(features=[value], label=0) for value in sent]
    assert not decoded(*payloads, schema=schema).rejected


def test_nothing_in_gives_nothing_out() -> None:
    found = decoded()
    assert (len(found.records), found.positions, found.rejected) == (0, [], [])
    assert found.records.features.shape == (0, 2, 2)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
good = st.builds(
    lambda **fields: json.dumps(fields).encode(),
    id=texts,
    features=st.lists(st.floats(-1.5, 16, width=32), min_size=4, max_size=4),
    label=st.sampled_from(["cat", "dog", 3]),
    time=st.none() | st.floats(-1e9, 1e10),
    split_key=st.none() | texts,
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3)
)
nearly = st.fixed_dictionaries(
    {},
    optional={
        name: trees | st.just(value)
        for name, value in {
            "id": "a",
            "features": [1, 2, 3, 4],
            "label": "cat",
            "time": 3,
            "groups": {},
            "split_key": "k",
        }.items()
    },
).map(lambda fields: json.dumps(fields).encode())


@settings(deadline=None, max_examples=150)
@given(st.lists(st.binary(max_size=60) | nearly | good, max_size=12))
def test_any_bytes_become_a_record_or_a_rejection(payloads: list[bytes]) -> None:
    for schema in (SQUARE, PIXELS):
        found = decoded(*payloads, schema=schema)
        indices = sorted([*map(int, found.positions), *(int(bad.position) for bad in found.rejected)])
        assert indices == list(range(len(payloads)))
        assert len(found.records) == len(found.positions)
        assert {bad.reason for bad in found.rejected} <= set(get_args(Reason))


@settings(deadline=None, max_examples=60)
@given(st.lists(good, max_size=8), st.lists(st.binary(max_size=30), max_size=8), st.randoms())
def test_neighbours_do_not_change_a_record(alive: list[bytes], poison: list[bytes], random: Any) -> None:
    mixed = [(payload, True) for payload in alive] + [(payload, False) for payload in poison]
    random.shuffle(mixed)
    found = decoded(*(payload for payload, _ in mixed))
    alone = [decoded(payload).records for payload, is_good in mixed if is_good]
    assert equal(found.records, join_records(alone, SQUARE))


@settings(deadline=None, max_examples=60)
@given(st.lists(good, max_size=8))
def test_both_wire_forms_give_the_same_records_back(payloads: list[bytes]) -> None:
    records = decoded(*payloads).records
    assert equal(decode_batch(encode_batch(records, SQUARE), SQUARE), records)
    assert equal(decoded(*encode_json(records, SQUARE)).records, records)


def test_arrow_keeps_groups_and_pixels() -> None:
    records = decoded(pixels(), pixels(id="b"), schema=PIXELS).records
    assert equal(decode_batch(encode_batch(records, PIXELS), PIXELS), records)
    assert equal(decoded(*encode_json(records, PIXELS), schema=PIXELS).records, records)


def arrow_batch(payload: bytes, *, skip: int, take: int) -> RawBatch:
    positions = [f"1:{row}" for row in range(skip + 1, skip + take + 1)]
    return RawBatch("p", "", [payload], positions, wire="arrow", skip=skip)


def test_a_stretch_of_an_arrow_payload_is_decoded_exactly() -> None:
    payload = encode_batch(decoded(*(record(id=str(row)) for row in range(10))).records, SQUARE)
    found = decode(arrow_batch(payload, skip=3, take=4), SQUARE)
    assert found.records.ids.tolist() == ["3", "4", "5", "6"]
    assert found.positions == ["1:4", "1:5", "1:6", "1:7"]


def test_another_schema_is_refused_by_name() -> None:
    payload = encode_batch(decoded(record()).records, SQUARE)
    other = SQUARE.model_copy(update={"maximum": 99.0})
    with pytest.raises(RecordInvalidError, match="declares") as caught:
        decode_batch(payload, other)
    assert caught.value.reason == "schema-mismatch"
    (bad,) = decode(arrow_batch(payload, skip=0, take=1), other).rejected
    assert (bad.reason, bad.position) == ("schema-mismatch", "1:1")


PAYLOAD = encode_batch(decoded(record(), record(id="b", label=3)).records, SQUARE)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200) | st.integers(0, len(PAYLOAD)).map(lambda cut: PAYLOAD[:cut]))
def test_broken_arrow_becomes_a_rejection(payload: bytes) -> None:
    found = decode(arrow_batch(payload, skip=0, take=2), SQUARE)
    assert len(found.records) + len(found.rejected) in (1, 2)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(PAYLOAD) - 1), st.integers(1, 255))
def test_a_flipped_byte_in_arrow_never_raises(index: int, change: int) -> None:
    payload = bytearray(PAYLOAD)
    payload[index] ^= change
    decode(arrow_batch(bytes(payload), skip=0, take=2), SQUARE)
