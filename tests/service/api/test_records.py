"""Sending records: all of a request is durable, or none of it, and nonsense is answered with what to do."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.state.manifest import Manifest
from tests.support.api_parts import Api, declare, push, record, running_api, spec, unchanged

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
PATH = "/v1/pipelines/moving/records"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    home = tmp_path_factory.mktemp("api")
    with running_api(home, HOLDFAST_MAX_BACKLOG_RECORDS="5000") as running:
        declare(running, "moving")
        yield running


def test_records_are_durable_when_the_answer_comes(api: Api) -> None:
    declare(api, "durable")
    answer = api.http.post("/v1/pipelines/durable/records", json={"records": [record("a"), record("b")]})
    assert answer.status_code == 202
    assert answer.json() == {"accepted": 2, "sequence": 1, "duplicate": False}
    lines = b"\n".join(json.dumps(record(name)).encode() for name in "cde") + b"\n\n"
    answer = api.http.post("/v1/pipelines/durable/records", content=lines, headers=NDJSON)
    assert answer.json() == {"accepted": 3, "sequence": 2, "duplicate": False}
    assert Manifest(api.engine).pending_records("durable") == 5


def test_the_same_key_stores_once_and_answers_the_same(api: Api) -> None:
    declare(api, "keyed")
    headers = {"Idempotency-Key": "monday"}
    path = "/v1/pipelines/keyed/records"
    first = api.http.post(path, json={"records": [record("a")]}, headers=headers).json()
    with unchanged(api):
        again = api.http.post(path, json={"records": [record("a")]}, headers=headers)
    assert again.status_code == 202
    assert again.json() == {**first, "duplicate": True}
    with unchanged(api):
        other = api.http.post(path, json={"records": [record("b")]}, headers=headers)
        api.refuses(other, 422, "idempotency-key-reused")


def test_two_senders_of_one_key_store_once(api: Api) -> None:
    declare(api, "raced")

    def send(_: int) -> Any:
        body = {"records": [record("a")]}
        return httpx.post(
            f"{api.url}/v1/pipelines/raced/records", json=body, headers={"Idempotency-Key": "k"}
        ).json()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert sorted(answer["duplicate"] for answer in answers) == [False] + [True] * 7
    assert Manifest(api.engine).pending_records("raced") == 1


@pytest.mark.parametrize("key", ["", "x" * 201, "two words", "\x7f"])
def test_a_key_that_cannot_be_kept_is_refused(api: Api, key: str) -> None:
    with unchanged(api):
        answer = api.http.post(PATH, json={"records": [record("a")]}, headers={"Idempotency-Key": key})
        document = api.refuses(answer, 422, "request-invalid")
    assert "header Idempotency-Key" in document["detail"]


@pytest.mark.parametrize(
    ("bad", "reason", "words"),
    [
        ({"features": [1, 2, 3]}, "wrong-shape", "[3]"),
        ({"features": [[1, 2]]}, "wrong-shape", "[1, 2]"),
        ({"features": []}, "wrong-shape", "[0]"),
        ({"features": [[1], [2, 3]]}, "wrong-shape", "not a regular array"),
        ({"features": "1,2"}, "malformed", "features"),
        ({"features": [1, None]}, "malformed", "features"),
        ({"features": [1e39, 0]}, "not-finite", "too large for float32"),
        ({"label": "sideways"}, "unknown-label", "'sideways'"),
        ({"label": 7}, "unknown-label", "'7'"),
        ({"label": None}, "malformed", "label"),
        ({"label": ["up"]}, "malformed", "label"),
        ({"label": "u" * 10_000}, "unknown-label", "declared classes"),
        ({"id": ""}, "bad-id", "empty"),
        ({"id": "x" * 201}, "bad-id", "201 characters"),
        ({"id": "a\0b"}, "bad-id", "NUL"),
        ({"id": 7}, "malformed", "id"),
        ({"surprise": 1}, "malformed", "surprise"),
        ({"time": "yesterday"}, "malformed", "time"),
        ({"time": "2026-01-01T00:00:00"}, "malformed", "time"),
        ({"groups": {"sex": "f"}}, "unknown-group", "'sex'"),
        ({"split_key": ""}, "bad-split-key", "empty"),
    ],
)
def test_one_bad_record_refuses_the_request_and_is_named(
    api: Api, bad: dict[str, Any], reason: str, words: str
) -> None:
    records = [record("good"), {**record("bad"), **bad}, record("fine")]
    with unchanged(api):
        document = api.refuses(api.http.post(PATH, json={"records": records}), 422, "records-invalid")
    (error,) = document["errors"]
    assert (error["record"], error["reason"], document["rejected"]) == (1, reason, 1)
    assert words in error["detail"]
    assert document["detail"].startswith("1 of 3 records does not fit; none was stored.")
    assert len(document["detail"]) < 1000


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_none_is_named_as_such(api: Api, number: str) -> None:
    line = f'{{"id": "a", "features": [0, {number}], "label": "up"}}'
    for body, headers in ((line, NDJSON), (f'{{"records": [{line}]}}', JSON)):
        with unchanged(api):
            answer = api.http.post(PATH, content=body, headers=headers)
            document = api.refuses(answer, 422, "records-invalid")
        assert "NaN or Infinity" in document["detail"] or "invalid" in document["detail"]


def test_many_bad_records_are_counted_and_the_first_are_shown(api: Api) -> None:
    records = [record(f"r{place}", label="sideways") for place in range(100)]
    document = api.refuses(api.http.post(PATH, json={"records": records}), 422, "records-invalid")
    assert document["rejected"] == 100
    assert len(document["errors"]) == 20


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'{"records": [{"id": "a", "features": [1, 2], "label"',
        b'{"records": [',
        b"[]",
        b"null",
        b"3",
        b"{}",
        b'{"records": null}',
        b'{"records": {}}',
        b'{"records": [], "more": 1}',
        b'{"record": []}',
        b'{"records": "\xff\xfe"}',
        b"\xff\xfe\x00",
        b'{"records": ' + b"[" * 200_000,
        b'{"records": [' + b"[" * 200_000 + b"]" * 200_000 + b"]}",
        b'{"records": [{"id": "a", "features": [' + b"9" * 100_000 + b', 1], "label": "up"}]}',
    ],
)
def test_a_body_that_is_no_list_of_records_is_refused(api: Api, body: bytes) -> None:
    with unchanged(api):
        document = api.refuses(api.http.post(PATH, content=body, headers=JSON), 422, "records-invalid")
    assert len(document["detail"]) < 1000


@pytest.mark.parametrize(
    ("body", "headers"), [(b'{"records": []}', JSON), (b"", NDJSON), (b"\n \n\r\n", NDJSON)]
)
def test_an_empty_batch_is_refused(api: Api, body: bytes, headers: dict[str, str]) -> None:
    with unchanged(api):
        document = api.refuses(api.http.post(PATH, content=body, headers=headers), 422, "records-invalid")
    assert "empty" in document["detail"] or "not an object" in document["detail"]


def test_a_pipeline_that_reads_elsewhere_takes_no_records(api: Api) -> None:
    digits = {"shape": [8, 8], "classes": list("0123456789")}
    declare(api, "elsewhere", source={"kind": "datasets"}, schema=digits)
    with unchanged(api):
        answer = api.http.post("/v1/pipelines/elsewhere/records", json={"records": [record("a")]})
        document = api.refuses(answer, 422, "records-invalid")
    assert "'datasets'" in document["detail"]


def test_a_full_backlog_asks_for_patience(api: Api) -> None:
    declare(api, "full")
    push(api, "full", 5000)
    with unchanged(api):
        answer = api.http.post("/v1/pipelines/full/records", json={"records": [record("more")]})
        document = api.refuses(answer, 429, "backlog-full")
    assert answer.headers["retry-after"] == "1"
    assert "5000" in document["detail"]


def test_others_are_answered_while_a_large_batch_is_decoded(api: Api) -> None:
    body = json.dumps({"records": [record(f"r{place}", label="sideways") for place in range(20_000)]})

    def slow() -> httpx.Response:
        # Under a key, more than may wait are decoded: they may have been stored before.
        headers = {**JSON, "Idempotency-Key": "large"}
        return httpx.post(f"{api.url}{PATH}", content=body, headers=headers, timeout=60)

    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(slow)
        answered = 0
        while not pushed.done():
            answered += api.http.get("/healthz").is_success
    problem = api.refuses(pushed.result(), 422, "records-invalid")
    assert problem["detail"].startswith(f"At least {problem['rejected']} of 20000 records do not fit")
    assert answered > 3, "the others waited until the batch was done"


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NEARLY_A_RECORD = st.fixed_dictionaries(
    {
        "id": st.text() | ANY_JSON,
        "features": st.lists(st.floats() | st.integers()) | ANY_JSON,
        "label": ANY_JSON,
    },
    optional={"time": ANY_JSON, "groups": ANY_JSON, "split_key": ANY_JSON},
)
BODIES = st.one_of(
    st.binary(),
    ANY_JSON.map(lambda value: json.dumps(value).encode()),
    st.lists(NEARLY_A_RECORD, max_size=3).map(lambda records: json.dumps({"records": records}).encode()),
)


@settings(max_examples=120, deadline=None)
@given(body=BODIES, headers=st.sampled_from([JSON, NDJSON]))
def test_no_body_whatsoever_breaks_the_api(api: Api, body: bytes, headers: dict[str, str]) -> None:
    answer = api.http.post(PATH, content=body, headers=headers)
    if answer.status_code != 202:
        api.refuses(answer, 422, "records-invalid")


@settings(max_examples=50, deadline=None)
@given(body=ANY_JSON, changes=st.dictionaries(st.sampled_from(list(spec("x"))), ANY_JSON))
def test_no_declaration_whatsoever_breaks_the_api(api: Api, body: Any, changes: dict[str, Any]) -> None:
    for document in (body, {**spec("fuzzed"), **changes}):
        answer = api.http.post("/v1/pipelines", content=json.dumps(document), headers=JSON)
        assert answer.status_code in (201, 400, 409, 422), answer.text
        assert api.http.get("/v1/pipelines").is_success
