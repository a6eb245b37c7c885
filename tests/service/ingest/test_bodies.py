"""Request bodies of records: what each media type holds, and what is refused with what to do."""

import io
import json

import msgspec
import pyarrow as pa
import pytest

from service.errors import RecordsInvalidError
from service.ingest.bodies import MEDIA_TYPES, batch

RECORDS = [{"id": "a", "label": "up"}, {"id": "b", "label": "down"}]


def arrow(rows: int) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"id": [str(row) for row in range(rows)]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


BODIES = {
    "application/json": json.dumps({"records": RECORDS}).encode(),
    "application/x-ndjson": b"\n\n".join(json.dumps(each).encode() for each in RECORDS),
    "application/msgpack": msgspec.msgpack.encode(RECORDS),
    "application/vnd.apache.arrow.stream": arrow(2),
}


def test_every_media_type_is_tried_here() -> None:
    assert set(BODIES) == set(MEDIA_TYPES)


@pytest.mark.parametrize("media_type", BODIES)
def test_a_position_is_the_index_of_the_record_in_its_body(media_type: str) -> None:
    found = batch(BODIES[media_type], f"{media_type.upper()}; charset=utf-8")
    assert list(found.positions) == ["0", "1"]
    assert len(found.payloads) == (1 if "arrow" in media_type else 2)


def test_a_body_without_a_type_is_json() -> None:
    assert list(batch(BODIES["application/json"], "").positions) == ["0", "1"]


@pytest.mark.parametrize(
    ("body", "media_type", "said"),
    [
        (b"a,b", "text/csv", "Records of type 'text/csv' are not understood"),
        (b"{", "application/json", "The body is not JSON"),
        (b"[]", "application/json", "not an object with a list of records"),
        (msgspec.msgpack.encode({"records": []}), "application/msgpack", "not a msgpack array of records"),
        (msgspec.msgpack.encode([]), "application/msgpack", "The batch is empty"),
        (b"\n", "application/x-ndjson", "The batch is empty"),
        (arrow(0), "application/vnd.apache.arrow.stream", "The batch is empty"),
        (b"nothing of the kind", "application/vnd.apache.arrow.stream", "not an Arrow IPC stream"),
        (arrow(2)[:40], "application/vnd.apache.arrow.stream", "not an Arrow IPC stream"),
    ],
)
def test_what_holds_no_records_is_refused_with_the_reason(body: bytes, media_type: str, said: str) -> None:
    with pytest.raises(RecordsInvalidError, match=said) as caught:
        batch(body, media_type)
    assert caught.value.fix


@pytest.mark.parametrize(
    "body",
    [
        b'{"records":[{"id":"a"}],"records":[{"id":"b"}]}',
        b'{"records":[{"id":"a"}],"records":[{"id":"a"}]}',
        b'{ "records": [{"id": "a"}, {"id": "b"}], "records": [{"id": "a"}, {"id": "c"}] }',
        b'{"records":[],"records":[{"id":"b"}]}',
        b'{"records":[{"id":"a"}],"\\u0072ecords":[{"id":"b"}]}',
        b'{"\\u0072ecords":[{"id":"a"}],"records":[{"id":"b"}]}',
    ],
)
def test_a_second_list_of_records_is_refused_since_one_of_the_two_would_be_lost(body: bytes) -> None:
    with pytest.raises(RecordsInvalidError, match="more than once"):
        batch(body, "application/json")


@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\t", "\n:  ")])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_list_is_taken_however_it_is_written(
    indent: int | None, separators: tuple[str, str], count: int
) -> None:
    records = [{"id": '],"records":[', "label": [1, {"records": []}]}] * count
    body = json.dumps({"records": records}, indent=indent, separators=separators).encode()
    for written in (body, b" \n" + body + b"\r\n "):
        assert [json.loads(each) for each in batch(written, "application/json").payloads] == records
