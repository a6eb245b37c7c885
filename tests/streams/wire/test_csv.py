"""CSV: lines under a header; a bad line costs no other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from streams.base import LazyTexts, RecordSchema, TableColumns
from streams.wire.decode import Decoded, decode
from tests.support.real_data import mnist_test
from tests.support.wire_parts import TABLE, batch, check_partition

HEADER = ("id", "a", "b", "c", "label", "time")
TIMED = TableColumns(time="time")


def lines(
    *found: bytes, header: Sequence[str] = HEADER, schema: RecordSchema = TABLE, **more: Any
) -> Decoded:
    given = batch(found, "csv", header=header, **({"table": TIMED} | more))
    decoded = decode(given, schema)
    check_partition(decoded, given)
    return decoded


def test_columns_are_found_by_their_names_in_any_order() -> None:
    header = ("c", "label", "key", "a", "name", "b")
    table = TableColumns(id="name", split_key="key")
    found = lines(b'3,yes,k,1,"x, y",2', header=header, table=table).records
    assert found.ids.to_pylist() == ["x, y"]
    assert found.features.tolist() == [[1, 2, 3]]
    assert found.split_keys.to_pylist() == ["k"]
    assert np.isnan(found.times[0])


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        (b"", "malformed", "no label"),
        (b"x,1,2,3,yes", "malformed", "5 fields"),
        (b"x,1,2,3,yes,1,", "malformed", "7 fields"),
        (b"x,1,b,3,yes,1", "malformed", "'b' holds 'b'"),
        (b"x,1,,3,yes,1", "malformed", "'b' holds no number"),
        (b"x,1,2,1_0,yes,1", "malformed", ""),
        (b"x,,,,yes,1", "malformed", "no features"),
        (b"x,1,2,3,,1", "malformed", "no label"),
        (b",1,2,3,yes,1", "bad-id", "missing"),
        (b"x,1,2,nan,yes,1", "not-finite", ""),
        (b"x,1,2,inf,yes,1", "not-finite", ""),
        (b"x,1,2,1e39,yes,1", "not-finite", "too large"),
        (b"x,1,2,3,maybe,1", "unknown-label", "'maybe'"),
        (b"x,1,2,3,yes,noon", "bad-time", "RFC 3339"),
        (b"x,1,2,3,yes,2024-01-01T00:00:00", "bad-time", ""),
        (b"x,1,2,3,yes,2024-02-30T00:00:00Z", "bad-time", ""),
        (b"x,1,2,3,yes,inf", "bad-time", ""),
        (b"\xff,1,2,3,yes,1", "malformed", "not UTF-8"),
        (b'"x,1,2,3,yes,1', "malformed", ""),
        (b'x,1,2,3,yes,"1', "malformed", "not CSV"),
        (b"x,1,2,3,yes,1\nx,1,2,3,yes,1", "malformed", ""),
        (b"x,1,2,3,yes,1\rx,1,2,3,yes,1", "malformed", ""),
        (b'"x\ny",1,2,3,yes,1', "malformed", "one row"),
        (b"x\0,1,2,3,yes,1", "bad-id", "NUL"),
        (b"\n", "malformed", ""),
        (b"\r", "malformed", ""),
    ],
)
def test_a_bad_line_is_isolated(line: bytes, reason: str, words: str) -> None:
    found = lines(b"a,1,2,3,yes,1", line, b"b,1,2,3,yes,2")
    assert found.records.ids.to_pylist() == ["a", "b"]
    (bad,) = found.rejected
    assert (bad.reason, bad.payload) == (reason, line)
    assert words in bad.detail
    assert bad.detail.endswith(".")


def test_lines_that_together_make_as_many_rows_are_told_apart() -> None:
    # The open quote takes the next line in, and the third line is two: four rows from four lines.
    found = lines(b'"a', b'b",1,2,3,yes,1', b"c,1,2,3,yes,1\nd,1,2,3,yes,1", b"e,1,2,3,yes,1")
    assert found.indices.tolist() == [1, 3]
    assert found.records.ids.to_pylist() == ['b"', "e"]


def test_a_byte_order_mark_belongs_to_the_text_it_stands_in() -> None:
    marked = b"\xef\xbb\xbfa,1,2,3,yes,1"
    for sent in ([marked, b"b,1,2,3,yes,1"], [b"b,1,2,3,yes,1", marked]):
        assert "\ufeffa" in lines(*sent).records.ids.to_pylist()


def test_times_may_be_seconds_or_text() -> None:
    found = lines(
        b"a,1,2,3,yes,12.5",
        b"b,1,2,3,yes,1970-01-01T01:00:10.25+01:00",
        b"c,1,2,3,yes,",
        b"d,1,2,3,yes,1970-01-01 00:00:10Z",
    )
    assert not found.rejected
    assert np.array_equal(found.records.times, [12.5, 10.25, np.nan, 10.0], equal_nan=True)


def test_lines_may_end_as_windows_ends_them() -> None:
    found = lines(b"a,1,2,3,yes,1\r", b"b,1,x,3,yes,1\r", b"c,1,2,3,yes,\r")
    assert found.records.ids.to_pylist() == ["a", "c"]
    assert np.isnan(found.records.times[1])


def test_rows_without_ids_are_named_by_the_batch() -> None:
    ids = LazyTexts(lambda index: f"file.csv:{index}", range(10, 13))
    header, table = ("a", "b", "c", "label"), TableColumns(id=None)
    found = lines(b"1,2,3,yes", b"x", b"1,2,3,no", header=header, table=table, ids=ids)
    assert found.records.ids.to_pylist() == ["file.csv:10", "file.csv:12"]
    assert found.records.split_keys is found.records.ids
    assert [bad.position for bad in found.rejected] == ["p1"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (("id", "a", "b", "label", "time"), "missing: c."),
        ((*HEADER, "d"), "unknown: d."),
        ((*HEADER, "a"), "twice: a."),
        (("id", "a", "b", "C", "lable", "time"), "missing: c, label; unknown: C, lable."),
    ],
)
def test_a_header_that_does_not_fit_refuses_every_line(header: tuple[str, ...], message: str) -> None:
    found = lines(b"1,2,3,4,5", b"1", header=header)
    assert [bad.reason for bad in found.rejected] == ["schema-mismatch", "schema-mismatch"]
    assert found.rejected[0].detail.endswith(message)


def test_images_are_columns_by_number() -> None:
    images, labels = mnist_test()
    schema = RecordSchema(shape=(28, 28), dtype="uint8", classes=tuple("0123456789"))
    header = ["label", *map(str, range(784))]
    rows = np.concatenate([labels[:200, None], images[:200].reshape(200, -1)], axis=1)
    sent = [",".join(map(str, one)).encode() for one in rows.tolist()]
    names = [f"digit-{index}" for index in range(200)]
    found = lines(*sent, header=header, schema=schema, table=TableColumns(id=None), ids=names)
    assert not found.rejected
    assert found.records.features.tobytes() == images[:200].tobytes()
    assert found.records.labels.tolist() == labels[:200].tolist()
    assert found.records.ids.to_pylist() == names


def test_a_file_of_labels_alone_is_a_table_too() -> None:
    schema = TABLE.model_copy(update={"labels_within_seconds": 60.0})
    found = lines(b"a,yes", b"b,", header=("id", "label"), schema=schema, table=TableColumns())
    assert found.records.ids.to_pylist() == ["a"]
    assert [bad.reason for bad in found.rejected] == ["malformed"]
    found = lines(b"a,1,2,3", header=("id", "a", "b", "c"), schema=schema, table=TableColumns())
    assert found.records.labels.tolist() == [-1]
