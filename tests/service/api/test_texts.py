"""Texts that a database or a file system cannot hold, at every place of every route where a text comes in."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from service.api.texts import NOT_UTF8, NUL, SURROGATE, faults
from tests.support.api_parts import Api, declare, record, running_api, spec, unchanged
from tests.support.routes import ROUTES, UNSAFE_ROUTES, described

TAKES_RECORDS = ("/records", "/relabel", "/holdouts")
"""Ends of paths whose bodies are records, which have rules of their own."""
BAD_TEXTS = {"a\0b": NUL, "\0": NUL, "\ud800": SURROGATE, "a\udfffb": SURROGATE}
BAD_CODES = {"%00": NUL, "a%00b": NUL, "%ED%A0%80": NOT_UTF8, "%ff": NOT_UTF8, "%C0%80": NOT_UTF8}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("texts")) as running:
        declare(running, "here")
        yield running


def takes_records(path: str) -> bool:
    return path.split("?")[0].endswith(TAKES_RECORDS)


@pytest.mark.parametrize("text", BAD_TEXTS, ids=ascii)
def test_in_a_body_it_is_refused_at_every_route_and_every_depth(api: Api, text: str) -> None:
    bodies: list[tuple[Any, str]] = [
        (text, "the body"),
        ({"reason": text}, "reason"),
        ({"reason": "fine", "by": text}, "by"),
        ({"any": {"deeper": [1, {"x": [text]}]}}, "any.deeper.1.x.0"),
        ({text: 1}, "the body"),
        ([["fine", text]], "0.1"),
        (spec("new", source={"kind": "files", "location": text}), "source.location"),
        (spec("new", schema={"shape": [2], "classes": ["a", text]}), "schema.classes.1"),
    ]
    asked = [path for _, path in UNSAFE_ROUTES if not takes_records(path)]
    assert len(asked) > 10
    with unchanged(api):
        for path in asked:
            for body, where in bodies:
                answer = api.http.post(
                    path, content=json.dumps(body), headers={"Content-Type": "application/json"}
                )
                document = api.refuses(answer, 422, "request-invalid")
                assert document["errors"][0]["where"] == where, path
                assert BAD_TEXTS[text] in document["errors"][0]["problem"]


@pytest.mark.parametrize("text", BAD_TEXTS, ids=ascii)
def test_in_a_record_it_is_refused_at_every_route_that_takes_records(api: Api, text: str) -> None:
    asked = [path for _, path in UNSAFE_ROUTES if takes_records(path)]
    assert len(asked) == len(TAKES_RECORDS)
    with unchanged(api):
        for path in asked:
            for broken in (record(text), record("a", label=text), record("a", split_key=text)):
                answer = api.http.post(
                    path,
                    content=json.dumps({"records": [broken]}),
                    headers={"Content-Type": "application/json"},
                )
                assert 400 <= answer.status_code < 500, (path, broken, answer.text)


@pytest.mark.parametrize("code", BAD_CODES)
def test_in_a_path_or_a_query_it_is_refused_at_every_route(api: Api, code: str) -> None:
    values = ("here", "u-1", "0123456789abcdef", "0", "retire")
    with unchanged(api):
        for method, path in ROUTES:
            bare, _, query = path.partition("?")
            parts = bare.split("/")
            paths = [
                "/".join([*parts[:place], code, *parts[place + 1 :]])
                for place, part in enumerate(parts)
                if part in values
            ]
            asked = [(each, "the path") for each in [*paths, f"{bare}/{code}"]]
            asked += [(f"{bare}?{query}&{name}={code}", f"query {name}") for name in names(method, path)]
            for url, where in asked:
                answer = api.http.request(method, url)
                if method == "HEAD":
                    assert answer.status_code == 422, url
                    continue
                document = api.refuses(answer, 422, "request-invalid")
                assert document["errors"][0] == {"where": where, "problem": BAD_CODES[code]}, url


def names(method: str, path: str) -> list[str]:
    """Query parameters of a route, and one that it does not have."""
    found = described().get((method, path), {}).get("parameters", [])
    return [*(each["name"] for each in found if each["in"] == "query"), "other"]


def test_every_query_parameter_is_asked() -> None:
    asked = {name for method, path in ROUTES for name in names(method, path)}
    assert {"reason", "by", "name", "after", "limit", "first", "other"} <= asked


def test_plain_texts_of_every_kind_pass(api: Api) -> None:
    for text in ("é", "\U0001f600", "\x01\x7f", "\\u0000", "%00"):
        assert list(faults({text: [text]})) == []
        answer = api.http.post("/v1/pipelines/here/stream/pause", json={"reason": text, "by": "Ada"})
        assert answer.status_code == 200, answer.text
        assert api.http.post("/v1/pipelines/here/stream/resume", json={"reason": text}).status_code == 200
    assert api.http.get("/v1/pipelines/here/dead-letters", params={"reason": "é\U0001f600%00"}).json() == []
