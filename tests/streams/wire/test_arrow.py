"""Arrow: our own batches, and tables that others wrote, row by row."""

import threading
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.base import LazyTexts, RawBatch, RecordSchema, TableColumns
from streams.hashing import hash_texts
from streams.records import LabelMap, Records, check_texts, compact, text_column
from streams.wire.arrow_sizes import size_of
from streams.wire.decode import (
    Decoded,
    columns_problem,
    count_records,
    decode,
    encode_batch,
    from_arrow,
    to_arrow,
)
from tests.support.real_data import elec2, mnist_test
from tests.support.wire_parts import TABLE, arrow, check_partition, equal, ipc

DIGITS = RecordSchema(shape=(28, 28), dtype="uint8", classes=tuple("0123456789"))
FLAT = RecordSchema(shape=(3,), classes=("no", "yes", "3"), minimum=-100.0, maximum=100.0)


def columns(**changes: Any) -> dict[str, Any]:
    """Four good rows of `TABLE`."""
    found = {
        "id": ["w", "x", "y", "z"],
        "a": [1.0, 2.0, 3.0, 4.0],
        "b": pa.array([1, 2, 3, 4], pa.int16()),
        "c": pa.array([0.5, 0.5, 0.5, 0.5], pa.float32()),
        "label": ["no", "yes", "no", "3"],
    } | changes
    return {name: column for name, column in found.items() if column is not ...}


def table_rows(found: pa.Table, schema: RecordSchema = TABLE, *, file: bool = False, **more: Any) -> Decoded:
    sent = arrow(found, file=file, **more)
    decoded = decode(sent, schema)
    if not (len(decoded.rejected) == 1 and not len(decoded.records)):
        check_partition(decoded, sent)
    return decoded


# Tables that others wrote.


@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
def test_a_table_is_read_by_the_names_of_its_columns(file: bool) -> None:
    found = table_rows(pa.table(columns()), file=file)
    assert not found.rejected
    assert found.records.ids.to_pylist() == ["w", "x", "y", "z"]
    assert found.records.features.tolist() == [[n, n, 0.5] for n in (1, 2, 3, 4)]
    assert found.records.labels.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    "features",
    [
        pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.float32(), 3)),
        pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.float64())),
        pa.array([[1, 2, 3], [4, 5, 6]], pa.large_list(pa.int64())),
        pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.uint8(), 3)),
        pa.array([np.array(v, "<f4").tobytes() for v in ([1, 2, 3], [4, 5, 6])], pa.binary(12)),
        pa.array([np.array(v, "<f4").tobytes() for v in ([1, 2, 3], [4, 5, 6])], pa.binary()),
        pa.array([np.array(v, "<f4").tobytes() for v in ([1, 2, 3], [4, 5, 6])], pa.large_binary()),
    ],
    ids=lambda column: str(column.type),
)
def test_features_may_be_one_column(features: Any) -> None:
    whole = pa.table({"id": ["a", "b"], "features": features, "label": ["no", "yes"]})
    found = table_rows(whole, FLAT)
    assert found.records.features.tolist() == [[1, 2, 3], [4, 5, 6]]
    holed = pa.concat_tables(
        [whole, pa.table({"id": ["n"], "label": ["no"]}), whole], promote_options="default"
    )
    found = table_rows(holed, FLAT)
    assert found.indices.tolist() == [0, 1, 3, 4]
    assert found.records.features.tolist() == [[1, 2, 3], [4, 5, 6]] * 2
    assert "no features" in found.rejected[0].detail


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        (pa.array([1, 2]), pa.array([3, 3], pa.uint8())),
        (pa.array(["1", "2"], pa.large_string()), pa.array(["3", "3"]).dictionary_encode()),
        (pa.array(["1", "2"]).dictionary_encode(), pa.array([3, 3], pa.int64())),
    ],
)
def test_ids_and_labels_may_be_integers_or_any_text(ids: Any, labels: Any) -> None:
    features = pa.array([[1, 2, 3], [4, 5, 6]])
    found = table_rows(pa.table({"id": ids, "features": features, "label": labels}), FLAT)
    assert found.records.ids.to_pylist() == ["1", "2"]
    assert found.records.labels.tolist() == [2, 2]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([0.5, None, 10.0, 1e9]),
        pa.array([500, None, 10_000, 10**12], pa.timestamp("ms")),
        pa.array([500_000_000, None, 10**10, 10**18], pa.timestamp("ns", "Europe/Berlin")),
        pa.array(["0.5", None, "1970-01-01T00:00:10Z", "2001-09-09T03:46:40+02:00"]),
    ],
    ids=lambda column: str(column.type),
)
def test_times_may_be_seconds_timestamps_or_text(times: Any) -> None:
    found = table_rows(pa.table(columns(when=times)), table=TableColumns(time="when"))
    assert np.array_equal(found.records.times, [0.5, np.nan, 10.0, 1e9], equal_nan=True)


def test_groups_and_split_keys_are_columns() -> None:
    schema = TABLE.model_copy(update={"groups": ("site",)})
    for name in ("site", "group:site"):
        found = table_rows(
            pa.table(columns(**{name: ["n", None, "s", ""], "person": [1, 1, 2, 2]})),
            schema,
            table=TableColumns(split_key="person"),
        )
        assert found.records.groups["site"].to_pylist() == ["n", "s"]
        assert found.records.split_keys.to_pylist() == ["1", "2"]
        assert [bad.reason for bad in found.rejected] == ["missing-group", "bad-group"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": ["w", None, "y", "z"]}, "bad-id"),
        ({"id": ["w", "", "y", "z"]}, "bad-id"),
        ({"id": ["w", "x\0", "y", "z"]}, "bad-id"),
        ({"a": [1, None, 3, 4]}, "malformed"),
        ({"a": [1, np.nan, 3, 4]}, "not-finite"),
        ({"a": [1, -np.inf, 3, 4]}, "not-finite"),
        ({"a": [1, 1e300, 3, 4]}, "not-finite"),
        ({"a": [1, 101, 3, 4]}, "out-of-range"),
        ({"label": ["no", "maybe", "no", "3"]}, "unknown-label"),
        ({"label": ["no", None, "no", "3"]}, "malformed"),
        ({"label": ["no", "", "no", "3"]}, "unknown-label"),
    ],
)
def test_a_bad_row_is_isolated_and_shown_as_a_json_record(changes: dict[str, Any], reason: str) -> None:
    found = table_rows(pa.table(columns(**changes)))
    assert found.indices.tolist() == [0, 2, 3]
    assert found.records.ids.to_pylist() == ["w", "y", "z"]
    (bad,) = found.rejected
    assert (bad.position, bad.reason) == ("p1", reason)
    shown = msgspec.json.decode(bad.payload)
    good: dict[str, Any] = {"id": "x", "features": {"a": 2.0, "b": 2, "c": 0.5}, "label": "yes"}
    name = next(iter(changes))
    assert {key: value for key, value in shown.items() if key not in ("features", name)} == {
        key: value for key, value in good.items() if key not in ("features", name)
    }
    assert shown["features"] | {name: 0} == good["features"] | {name: 0}
    (still_bad,) = decode(RawBatch("p", "", [bad.payload], ["p1"], "json"), TABLE).rejected
    assert still_bad.reason in (reason, "malformed")
    mended = decode(RawBatch("p", "", [msgspec.json.encode(shown | good)], ["p1"], "json"), TABLE)
    assert mended.records.ids.to_pylist() == ["x"]


def test_a_bad_row_of_a_batch_of_ours_is_shown_as_a_json_record() -> None:
    schema = RecordSchema(shape=(2,), classes=("no", "yes"), groups=("site",), maximum=9.0)
    sent = Records(
        ids=text_column(["a"]),
        features=np.array([[1, 10]], np.float32),
        labels=np.array([1]),
        times=np.array([5.5]),
        split_keys=text_column(["ann"]),
        groups={"site": text_column(["north"])},
    )
    (bad,) = decode(RawBatch("p", "", [encode_batch(sent, schema)], ["p1"], "arrow"), schema).rejected
    assert msgspec.json.decode(bad.payload) == {
        "id": "a",
        "features": [1, 10],
        "label": "yes",
        "time": 5.5,
        "split_key": "ann",
        "groups": {"site": "north"},
    }


def test_what_is_shown_of_a_large_row_is_small() -> None:
    schema = RecordSchema(shape=(500_000,), classes=("no", "yes"))
    features = np.zeros((2, 500_000), np.float32)
    features[1, 3] = np.nan
    whole = pa.table(
        {
            "id": ["a", "b"],
            "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 500_000),
            "label": ["no", "no"],
        }
    )
    (bad,) = table_rows(whole, schema).rejected
    assert bad.index == 1
    assert len(bad.payload) < 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": ...}, "missing: c"),
        ({"label": ..., "lable": ["no"] * 4}, "missing: label; unknown: lable"),
        ({"a": ["1", "2", "3", "4"]}, "of another type: a has string, wants numbers"),
        ({"label": [0.0, 1.0, 2.0, 1.0]}, "of another type: label has double, wants text or integers"),
        ({"id": [True, False, True, False]}, "of another type: id has bool, wants text or integers"),
        ({"a": [True, False, True, False]}, "of another type: a has bool, wants numbers"),
    ],
)
def test_other_columns_refuse_the_payload_and_are_spelled_out(changes: dict[str, Any], message: str) -> None:
    whole = pa.table(columns(**changes))
    found = table_rows(whole)
    (bad,) = found.rejected
    assert (bad.position, bad.reason, len(found.records)) == ("p3", "schema-mismatch", 0)
    assert bad.detail == f"The table has not the declared columns: {message}."
    types = [(field.name, field.type) for field in whole.schema]
    assert columns_problem(types, TABLE, TableColumns()) == message


def test_features_of_another_size_are_another_type_or_a_bad_row() -> None:
    fixed = pa.table(
        {"id": ["a"], "features": pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2)), "label": ["no"]}
    )
    assert table_rows(fixed, FLAT).rejected[0].reason == "schema-mismatch"
    loose = pa.table(
        {"id": ["a", "b", "c"], "features": [[1, 2], [1, 2, 3], [1, None, 3]], "label": ["no"] * 3}
    )
    found = table_rows(loose, FLAT)
    assert [(bad.index, bad.reason) for bad in found.rejected] == [(0, "wrong-shape"), (2, "malformed")]


def test_rows_without_ids_are_named_by_the_batch_step_by_step() -> None:
    payload = ipc(pa.table(columns(id=...)))
    found = []
    for skip in (0, 2):
        names = LazyTexts(lambda index: f"part:{index}", range(skip, skip + 2))
        batch = RawBatch(
            "p", "", [payload], ["", ""], "arrow", skip=skip, ids=names, table=TableColumns(id=None)
        )
        found += decode(batch, TABLE).records.ids.to_pylist()
    assert found == ["part:0", "part:1", "part:2", "part:3"]


# Our own batches.


def _nulls(count: int) -> Any:
    """Nulls that take no memory, however many."""
    return pa.Array.from_buffers(pa.null(), count, [None])


def digits(count: int) -> Records:
    images, labels = mnist_test()
    ids = text_column([f"digit-{index}" for index in range(count)])
    return Records(ids, images[:count], labels[:count], np.full(count, np.nan), ids, {})


def test_what_can_be_told_from_the_rest_is_left_out() -> None:
    records = digits(5)
    assert to_arrow(records, DIGITS, metadata={}).schema.names == ["id", "features", "label"]
    back = from_arrow(to_arrow(records, DIGITS, metadata={}), DIGITS)
    assert back.split_keys is back.ids
    assert equal(back, records)
    copied = Records(
        records.ids, records.features, records.labels, records.times, text_column(records.ids.to_pylist()), {}
    )
    assert encode_batch(copied, DIGITS) == encode_batch(records, DIGITS)


def test_features_are_views_of_the_payload() -> None:
    payload = encode_batch(digits(100), DIGITS)
    found = decode(RawBatch("p", "", [payload], [""] * 100, "arrow"), DIGITS).records
    assert np.shares_memory(found.features, np.frombuffer(payload, np.uint8))


def test_a_bad_record_in_a_batch_of_ours_costs_no_other() -> None:
    records = digits(4)
    labels = np.array([1, 10, 3, -1])
    payload = encode_batch(
        Records(records.ids, records.features, labels, records.times, records.ids, {}), DIGITS
    )
    found = decode(RawBatch("p", "", [payload], list("abcd"), "arrow"), DIGITS)
    assert list(found.positions) == ["a", "c"]
    assert [bad.reason for bad in found.rejected] == ["unknown-label", "malformed"]


def test_a_payload_is_read_in_steps_of_any_size() -> None:
    records = digits(1000)
    payload = encode_batch(records, DIGITS)
    for step in (1, 7, 400, 1000):
        found = []
        for skip in range(0, 200 if step == 1 else 1000, step):
            positions = [str(index) for index in range(skip, min(1000, skip + step))]
            batch = RawBatch("p", "", [payload], positions, "arrow", skip=skip)
            decoded = decode(batch, DIGITS)
            assert decoded.positions is positions
            found += decoded.records.ids.to_pylist()
        assert found == records.ids.to_pylist()[: len(found)]


def test_steps_of_two_payloads_in_threads_do_not_mix() -> None:
    wrong: list[str] = []

    def read(first: int) -> None:
        records = digits(500).take(slice(first, first + 250))
        payload = encode_batch(records, DIGITS)
        for _ in range(10):
            for skip in range(0, 250, 50):
                batch = RawBatch("p", "", [payload], [""] * 50, "arrow", skip=skip)
                found = decode(batch, DIGITS).records
                if not equal(found, records.take(slice(skip, skip + 50))):
                    wrong.append(f"{first}:{skip}")

    threads = [threading.Thread(target=read, args=(first,)) for first in (0, 250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_only_the_classes_of_a_step_are_new() -> None:

    schema = RecordSchema(columns=("a",), open_classes=True)
    payload = ipc(pa.table({"id": ["1", "2", "3"], "a": [1.0, 2.0, 3.0], "label": ["x", "y", "z"]}))
    labels = LabelMap(schema)
    for skip, known in ((0, 1), (1, 2), (2, 3)):
        decode(RawBatch("p", "", [payload], [""], "arrow", skip=skip), schema, labels)
        assert len(labels) == known


def test_records_are_counted_without_decoding_them() -> None:
    assert count_records(encode_batch(digits(37), DIGITS)) == 37
    assert count_records(ipc(pa.table(columns()), file=True)) == 4
    assert count_records(b"nonsense") is None
    nothing = pa.Table.from_batches([pa.RecordBatch.from_arrays([_nulls(2**31 - 1)], ["id"])])
    assert count_records(ipc(nothing)) is None


def test_a_text_column_may_lie_in_more_memory_than_it_needs() -> None:
    offsets = np.array([0, 1, 3], np.int32).tobytes() + b"\xff"
    ragged = pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(b"abbccc"))
    check_texts(ragged, what="id", reason="bad-id")
    assert compact(ragged).equals(text_column(["a", "bb"]))
    assert hash_texts(ragged).tolist() == hash_texts(text_column(["a", "bb"])).tolist()


def test_columns_of_nothing_cannot_claim_a_great_length() -> None:
    nothing = pa.Table.from_batches(
        [pa.RecordBatch.from_arrays([_nulls(2**31 - 1)] * 5, ["id", "a", "b", "c", "label"])]
    )
    found = decode(RawBatch("p", "", [ipc(nothing)], ["only"], "arrow"), TABLE)
    assert [bad.reason for bad in found.rejected] == ["malformed"]


@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_what_a_payload_unpacks_to_is_told_from_its_headers(compression: str | None, file: bool) -> None:
    labels = pa.array(["no", "yes"] * 500).dictionary_encode()
    whole = pa.table({"id": [str(index) for index in range(1000)], "a": np.zeros(1000), "label": labels})
    sent = ipc(whole, file=file, compression=compression)
    read = (pa.ipc.open_file if file else pa.ipc.open_stream)(sent).read_all().get_total_buffer_size()
    found = size_of(sent)
    assert found.rows == count_records(sent) == 1000
    assert found.unpacked_bytes == pytest.approx(read, abs=100)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_small_payload_that_unpacks_to_gigabytes_is_refused_unread(compression: str) -> None:
    bomb = ipc(pa.table({"id": np.zeros(150_000_000, np.int64)}), compression=compression)
    assert len(bomb) < 8e6
    before = pa.default_memory_pool().max_memory()
    (bad,) = decode(RawBatch("p", "", [bomb], ["only"], "arrow"), TABLE).rejected
    assert bad.reason == "malformed"
    assert "unpacks to 1.1 GB, and 1 GB is the most" in bad.detail
    assert pa.default_memory_pool().max_memory() == before


@pytest.mark.parametrize("which", [1, 4])
def test_a_header_that_claims_more_buffers_than_it_holds_costs_no_memory(which: int) -> None:
    sent = bytearray(ipc(pa.table(columns()), compression="zstd"))
    for index in range(len(sent) - 4):
        changed = sent.copy()
        changed[index : index + which] = b"\x7f" * which
        decode(RawBatch("p", "", [bytes(changed)], ["only"], "arrow"), TABLE)


def test_real_data_comes_through_foreign_tables_bit_for_bit() -> None:
    images, labels = mnist_test()
    count = 1000
    ids, digits_of = [str(index) for index in range(count)], labels[:count]
    for column in (
        pa.array([image.tobytes() for image in images[:count]], pa.binary(784)),
        pa.FixedSizeListArray.from_arrays(pa.array(images[:count].reshape(-1)), 784),
    ):
        found = table_rows(pa.table({"id": ids, "features": column, "label": digits_of}), DIGITS)
        assert found.records.features.tobytes() == images[:count].tobytes()
        assert found.records.labels.tolist() == digits_of.tolist()
    features, _ = elec2()
    schema = RecordSchema(columns=tuple("abcdef"), classes=("0", "1"))
    spread = {name: features[:, index] for index, name in enumerate("abcdef")}
    whole = pa.table(
        {"id": pa.array(np.arange(len(features))), **spread, "label": np.ones(len(features), np.int8)}
    )
    assert table_rows(whole, schema).records.features.tobytes() == features.tobytes()


# Whatever is sent.

PAYLOADS = [
    encode_batch(digits(2), DIGITS),
    ipc(pa.table(columns())),
    ipc(pa.table(columns()), file=True),
    ipc(pa.table(columns()), compression="zstd"),
    ipc(
        pa.table(
            {
                "id": ["a", "b"],
                "features": [[1, 2, 3], [4, 5, 6]],
                "label": pa.array(["no", "yes"]).dictionary_encode(),
            }
        )
    ),
]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(range(len(PAYLOADS))), st.data())
def test_changed_bytes_never_raise(which: int, data: st.DataObject) -> None:
    payload = bytearray(PAYLOADS[which])
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(payload)) | st.integers(0, len(payload)))
    schema = (DIGITS, TABLE, TABLE, TABLE, FLAT)[which]
    sent = RawBatch("p", "", [bytes(payload[:cut])], ["a", "b"], "arrow")
    found = decode(sent, schema)
    if [bad.index for bad in found.rejected] != [1] or len(found.records):
        check_partition(found, sent)
    count_records(sent.payloads[0])


values = st.none() | st.floats(width=32) | st.sampled_from([1.0, 2.0])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["x", "y", "", None, "n\0"]),
            values,
            values,
            st.sampled_from(["no", "yes", "?", None]),
        ),
        max_size=12,
    )
)
def test_any_rows_are_accepted_or_refused_as_they_are_alone(rows: list[tuple[Any, ...]]) -> None:
    kinds = [pa.string(), pa.float64(), pa.float32(), pa.string()]
    names = ["id", "a", "b", "label"]
    whole = pa.table(
        {name: pa.array([row[index] for row in rows], kinds[index]) for index, name in enumerate(names)}
        | {"c": pa.array([1.0] * len(rows))}
    )
    sent = arrow(whole)
    found = decode(sent, TABLE)
    check_partition(found, sent)
    alone = [decode(arrow(whole.slice(index, 1)), TABLE) for index in range(len(rows))]
    assert found.indices.tolist() == [index for index, one in enumerate(alone) if not one.rejected]
    assert [bad.reason for bad in found.rejected] == [bad.reason for one in alone for bad in one.rejected]


def test_a_long_text_that_many_rows_name_is_not_repeated_in_memory() -> None:
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), ["x" * 100_000])
    spread = {name: np.zeros(50_000, np.float32) for name in "abc"}
    whole = pa.table({"id": pa.array(np.arange(50_000)), **spread, "label": labels})
    sent = RawBatch("p", "", [ipc(whole)], ["", ""], "arrow")
    before = pa.total_allocated_bytes()
    assert [bad.reason for bad in decode(sent, TABLE).rejected] == ["unknown-label"] * 2
    assert pa.total_allocated_bytes() - before < 200e6
