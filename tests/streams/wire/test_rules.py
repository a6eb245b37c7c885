"""What holds in every wire format: rules, open classes, late labels, and that neighbours do not matter."""

import json
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.base import RawBatch, RecordSchema, WireName
from streams.records import (
    COMPLETE,
    FEATURES_ONLY,
    LABEL_ONLY,
    UNLABELLED,
    LabelMap,
    join_records,
)
from streams.wire.decode import Reason, decode, decode_batch, decode_json, encode_batch, encode_json
from tests.support.real_data import elec2
from tests.support.wire_parts import TABLE, TIMED, batch, check_partition, equal, row, sent

WIRES: tuple[WireName, ...] = get_args(WireName)
ROW_WIRES: tuple[WireName, ...] = ("json", "msgpack", "csv")
OPEN = RecordSchema(columns=("a", "b", "c"), open_classes=True, max_classes=3)
LATE = RecordSchema(
    columns=("a", "b", "c"), classes=("no", "yes"), groups=("site",), labels_within_seconds=60
)
every_wire = pytest.mark.parametrize("wire", WIRES)


@every_wire
def test_the_same_records_come_out_of_every_format(wire: WireName) -> None:
    rows = [row("x"), row("y", label="no", time=None), row("z", label="3", features=[-100, 100, 0])]
    given_batch = sent(wire, rows)
    found = decode(given_batch, TABLE)
    assert not found.rejected
    assert found.positions is given_batch.positions
    assert found.indices.tolist() == [0, 1, 2]
    assert found.records.ids.to_pylist() == ["x", "y", "z"]
    assert found.records.split_keys is found.records.ids
    assert found.records.labels.tolist() == [1, 0, 2]
    assert np.array_equal(found.records.times, [12.5, np.nan, 12.5], equal_nan=True)
    wanted = np.array([[1.5, -2.0, 0.1], [1.5, -2.0, 0.1], [-100, 100, 0]], dtype=np.float32)
    assert np.array_equal(found.records.features, wanted)
    assert found.records.carries is None


@every_wire
def test_nothing_in_gives_nothing_out(wire: WireName) -> None:
    for schema in (TABLE, OPEN, LATE):
        found = decode(sent(wire, [], schema), schema)
        assert (len(found.records), len(found.positions), list(found.rejected)) == (0, 0, [])
        assert (found.records.carries is not None) == schema.late_labels


@every_wire
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": [1, 2, 101]}, "out-of-range"),
        ({"features": [1, -101, 3]}, "out-of-range"),
        ({"label": "maybe"}, "unknown-label"),
        ({"label": None}, "malformed"),
        ({"features": None}, "malformed"),
        ({"id": ""}, "bad-id"),
        ({"id": "x" * 201}, "bad-id"),
        ({"id": "a\0b"}, "bad-id"),
    ],
)
def test_one_bad_record_costs_no_other(wire: WireName, changes: dict[str, Any], reason: str) -> None:
    given_batch = sent(wire, [row("before"), row("bad", **changes), row("after")])
    found = decode(given_batch, TABLE)
    check_partition(found, given_batch)
    assert found.records.ids.to_pylist() == ["before", "after"]
    (bad,) = found.rejected
    assert (bad.position, bad.index, bad.reason) == ("p1", 1, reason)
    assert bad.detail.endswith(".")
    assert 0 < len(bad.payload) < 1000


@every_wire
def test_a_label_of_an_open_set_becomes_a_class_in_the_order_of_the_records(wire: WireName) -> None:
    labels = LabelMap(OPEN)
    rows = [row("1", label="wolf"), row("2", label="fox"), row("3", label="wolf")]
    assert decode(sent(wire, rows, OPEN), OPEN, labels).records.labels.tolist() == [0, 1, 0]
    assert list(labels.names) == ["wolf", "fox"]
    rows = [row("4", label="bear"), row("5", label="lynx"), row("6", label="fox")]
    found = decode(sent(wire, rows, OPEN), OPEN, labels)
    assert found.records.labels.tolist() == [2, 1]
    assert [(bad.index, bad.reason) for bad in found.rejected] == [(1, "too-many-classes")]
    assert "'lynx'" in found.rejected[0].detail
    assert list(labels.names) == ["wolf", "fox", "bear"]


@every_wire
def test_a_refused_record_makes_no_class(wire: WireName) -> None:
    labels = LabelMap(OPEN)
    rows = [row("", label="wolf"), row("b", label="x" * 201), row("c", label="a\0"), row("d", label="fox")]
    found = decode(sent(wire, rows, OPEN), OPEN, labels)
    assert [bad.reason for bad in found.rejected] == ["bad-id", "bad-label", "bad-label"]
    assert found.records.labels.tolist() == [0]
    assert list(labels.names) == ["fox"]


@every_wire
def test_features_and_labels_may_come_apart_where_it_is_declared(wire: WireName) -> None:
    rows = [
        row("a", groups={"site": "north"}),
        row("b", label=None, groups={"site": "south"}),
        row("c", features=None),
        row("d", features=None, label=None, groups={"site": "north"}),
        row("e", label=None),
    ]
    given_batch = sent(wire, rows, LATE)
    found = decode(given_batch, LATE)
    check_partition(found, given_batch)
    records = found.records
    assert records.ids.to_pylist() == ["a", "b", "c"]
    assert records.carries is not None
    assert records.carries.tolist() == [COMPLETE, FEATURES_ONLY, LABEL_ONLY]
    assert records.labels.tolist() == [1, UNLABELLED, 1]
    assert not records.features[2].any()
    assert records.groups["site"].to_pylist() == ["north", "south", ""]
    assert [(bad.index, bad.reason) for bad in found.rejected] == [(3, "malformed"), (4, "missing-group")]
    assert "neither features nor a label" in found.rejected[0].detail


def test_a_label_alone_is_not_held_to_the_limits_of_features() -> None:
    schema = RecordSchema(columns=("a",), classes=("no", "yes"), minimum=5.0, labels_within_seconds=60)
    rows = [row("a", features=None), row("b", features=[4]), row("c", features=[5])]
    found = decode(sent("json", rows, schema), schema)
    assert found.records.ids.to_pylist() == ["a", "c"]
    assert [bad.reason for bad in found.rejected] == ["out-of-range"]


@pytest.mark.parametrize("schema", [OPEN, LATE], ids=["open", "late"])
def test_our_own_forms_give_the_same_records_back(schema: RecordSchema) -> None:
    labels = LabelMap(schema)
    rows = [row("a", groups={"site": "n"}), row("b", label="no", groups={"site": "s"}, split_key="k")]
    if schema.late_labels:
        rows += [row("c", label=None, groups={"site": "n"}), row("d", features=None)]
    else:
        rows = [{name: value for name, value in one.items() if name != "groups"} for one in rows]
    records = decode(sent("json", rows, schema), schema, labels).records
    assert len(records) == len(rows)
    payload = encode_batch(records, schema, labels.names)
    assert equal(decode_batch(payload, schema), records)
    given_batch = RawBatch("p", "", [payload], [str(index) for index in range(len(rows))], "arrow")
    assert equal(decode(given_batch, schema).records, records)
    texts = encode_json(records, schema, labels.names)
    assert equal(decode_json(texts, schema, positions=[""] * len(texts)).records, records)


def test_open_classes_travel_by_name_and_meet_another_map() -> None:
    labels = LabelMap(OPEN)
    rows = [row("a", label="wolf"), row("b", label="fox")]
    payload = encode_batch(decode(sent("json", rows, OPEN), OPEN, labels).records, OPEN, labels.names)
    other = LabelMap(OPEN, ["fox"])
    assert decode_batch(payload, OPEN, other).labels.tolist() == [1, 0]
    assert list(other.names) == ["fox", "wolf"]


# Real data, bit for bit.


@pytest.mark.parametrize("wire", ["msgpack", "csv", "arrow", "json"])
def test_elec2_comes_through_bit_for_bit(wire: WireName) -> None:
    features, labels = elec2()
    columns = ("period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
    schema = RecordSchema(columns=columns, classes=("0", "1"))
    count = 3000
    rows = [
        {"id": str(index), "features": features[index].tolist(), "label": str(labels[index])}
        for index in range(count)
    ]
    found = decode(sent(wire, rows, schema), schema)
    assert not found.rejected
    assert found.records.features.tobytes() == features[:count].tobytes()
    assert found.records.labels.tolist() == labels[:count].tolist()


# Whatever is sent.

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
good_rows = st.builds(
    row,
    names,
    features=st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3),
    label=st.sampled_from(["no", "yes", "3"]),
    time=st.none() | st.floats(-1e9, 1e10),
)
nearly_rows = st.builds(
    row,
    st.text(max_size=4),
    features=st.none() | st.lists(st.floats(width=32) | st.integers(-200, 200), max_size=4),
    label=st.none() | st.text(max_size=4),
    time=st.none() | st.floats() | st.text(max_size=5),
)


@st.composite
def payloads(draw: st.DrawFn, wire: WireName) -> bytes:
    """A good payload, one that is nearly good, a good one with bytes changed, or any bytes."""
    kind = draw(st.sampled_from(["good", "nearly", "mutated", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=30))
    payload = _payload(wire, draw(nearly_rows if kind == "nearly" else good_rows))
    if kind != "mutated":
        return payload
    index = draw(st.integers(0, len(payload) - 1))
    piece = draw(
        st.sampled_from([b"", b'"', b"\n", b"\r", b",", b"\0", b"\xff", b"{"]) | st.binary(max_size=3)
    )
    return payload[:index] + piece + payload[index + draw(st.integers(0, 2)) :]


def _payload(wire: WireName, one: dict[str, Any]) -> bytes:
    (payload,) = sent(wire, [one]).payloads
    return payload


@pytest.mark.parametrize("wire", ROW_WIRES)
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_no_bytes_raise_and_no_neighbour_matters(wire: WireName, data: st.DataObject) -> None:
    found_payloads = data.draw(st.lists(payloads(wire), max_size=8))
    more = {"header": ["id", "label", "time", "a", "b", "c"], "table": TIMED} if wire == "csv" else {}
    given_batch = batch(found_payloads, wire, **more)
    found = decode(given_batch, TABLE)
    check_partition(found, given_batch)
    assert {bad.reason for bad in found.rejected} <= set(get_args(Reason))
    alone = [decode(batch([payload], wire, **more), TABLE) for payload in found_payloads]
    assert found.indices.tolist() == [index for index, one in enumerate(alone) if not one.rejected]
    assert [bad.reason for bad in found.rejected] == [bad.reason for one in alone for bad in one.rejected]
    assert equal(found.records, join_records([one.records for one in alone if len(one.records)], TABLE))


@every_wire
@settings(deadline=None, max_examples=40)
@given(
    good=st.lists(good_rows, min_size=1, max_size=6), bad=st.lists(nearly_rows, max_size=6), data=st.data()
)
def test_good_records_live_among_any(
    wire: WireName, good: list[dict[str, Any]], bad: list[dict[str, Any]], data: st.DataObject
) -> None:
    bad = [one | {"time": None, "label": "none of them"} for one in bad]
    mixed = [(one, True) for one in good] + [(one | {"features": [1, 2, 3]}, False) for one in bad]
    mixed = data.draw(st.permutations(mixed))
    if wire == "csv":  # a line is a text without line breaks; that is for the source to see to
        mixed = [(one, keep) for one, keep in mixed if not set("\r\n") & set(one["id"])]
    given_batch = sent(wire, [one for one, _ in mixed])
    found = decode(given_batch, TABLE)
    check_partition(found, given_batch)
    assert found.indices.tolist() == [index for index, (_, keep) in enumerate(mixed) if keep]
    assert found.records.ids.to_pylist() == [one["id"] for one, keep in mixed if keep]


def test_a_flood_of_poison_is_refused_payload_by_payload() -> None:
    for wire in ROW_WIRES:
        good = sent(wire, [row(str(index)) for index in range(1000)])
        mixed = [one if index % 7 == 0 else one[:-3] for index, one in enumerate(good.payloads)]
        given_batch = batch(mixed, wire, header=good.header, table=good.table)
        found = decode(given_batch, TABLE)
        check_partition(found, given_batch)
        assert set(range(0, 1000, 7)) <= set(found.indices.tolist())


@pytest.mark.parametrize("open_classes", [True, False])
@pytest.mark.parametrize("label", ["158.9", "-0.25", "1e3", "2.5E-7", ".5"])
def test_a_number_on_a_scale_is_no_class_and_the_refusal_says_why(label: str, open_classes: bool) -> None:
    declared = RecordSchema(shape=(1,), classes=("low", "4.5"), open_classes=open_classes)
    payloads = [
        json.dumps({"id": str(row), "features": [1], "label": each}).encode()
        for row, each in enumerate([label, "4.5", "low"])
    ]
    labels = LabelMap(declared)
    decoded = decode_json(payloads, declared, positions=["0", "1", "2"], labels=labels)
    (bad,) = decoded.rejected
    assert (bad.position, bad.reason) == ("0", "bad-label")
    assert "number on a scale" in bad.detail
    assert "'low' and 'high'" in bad.detail
    assert "open_classes" not in bad.detail
    assert list(labels.names) == ["low", "4.5"]


@pytest.mark.parametrize("label", ["3", "3.0", "-1", "v1.5", "1.2.3", "2026-01-01", "NA", "."])
def test_other_names_are_classes_as_they_come(label: str) -> None:
    declared = RecordSchema(shape=(1,), open_classes=True)
    payload = json.dumps({"id": "a", "features": [1], "label": label}).encode()
    labels = LabelMap(declared)
    assert not decode_json([payload], declared, positions=["0"], labels=labels).rejected
    assert list(labels.names) == [label]
