"""JSON and msgpack: features as base64 text, as bytes, by column; label or features left out."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest

from streams.base import RecordSchema
from streams.wire.decode import Decoded, decode, decode_json
from streams.wire.rows import BLOCK
from tests.support.real_data import elec2, mnist_test
from tests.support.wire_parts import TABLE, batch, check_partition, row

IMAGE = RecordSchema(shape=(2, 3), dtype="uint8", classes=("0", "1"))
DIGITS = RecordSchema(shape=(28, 28), dtype="uint8", classes=tuple("0123456789"))


def json_rows(*rows: Any, schema: RecordSchema = TABLE) -> Decoded:
    given = batch([one if isinstance(one, bytes) else json.dumps(one).encode() for one in rows], "json")
    found = decode(given, schema)
    check_partition(found, given)
    return found


def msgpack_rows(*rows: Any, schema: RecordSchema = TABLE) -> Decoded:
    given = batch([msgspec.msgpack.encode(one) for one in rows], "msgpack")
    found = decode(given, schema)
    check_partition(found, given)
    return found


def text_of(values: Any, dtype: str = "<f4") -> str:
    return base64.b64encode(np.array(values, dtype).tobytes()).decode()


def test_base64_text_is_the_bytes_of_the_features() -> None:
    found = json_rows(row("a", features=text_of([1.5, -2, 0.1])), row("b"))
    assert not found.rejected
    assert found.records.features[0].tobytes() == found.records.features[1].tobytes()


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (text_of([1, 2]), "wrong-shape"),
        (text_of([1, 2, 3], "<f8"), "wrong-shape"),
        ("", "wrong-shape"),
        ("no base64!", "malformed"),
        (text_of([1, 2, np.nan]), "not-finite"),
        (text_of([1, 2, 1000]), "out-of-range"),
        ({"a": 1, "b": 2}, "schema-mismatch"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "schema-mismatch"),
        ({"a": 1, "b": 2, "C": 3}, "schema-mismatch"),
        ({"a": 1, "b": 2, "c": "3"}, "malformed"),
        ({"a": 1, "b": 2, "c": None}, "malformed"),
        (7, "malformed"),
    ],
)
def test_features_that_do_not_fit_are_isolated(features: Any, reason: str) -> None:
    found = json_rows(
        row("a"),
        row("b", features=features),
        row("c", features={"c": 1, "b": 2, "a": 3}),
        row("d", features=text_of([1, 2, 3])),
    )
    assert found.records.ids.to_pylist() == ["a", "c", "d"]
    assert found.records.features[1].tolist() == [3, 2, 1]
    assert [bad.reason for bad in found.rejected] == [reason]


def test_other_columns_are_named() -> None:
    (bad,) = json_rows(row("a", features={"a": 1, "B": 2, "c": 3})).rejected
    assert bad.detail == "The features have not the declared columns: missing: b; unknown: B."
    many = {f"column-{index}": index for index in range(50)}
    (bad,) = json_rows(row("a", features=many)).rejected
    assert "column-19 and 30 more" in bad.detail


def test_an_object_of_columns_needs_declared_columns() -> None:
    (bad,) = json_rows({"id": "a", "features": {"0": 1}, "label": 0}, schema=IMAGE).rejected
    assert bad.reason == "wrong-shape"
    assert "declares no columns" in bad.detail


def test_one_column_alone_is_read_by_its_name() -> None:
    schema = RecordSchema(columns=("only",), classes=("0", "1"))
    found = json_rows({"id": "a", "features": {"only": 3}, "label": 0}, schema=schema)
    assert found.records.features.tolist() == [[3.0]]


def test_nested_flat_and_packed_images_mix() -> None:
    rows = [
        {"id": "nested", "features": [[1, 2, 3], [4, 5, 6]], "label": 0},
        {"id": "flat", "features": [1, 2, 3, 4, 5, 6], "label": 0},
        {"id": "packed", "features": text_of([1, 2, 3, 4, 5, 6], "u1"), "label": 0},
        {"id": "turned", "features": [[1, 2], [3, 4], [5, 6]], "label": 0},
        {"id": "ragged", "features": [[1, 2, 3], [4, 5]], "label": 0},
    ]
    found = json_rows(*rows, schema=IMAGE)
    assert found.records.ids.to_pylist() == ["nested", "flat", "packed"]
    assert (found.records.features == np.arange(1, 7).reshape(2, 3)).all()
    assert [bad.reason for bad in found.rejected] == ["wrong-shape", "wrong-shape"]


def test_bytes_that_are_as_many_as_the_values_of_a_float_are_refused() -> None:
    (bad,) = json_rows(row("a", features=base64.b64encode(b"abc").decode())).rejected
    assert bad.reason == "wrong-shape"
    assert "3 bytes" in bad.detail


@pytest.mark.parametrize("missing", ["label", "features"])
def test_what_is_missing_is_said_in_a_sentence(missing: str) -> None:
    whole = row("a")
    for one in (whole | {missing: None}, {name: whole[name] for name in whole if name != missing}):
        (bad,) = json_rows(one).rejected
        assert bad.reason == "malformed"
        assert bad.detail.startswith(f"The record has no {missing}: send")


def test_every_block_is_decoded_alike() -> None:
    count = 3 * BLOCK + 7
    rows: list[Any] = [row(str(index), time=float(index)) for index in range(count)]
    for index in (0, BLOCK - 1, BLOCK, count - 1):
        rows[index] = b"{"
    for index in (1, BLOCK + 1):
        rows[index] = row(str(index), features=[[1, 2, 3]])
    found = json_rows(*rows)
    assert len(found.rejected) == 6
    assert found.records.ids.to_pylist() == [str(index) for index in found.indices]
    assert found.records.times.tolist() == found.indices.tolist()


def test_line_breaks_within_and_between_records_do_not_matter() -> None:
    pretty = json.dumps(row("a"), indent=2).encode() + b"\n"
    two = json.dumps(row("b")).encode() + b"\n" + json.dumps(row("c")).encode()
    found = json_rows(pretty, b"", two, row("d"))
    assert found.records.ids.to_pylist() == ["a", "d"]


@pytest.mark.parametrize("text", [b"\\ud800", b"\xed\xa0\x80", b"\\u0000"])
def test_text_that_cannot_be_stored_is_refused_wherever_it_stands(text: bytes) -> None:
    schema = RecordSchema(shape=(1,), open_classes=True, groups=("site",))
    whole = b'{"id":"a","features":[1],"label":"x","groups":{"site":"s"},"split_key":"k"}'
    payloads = [whole.replace(old, b'"' + text + b'"') for old in (b'"a"', b'"x"', b'"s"', b'"k"')]
    found = decode_json([*payloads, whole], schema, positions=list("01234"))
    assert found.indices.tolist() == [4]
    assert [bad.index for bad in found.rejected] == [0, 1, 2, 3]


def test_huge_numbers_are_refused() -> None:
    big = b"1" + b"0" * 5000
    for field in (
        b'"label":' + big,
        b'"label":"yes","time":' + big,
        b'"label":"yes","features":[' + big + b",1,1]",
    ):
        payload = b'{"id":"a","features":[1,2,3],' + field + b"}"
        assert len(json_rows(payload, row("b")).records) == 1


# msgpack


def test_msgpack_takes_bytes_lists_and_columns() -> None:
    values = np.array([1.5, -2.0, 0.1], dtype="<f4")
    found = msgpack_rows(
        row("a", features=values.tobytes()),
        row("b", features=values.tolist()),
        row("c", features=dict(zip("abc", values.tolist(), strict=True))),
    )
    assert not found.rejected
    assert found.records.features.tobytes() == values.tobytes() * 3


def test_msgpack_takes_its_own_timestamps() -> None:
    found = msgpack_rows(row("a", time=datetime(1970, 1, 1, 0, 0, 10, tzinfo=UTC)), row("b", time=None))
    assert np.array_equal(found.records.times, [10.0, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": b"abc"}, "wrong-shape"),
        ({"features": "AAAA"}, "malformed"),
        ({"features": [1.0, 2.0, float("nan")]}, "not-finite"),
        ({"features": np.array([1, 2, np.inf], "<f4").tobytes()}, "not-finite"),
        ({"time": float("inf")}, "bad-time"),
        ({"extra": 1}, "malformed"),
        ({"label": 2**63}, "unknown-label"),
    ],
)
def test_msgpack_isolates_a_poison_record(changes: dict[str, Any], reason: str) -> None:
    found = msgpack_rows(row("a"), row("b", **changes), row("c"))
    assert found.records.ids.to_pylist() == ["a", "c"]
    assert [bad.reason for bad in found.rejected] == [reason]


# Real data, bit for bit.


@pytest.mark.parametrize("wire", ["json", "msgpack"])
def test_mnist_comes_through_bit_for_bit(wire: str) -> None:
    images, labels = mnist_test()
    count = 1000
    packed = [images[index].tobytes() for index in range(count)]
    rows = [{"id": str(index), "label": int(labels[index])} for index in range(count)]
    if wire == "json":
        texts = [base64.b64encode(image).decode() for image in packed]
        sent = [one | {"features": text} for one, text in zip(rows, texts, strict=True)]
        found = json_rows(*sent, schema=DIGITS)
    else:
        sent_bytes = [one | {"features": image} for one, image in zip(rows, packed, strict=True)]
        found = msgpack_rows(*sent_bytes, schema=DIGITS)
    assert not found.rejected
    assert found.records.features.tobytes() == images[:count].tobytes()
    assert found.records.labels.tolist() == labels[:count].tolist()


def test_floats_of_elec2_come_through_base64_bit_for_bit() -> None:
    features, _ = elec2()
    schema = RecordSchema(shape=(6,), classes=("0", "1"))
    rows = [{"id": str(p), "features": text_of(features[p]), "label": 0} for p in range(2000)]
    assert json_rows(*rows, schema=schema).records.features.tobytes() == features[:2000].tobytes()


def test_an_empty_object_is_no_features_where_no_columns_are_declared() -> None:
    schema = RecordSchema(shape=(2,), classes=("down", "up"))
    payloads = [
        b'{"id": "a", "features": {}, "label": "up"}',
        b'{"id": "b", "features": [1, 2], "label": "up"}',
    ]
    found = decode_json(payloads, schema, positions=["1", "2"])
    assert found.records.ids.to_pylist() == ["b"]
    (bad,) = found.rejected
    assert (bad.position, bad.reason) == ("1", "wrong-shape")
    assert "declares no columns" in bad.detail
