"""A number is a number and a text is a text, in every field of every body that is not made of records."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from service.errors import PipelineInvalidError
from service.pipelines import parse
from tests.support.api_parts import Api, declare, running_api, spec, unchanged
from tests.support.routes import described

SPECS = [
    spec("a", strategy={"name": "replay"}, trigger={"kind": "shift"}),
    spec("a", strategy=[{"name": "replay"}, {"name": "lwf"}], trigger={"kind": "records", "records": 500}),
    spec("a", trigger={"kind": "any-of", "any": [{"records": 500}, {"kind": "shift"}]}),
    spec("a", trigger={"kind": "performance"}, gate={"preset": "eager"}, circuit_breaker={}),
]
WRONG: Mapping[str, Sequence[Any]] = {
    "number": ("0.5", "1", True),
    "integer": ("1", True, "1.0"),
    "boolean": ("true", "yes", 1, 0),
    "string": (1, True, 0.5),
}
"""What is no value of a JSON type, though it can be read as one."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("strict")) as running:
        declare(running, "here")
        yield running


def kinds(schema: Mapping[str, Any]) -> Iterator[str]:
    """The JSON types that a property may have; of a list those of its items."""
    for each in schema.get("anyOf", [schema]):
        if each.get("type") in WRONG:
            yield each["type"]


def test_every_field_of_every_body_is_of_its_type(api: Api) -> None:
    schemas = api.http.get("/openapi.json").json()["components"]["schemas"]
    asked = 0
    with unchanged(api):
        for (method, path), operation in described().items():
            content = operation.get("requestBody", {}).get("content", {})
            if method != "POST" or set(content) != {"application/json"} or path == "/v1/pipelines":
                continue
            schema = content["application/json"]["schema"]
            pointer = next(iter(each["$ref"] for each in schema.get("anyOf", [schema]) if "$ref" in each))
            body = schemas[pointer.rsplit("/", 1)[1]]
            for name, field in body["properties"].items():
                for wrong in {repr(each): each for kind in kinds(field) for each in WRONG[kind]}.values():
                    sent = {
                        "reason": "why",
                        "by": "Ada",
                        "decision": "approve",
                        "margin": 0.1,
                        "traffic": 0.1,
                    }
                    known = {key: value for key, value in sent.items() if key in body["properties"]}
                    answer = api.http.post(path, json={**known, name: wrong})
                    if isinstance(wrong, str) and "string" in kinds(field):
                        continue
                    document = api.refuses(answer, 422, "request-invalid")
                    assert document["errors"][0]["where"].startswith(name), (path, wrong, document)
                    asked += 1
        answer = api.http.post("/v1/pipelines/here/updates", json={"experiences": ["0"]})
        assert api.refuses(answer, 422, "request-invalid")["errors"][0]["where"] == "experiences.0"
    assert asked > 50


def leaves(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from leaves(value, (*path, key))
    else:
        yield path, document


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The same document with another value at one place."""
    if not path:
        return value
    first, *rest = path
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[first] = changed(document[first], tuple(rest), value)
    return copy


@pytest.mark.parametrize("declared", SPECS, ids=lambda each: str(each["trigger"]["kind"]))
def test_every_field_of_a_declaration_is_of_its_type(declared: dict[str, Any]) -> None:
    written = parse(declared).model_dump(mode="json", by_alias=True)
    numbers = 0
    for path, value in leaves(written):
        if isinstance(value, bool):
            wrong: list[Any] = ["true", "yes", 1]
        elif isinstance(value, int | float):
            wrong = [str(value), True]
        else:
            continue
        numbers += 1
        for each in wrong:
            with pytest.raises(PipelineInvalidError):
                parse(changed(written, path, each))
    assert numbers > 30
    assert parse(written) == parse(declared)


def test_it_says_which_field_and_what_belongs_there(api: Api) -> None:
    with unchanged(api):
        answer = api.http.post("/v1/pipelines", json=spec("new", gate={"margin": "0.02"}))
        document = api.refuses(answer, 422, "pipeline-invalid")
    assert document["errors"] == [
        {"where": "gate.margin", "problem": "must be a number, not a text or true or false"}
    ]
