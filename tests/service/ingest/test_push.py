"""Records that callers send: all of a request are stored, or none; on both databases."""

import json
from typing import Any

import pytest
import sqlalchemy as sa

from service.errors import (
    BacklogFullError,
    BatchTooLargeError,
    IdempotencyKeyReusedError,
    PipelineUnknownError,
    RecordsInvalidError,
)
from service.ingest.push import SHOWN_ERRORS, push
from service.state import pipelines
from streams.sources.datasets import DIGITS_SCHEMA
from streams.state.manifest import Manifest
from streams.state.pushed import Receipt
from tests.support.service_parts import NAME, declare
from tests.support.threads import together

JSON, NDJSON = "application/json", "application/x-ndjson"


def record(name: str, **changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {"id": name, "features": [1, 2], "label": "up", "groups": {"site": "north"}}
    return {key: value for key, value in (good | changes).items() if value is not ...}


def send(
    engine: sa.Engine,
    records: list[Any],
    *,
    content_type: str = JSON,
    key: str | None = None,
    limit: int = 1000,
) -> Receipt:
    body = json.dumps({"records": records}).encode()
    if content_type == NDJSON:
        body = b"\n".join(json.dumps(each).encode() for each in records)
    return send_body(engine, body, content_type, key=key, limit=limit)


def send_body(
    engine: sa.Engine, body: bytes, content_type: str = JSON, *, key: str | None = None, limit: int = 1000
) -> Receipt:
    return push(
        engine, NAME, body=body, content_type=content_type, request_key=key, max_backlog_records=limit
    )


def pending(engine: sa.Engine) -> int:
    return Manifest(engine).pending_records(NAME)


@pytest.mark.parametrize("content_type", [JSON, "application/json; charset=utf-8", NDJSON, ""])
def test_records_are_taken_as_json_and_as_lines(database: sa.Engine, content_type: str) -> None:
    declare(database)
    receipt = send(database, [record("a"), record("b")], content_type=content_type)
    assert receipt == Receipt(sequence=1, records=2, duplicate=False)
    assert pending(database) == 2


def test_empty_lines_between_records_are_no_records(database: sa.Engine) -> None:
    declare(database)
    line = json.dumps(record("a")).encode()
    assert send_body(database, b"\n" + line + b"\r\n\n  \n", NDJSON).records == 1


BAD: dict[str, tuple[Any, str, str]] = {
    "not an object": ([1, 2], "malformed", "object"),
    "unknown field": (record("b", colour="red"), "malformed", "colour"),
    "no label": (record("b", label=...), "malformed", "label"),
    "too few features": (record("b", features=[1]), "wrong-shape", "2"),
    "features of another shape": (record("b", features=[[1], [2]]), "wrong-shape", "shape"),
    "a feature that is no number": (record("b", features=["x", 1]), "malformed", "features"),
    "not finite": (record("b", features=[1, float("nan")]), "not-finite", "NaN"),
    "out of range": (record("b", features=[1, 10]), "out-of-range", "9"),
    "unknown label": (record("b", label="sideways"), "unknown-label", "sideways"),
    "missing group": (record("b", groups=...), "missing-group", "site"),
    "unknown group": (record("b", groups={"site": "n", "moon": "x"}), "unknown-group", "moon"),
    "empty id": (record(""), "bad-id", "id"),
    "a time without an offset": (record("b", time="2026-01-01T00:00:00"), "malformed", "time"),
}


@pytest.mark.parametrize("content_type", [JSON, NDJSON])
def test_one_bad_record_refuses_the_whole_request_and_is_named(
    database: sa.Engine, content_type: str
) -> None:
    declare(database)
    for kind, (bad, reason, word) in BAD.items():
        if kind == "not finite" and content_type == JSON:
            continue  # then the whole body is not JSON, see below
        with pytest.raises(RecordsInvalidError, match="1 of 3 records does not fit; none was st") as caught:
            send(database, [record("a"), bad, record("c")], content_type=content_type)
        errors: Any = caught.value.members["errors"]
        (error,) = errors
        assert (error["record"], error["reason"]) == (1, reason), kind
        assert word in error["detail"], kind
        assert "Record 1:" in caught.value.detail
    assert pending(database) == 0


def test_of_many_bad_records_the_first_are_shown_and_all_are_counted(database: sa.Engine) -> None:
    declare(database)
    with pytest.raises(RecordsInvalidError, match="50 of 50 records do not fit") as caught:
        send(database, [record(str(number), label="?") for number in range(50)])
    assert caught.value.members["rejected"] == 50
    errors: Any = caught.value.members["errors"]
    assert [error["record"] for error in errors] == list(range(SHOWN_ERRORS))


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b'{"records": []}', JSON, "The batch is empty"),
        (b"", NDJSON, "The batch is empty"),
        (b"\n \n", NDJSON, "The batch is empty"),
        (b"", JSON, "The body is not JSON"),
        (b"{", JSON, "The body is not JSON"),
        (b'{"records": [{"features": [NaN]}]}', JSON, "The body is not JSON.*NaN and Infinity"),
        (b"[]", JSON, "not an object with a list of records"),
        (b'{"records": {}}', JSON, "not an object with a list of records"),
        (b'{"records": [], "more": 1}', JSON, "not an object with a list of records.*more"),
        (b"\xff\xfe", JSON, "The body is not JSON"),
        (b"a,b", "text/csv", "Records of type 'text/csv' are not understood"),
    ],
)
def test_a_body_that_holds_no_records_is_refused_with_the_reason(
    database: sa.Engine, body: bytes, content_type: str, message: str
) -> None:
    declare(database)
    with pytest.raises(RecordsInvalidError, match=message):
        send_body(database, body, content_type)
    assert pending(database) == 0


def test_a_request_sent_again_with_its_key_is_stored_once(database: sa.Engine) -> None:
    declare(database)
    first = send(database, [record("a")], key="k")
    again = send(database, [record("a")], key="k")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert (again.sequence, again.records) == (first.sequence, 1)
    assert pending(database) == 1


def test_a_key_with_other_records_is_refused_and_nothing_is_stored(database: sa.Engine) -> None:
    declare(database)
    send(database, [record("a")], key="k")
    for other in ([record("b")], [record("a", label="down")], [record("a"), record("b")]):
        with pytest.raises(IdempotencyKeyReusedError, match=r"'k' was used before in 'p'.*of their own"):
            send(database, other, key="k")
    assert send(database, [record("a")], content_type=NDJSON, key="k").duplicate, "the records are the same"
    assert pending(database) == 1


@pytest.mark.parametrize("limit", [1, 2])
def test_a_full_backlog_still_recognises_what_it_has_stored(database: sa.Engine, limit: int) -> None:
    declare(database)
    send(database, [record("a"), record("b")], key="k", limit=2)
    assert send(database, [record("a"), record("b")], key="k", limit=limit).duplicate
    with pytest.raises(IdempotencyKeyReusedError):
        send(database, [record("a"), record("c")], key="k", limit=limit)
    for key in ("new", None):
        with pytest.raises(BacklogFullError if limit == 2 else BatchTooLargeError):
            send(database, [record("a"), record("b")], key=key, limit=limit)
    assert pending(database) == 2


def test_of_eight_requests_with_one_key_one_is_stored(database: sa.Engine) -> None:
    declare(database)
    receipts = together(8, lambda _: send(database, [record("a")], key="k"))
    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 7
    assert pending(database) == 1


def test_a_full_backlog_takes_no_more_and_says_when_to_come_back(database: sa.Engine) -> None:
    declare(database)
    send(database, [record("a"), record("b")], limit=3)
    with pytest.raises(BacklogFullError, match=r"2 records of 'p' wait .* 3 is the limit. Send these again"):
        send(database, [record("c"), record("d")], limit=3)
    assert send(database, [record("c")], limit=3).records == 1
    assert pending(database) == 3


def test_a_request_that_never_fits_is_told_to_be_smaller(database: sa.Engine) -> None:
    declare(database)
    with pytest.raises(BatchTooLargeError, match="Send fewer records a request"):
        send(database, [record(str(number)) for number in range(4)], limit=3)


def test_a_pipeline_with_another_source_takes_no_records(database: sa.Engine) -> None:
    declare(database, schema=DIGITS_SCHEMA.model_dump(), source={"kind": "datasets"})
    with pytest.raises(RecordsInvalidError, match="reads from a 'datasets' source"):
        send(database, [record("a")])


def test_an_unknown_pipeline_takes_nothing(database: sa.Engine) -> None:
    with pytest.raises(PipelineUnknownError, match="no pipeline 'p'"):
        send(database, [record("a")])


def test_as_many_records_may_wait_as_their_bytes_allow(database: sa.Engine) -> None:
    declare(database)
    with database.begin() as connection:
        size = pipelines.load_spec(connection, NAME).record_bytes

    def push_one(name: str) -> Receipt:
        body = json.dumps({"records": [record(name)]}).encode()
        return push(
            database,
            NAME,
            body=body,
            content_type=JSON,
            request_key=None,
            max_backlog_records=1000,
            max_backlog_bytes=2 * size,
        )

    push_one("a")
    push_one("b")
    with pytest.raises(BacklogFullError):
        push_one("c")
    assert pending(database) == 2
