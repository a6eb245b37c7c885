"""The reference is true: its tables are the code's own, and the examples of the API answer as shown.

Links, commands, words and the site are tested in tests/docs/.
"""

import ast
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import service.errors
from service.errors import HoldfastError
from service.gate.base import VERDICT_SCHEMA, Finding, GateConfig, Note, Verdict
from service.gate.decide import AFTER_LEARNING, BEFORE_LEARNING, SEALED
from service.gate.schema import NUMBERS
from service.pipelines import PipelineSpec
from service.settings import Settings
from service.state import jobs
from strategies.augment_choice import Color, Crop, Erase, Flip, Noise, Rotate
from strategies.base import StrategyConfig
from strategies.catalog import STRATEGIES
from strategies.network_choice import NetworkChoice
from streams.base import RecordSchema
from streams.catalog import SOURCES
from streams.split import Split
from streams.state.manifest import Commit, DeadLetter, Manifest, Span
from streams.triggers.catalog import TRIGGERS
from streams.wire.decode import JsonRecord
from tests.support.api_parts import Api, learn, running_api, settle
from tests.support.doc_pages import blocks, page
from tests.support.repository import ROOT
from tests.test_layers import TREE

DOORS = {
    "request-invalid",
    "not-json",
    "media-type",
    "body-too-large",
    "host-unknown",
    "origin-foreign",
    "request-slow",
    "http-404",
    "http-405",
    "busy",
    "database-away",
    "internal",
}
"""Problems that the API itself raises, besides the service's errors."""
NETWORKS: tuple[type[BaseModel], ...] = get_args(get_args(NetworkChoice)[0])
NEVER_ANSWERED = {
    "lease-lost",
    "trainer-died",
    "trainer-stopped",
    "settings",
    "internal",
    "inputs-unfit",
    "not-reproducible",
    "served-damaged",
    "database-revision",
}
"""Errors that no route raises."""


def pages_of_pipelines() -> str:
    """What a pipeline may declare takes three pages."""
    return "\n".join(page(name) for name in ("pipelines.md", "sources.md", "triggers.md"))


def default_of(model: type[BaseModel], name: str) -> str:
    """A field's default as the tables show it."""
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    if field.default is PydanticUndefined:
        return "see below"
    value = field.default
    if value is None:
        return "unset"
    return f"`{json.dumps(value, default=lambda one: getattr(one, 'name', str(one)))}`".replace('"', "")


def rows(model: type[BaseModel], *, prefix: str = "", inherited: bool = False) -> list[str]:
    """The table rows that a model must have; with the description where the model has one."""
    own = model.model_fields if inherited else set(model.model_fields) - set(model.__mro__[1].model_fields)  # type: ignore[attr-defined]
    found = []
    for name, field in model.model_fields.items():
        if name not in own or name in ("name", "kind"):
            continue
        shown = f"{prefix}{(field.alias or name).upper() if prefix.isupper() else field.alias or name}"
        described = f" {field.description} |" if field.description else ""
        found.append(f"| `{shown}` | {default_of(model, name)} |{described}")
    return found


SPEC_MODELS: list[type[BaseModel]] = [
    PipelineSpec,
    RecordSchema,
    *TRIGGERS.values(),
    Split,
    GateConfig,
]


@pytest.mark.parametrize("model", SPEC_MODELS, ids=lambda model: model.__name__)
def test_every_field_of_a_pipeline_is_described_with_its_default(model: type[BaseModel]) -> None:
    text = pages_of_pipelines()
    for row in rows(model):
        assert row in text


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_its_row_and_its_fields(name: str) -> None:
    text = pages_of_pipelines()
    assert f"| `{name}` | {SOURCES[name].summary} |" in text
    for row in rows(SOURCES[name].config):
        assert row in text


@pytest.mark.parametrize("kind", TRIGGERS)
def test_every_trigger_has_its_row_and_its_heading(kind: str) -> None:
    text = pages_of_pipelines()
    assert f"\n| `{kind}` | " in text
    assert f"\n## {kind}\n" in text


def test_no_source_or_strategy_is_described_that_is_not_there() -> None:
    named = re.findall(r"^\| `([a-z]+)` \| [A-Z][^|]*\. \|$", pages_of_pipelines(), flags=re.M)
    assert set(SOURCES) <= set(named)
    table = re.findall(r"^\| `([\w-]+)` \|", page("strategies.md").split("## Knobs")[0], flags=re.M)
    assert sorted(set(table)) == sorted(STRATEGIES)


def test_the_knobs_of_every_strategy_are_described() -> None:
    text = page("strategies.md")
    common = rows(StrategyConfig)
    for row in common:
        assert row in text
    for name, spec in STRATEGIES.items():
        expected = [row for row in rows(spec.config, inherited=True) if row not in common]
        title = f"\n`{name}`:\n\n"
        assert text.count(title) == bool(expected)
        knobs = text.split(title)[1].split("\n\n")[0] if expected else ""
        assert re.findall(r"^\| `.*$", knobs, flags=re.M) == expected


def test_every_network_has_its_row_and_its_knobs() -> None:
    text = page("strategies.md").split("## Networks")[1]
    table = text.split("`mlp`:")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, flags=re.M) == [name_of(choice) for choice in NETWORKS]
    for choice in NETWORKS:
        expected = rows(choice)
        title = f"\n`{name_of(choice)}`:\n"
        assert text.count(title) == bool(expected)
        knobs = text.split(title)[1].split("\n\n")[0] if expected else ""
        for row in expected:
            assert row in knobs
        assert len(re.findall(r"^\| `", knobs, flags=re.M)) == len(expected)


def test_every_way_to_vary_records_has_its_row() -> None:
    text = page("strategies.md").split("## Training")[1].split("\n## ")[0]
    for choice in (Flip, Crop, Rotate, Erase, Color, Noise):
        assert f"| `{name_of(choice)}` |" in text
        for name, field in choice.model_fields.items():
            if name != "name":
                assert f"`{name}`" in text
                assert str(field.description).rstrip(".") in text


def name_of(choice: type[BaseModel]) -> str:
    return str(choice.model_fields["name"].default)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_its_row(name: str) -> None:
    spec = STRATEGIES[name]
    (row,) = re.findall(
        rf"^\| `{name}` \| {re.escape(spec.summary)} \|.*$", page("strategies.md"), flags=re.M
    )
    assert (spec.paper or "none") in row


def test_every_setting_is_described_with_its_default() -> None:
    text = page("operations.md")
    expected = rows(Settings, prefix="HOLDFAST_")
    for row in expected:
        assert row in text
    named = re.findall(r"^\| `(HOLDFAST_\w+)`", text, flags=re.M)
    assert len(named) == len(expected)


def test_the_gate_page_names_every_guard_and_the_form_of_a_verdict() -> None:
    text = page("gate.md")
    for name, _ in (*BEFORE_LEARNING, *AFTER_LEARNING, *SEALED):
        assert f"| {name} |" in text
    sources = [ast.parse(path.read_text()) for path in (ROOT / "service" / "gate").rglob("*.py")]
    literals = {node.value for tree in sources for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    own = ("values", "labels", "anomalies", "retention", "learning", "rare_class", "first_update", "groups")
    quality = ("negative_flips", "calibration", "macro_f1", "balanced_accuracy", "auc", "brier", "robustness")
    for finding in (
        *own,
        *quality,
        "golden",
        "golden_anchor",
        "train_gap",
        "latency",
        "size",
        "update_cost",
        "seeds",
        "disagreement",
    ):
        assert finding in literals
        assert f"`{finding}`" in text
    (verdict,) = (json.loads(block) for block in blocks(text, "json"))
    assert verdict["schema"] == VERDICT_SCHEMA
    assert set(verdict) == {"schema", *(field.name for field in fields(Verdict))}
    for found in verdict["findings"]:
        assert set(found) == set(Finding._fields)
    for note in verdict["notes"]:
        assert set(note) == {field.name for field in fields(Note)}


def test_the_page_of_the_verdict_tells_every_number() -> None:
    documented = re.findall(r"^\| `(\w+)` \| (.*) \|$", page("verdict.md").split("## Numbers")[1], flags=re.M)
    assert dict(documented) == dict(NUMBERS)
    assert len(documented) == len(NUMBERS)
    for field in fields(Verdict):
        assert f"| `{field.name}` |" in page("verdict.md")


def test_every_module_has_its_line_in_the_architecture() -> None:
    text = page("explanation/architecture.md")
    for module in TREE.modules:
        package, _, rest = module.partition(".")
        if "migrations" not in rest:
            assert f"`{rest.replace('.', '/')}.py`" in text, f"{package}: {rest}"


def test_the_record_in_the_documentation_has_the_fields_of_a_record() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", page("sources.md").split("## Records")[1], flags=re.M))
    assert named == set(JsonRecord.__struct_fields__)


def test_every_problem_is_in_the_table_with_its_status() -> None:
    table = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (\d{3}) \|", page("api.md"), flags=re.M))
    ours = {
        error.slug: error.status
        for error in vars(service.errors).values()
        if isinstance(error, type) and issubclass(error, HoldfastError)
    }
    for slug in NEVER_ANSWERED:
        ours.pop(slug, None)
    assert set(table) == set(ours) | DOORS
    for slug, status in ours.items():
        assert int(table[slug]) == status


def test_the_examples_of_the_api_answer_as_documented(tmp_path: Path) -> None:
    """Every curl command in its order, with what happens between them done by the service's own functions."""
    text = page("api.md")
    examples = re.findall(
        r"^```sh\n(curl .*?)^```\n+Answer: `(\d{3})`(?:\n+```json\n(.*?)^```)?", text, flags=re.M | re.S
    )
    assert len(examples) == len(re.findall(r"^curl ", text, flags=re.M))
    seen = set()
    with running_api(tmp_path) as api:
        variables = {"$API": api.url, "$UPDATE": "none"}
        for command, status, answer in examples:
            other = {"$UPDATE": _queue_one(api)} if "/cancel " in command else {}
            method, path, got = _curl(api, command, {**variables, **other})
            assert got.status_code == int(status), (command, got.text)
            route = re.sub(r"/u-[0-9a-f]+", "/{update}", path.replace("/sensors", "/{pipeline}"))
            route = re.sub(r"/holdouts/\d+/(?!margin|traffic)\w+$", "/holdouts/{experience}/{marking}", route)
            route = re.sub(r"/holdouts/\d+/", "/holdouts/{experience}/", route)
            route = re.sub(r"/golden/[a-z]+/(?!margin)\w+$", "/golden/{name}/{marking}", route)
            route = re.sub(r"/golden/[a-z]+/", "/golden/{name}/", route)
            seen.add((method, re.sub(r"/[0-9a-f]{16}$", "/{dead_letter}", route)))
            if answer:
                documented, real = json.loads(answer), got.json()
                assert _shape(documented) == _shape(real), command
            if path.endswith("/sensors/updates") and method == "POST":
                variables["$UPDATE"] = got.json()["update"]
                settle(api, "sensors", got.json()["update"], "review")
            if path.endswith("/stream"):
                variables["$DEAD_LETTER"] = _refuse_one(api)
            if path.endswith("/decision") and method == "POST":
                learn(api, "sensors", "promote")
        described = api.http.get("/openapi.json").json()["paths"]
    routes = {(method.upper(), path) for path, each in described.items() for method in each}
    assert {(method, path.split("?")[0]) for method, path in seen} >= routes


def _queue_one(api: Api) -> str:
    """An update that waits behind the one in review."""
    with api.engine.begin() as connection:
        return jobs.enqueue(connection, "sensors", requested_by="test")


def _refuse_one(api: Api) -> str:
    """A dead letter, as a broker's stream would leave one."""
    payload = b'{"id": "a3", "features": [0.5, 10], "label": "up"}'
    letter = DeadLetter("0", "17", "out-of-range", "Too large.", payload, form={"wire": "json"})
    Manifest(api.engine).commit("sensors", Commit(0, {"0": Span("", "17")}, dead_letters=[letter]))
    return letter.name


def _curl(api: Api, command: str, variables: dict[str, str]) -> tuple[str, str, Any]:
    for name, value in variables.items():
        command = command.replace(name, value)
    words = shlex.split(command.replace("\\\n", " "))[1:]
    method, headers, body, url = "GET", {}, None, ""
    while words:
        word = words.pop(0)
        if word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "--json":
            body, method = words.pop(0), "POST"
            headers.setdefault("Content-Type", "application/json")
        elif word == "-X":
            method = words.pop(0)
        else:
            url = word
    path = url.removeprefix(api.url)
    return method, path, api.http.request(method, path, content=body, headers=headers)


def _shape(document: Any) -> Any:
    """Names and nesting of a document; lists by their first element."""
    if isinstance(document, dict):
        if set(document) <= {"0", "1", "2"}:
            return "by number"
        return {name: _shape(value) for name, value in document.items() if name not in LOOSE}
    if isinstance(document, list):
        return [_shape(document[0])] if document else []
    return "value"


LOOSE = {"verdict", "decision", "progress", "spec", "errors", "accuracy", "roles", "experiences", "learnt"}
"""Members whose content depends on the pipeline, or which may be null; their presence is all that counts."""
