"""Pipeline specs: what is refused, with where and why; and how they are stored."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from service.errors import PipelineExistsError, PipelineInvalidError, PipelineUnknownError
from service.ingest import sources
from service.ingest.sources import require_allowed
from service.pipelines import PipelineSpec, parse
from service.settings import Settings
from service.state import pipelines
from strategies.catalog import STRATEGIES
from streams.triggers.catalog import RecordsTrigger
from tests.support.threads import outcome, together

GOOD: dict[str, Any] = {
    "name": "fraud",
    "schema": {"shape": [6], "classes": ["no", "yes"]},
    "trigger": {"records": 500},
    "strategy": {"name": "replay"},
}
DROP = object()


def changed(path: str, value: object) -> dict[str, Any]:
    """The good document with one thing changed; `path` is dotted."""
    document: dict[str, Any] = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    return document


def test_a_small_document_is_a_whole_pipeline() -> None:
    spec = parse(yaml.safe_dump(GOOD))
    assert spec == parse(GOOD)
    assert (spec.source.kind, spec.trigger, spec.strategy.name) == (
        "pushed",
        RecordsTrigger(records=500),
        "replay",
    )
    assert (spec.split.gate, spec.gate.margin, spec.max_carries) == (0.25, 0.02, 2)
    assert spec.stream_info.shape == (6,)


def test_a_spec_survives_being_written_and_read() -> None:
    spec = parse(changed("gate.margin", 0.1))
    assert parse(spec.model_dump(mode="json", by_alias=True)) == spec


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_of_the_catalog_can_be_named(strategy: str) -> None:
    assert parse(changed("strategy", {"name": strategy})).strategy.name == strategy


BAD: list[tuple[str, object, str, str]] = [
    ("name", DROP, "name", "Field required"),
    ("name", "Fraud", "name", "should match pattern"),
    ("name", "-fraud", "name", "should match pattern"),
    ("name", "a" * 64, "name", "should match pattern"),
    ("name", "fraud\n", "name", "should match pattern"),
    ("name", "a/b", "name", "should match pattern"),
    ("name", 7, "name", "valid string"),
    ("colour", "red", "colour", "Extra inputs are not permitted"),
    ("schema", DROP, "schema", "Field required"),
    ("schema.shape", [], "schema.shape", "at least 1 item"),
    ("schema.shape", [0], "schema.shape.0", "greater than or equal to 1"),
    ("schema.classes", ["one"], "schema.classes", "at least 2 items"),
    ("schema.classes", ["a", "a"], "schema", "classes must not repeat a name"),
    ("schema.classes", ["", "a"], "schema.classes.0", "at least 1 character"),
    ("schema.dtype", "float64", "schema.dtype", "'float32' or 'uint8'"),
    ("schema.minimum", "low", "schema.minimum", "valid number"),
    ("schema.extra", 1, "schema.extra", "Extra inputs are not permitted"),
    ("source", {"kind": "carrier-pigeon"}, "source", "'carrier-pigeon' found using 'kind'"),
    ("source", {}, "source", "Unable to extract tag using discriminator 'kind'"),
    ("source", {"kind": "datasets"}, "body", "The built-in digits have shape [8, 8]"),
    ("source", {"kind": "pushed", "url": "x"}, "source.pushed.url", "Extra inputs are not permitted"),
    ("trigger", DROP, "trigger", "Field required"),
    ("trigger.records", 0, "trigger.records", "greater than or equal to 1"),
    ("trigger.records", 10**9, "trigger.records", "less than or equal to"),
    ("trigger.kind", "full-moon", "trigger.kind", "'records'"),
    ("split.gate", 1.0, "split.gate", "less than 1"),
    ("split", {"gate": 0.6, "audit": 0.5}, "split", "gate and audit together must be below 1"),
    ("split.gate", -0.1, "split.gate", "greater than or equal to 0"),
    ("strategy", DROP, "strategy", "Field required"),
    ("strategy", {"name": "magic"}, "strategy", "'magic' found using 'name'"),
    ("strategy.epochs", 0, "strategy.replay.epochs", "greater than or equal to 1"),
    ("strategy.learning_rate", float("inf"), "strategy.replay.learning_rate", "finite number"),
    ("strategy.hidden", [0], "strategy.replay.hidden.0", "greater than or equal to 1"),
    ("strategy.colour", 1, "strategy.replay.colour", "Extra inputs are not permitted"),
    ("strategy.network", "cnn", "strategy.network", "images of shape (channels, height, width)"),
    ("strategy.network", "resnet18", "strategy.network", "the records have shape [6]"),
    ("strategy.network", "backbone", "strategy.replay.network.backbone", "a frozen backbone needs weights"),
    ("strategy.network", "tower", "strategy.replay.network", "'tower' found using 'name'"),
    (
        "strategy",
        [{"name": "replay"}, {"name": "lwf", "network": "mlp"}],
        "strategy.combined.parts",
        "network of lwf belong",
    ),
    (
        "strategy",
        {"name": "combined", "network": "cnn"},
        "strategy.network",
        "network cnn takes images",
    ),
    ("strategy", {"name": "icarl", "capacity": 1}, "strategy.capacity", "do not fit in 1"),
    ("strategy", {"name": "naive", "augment": ["flip"]}, "strategy.augment", "augment flip takes images"),
    ("gate.margin", 0, "gate.margin", "greater than 0"),
    ("gate.margin", 1, "gate.margin", "less than 1"),
    ("gate.alpha", 0.5, "gate.alpha", "less than or equal to 0.1"),
    ("gate.first_update", "always", "gate.first_update", "'gate' or 'review'"),
    ("gate.groups", 0.05, "body", "gate.groups wants group columns: declare them as schema.groups"),
    ("gate.groups", 1.5, "gate.groups", "less than 1"),
    ("gate.metrics", {"accuracy": 0.1}, "gate.metrics.accuracy.[key]", "'macro_f1'"),
    ("gate.robustness_against", ["rain"], "gate.robustness_against.0", "'fgsm'"),
    ("max_experiences_per_update", 0, "max_experiences_per_update", "greater than or equal to 1"),
    ("max_carries", -1, "max_carries", "greater than or equal to 0"),
]


@pytest.mark.parametrize(("path", "value", "where", "why"), BAD)
def test_a_bad_spec_is_refused_with_where_and_why(path: str, value: object, where: str, why: str) -> None:
    with pytest.raises(PipelineInvalidError) as caught:
        parse(changed(path, value))
    errors: Any = caught.value.members["errors"]
    (error,) = [each for each in errors if each["where"] == where]
    assert why in error["problem"]
    assert "Value error" not in caught.value.detail
    assert f"{errors[0]['where']}: {errors[0]['problem']}." in caught.value.detail
    assert ".." not in caught.value.detail


def test_auc_is_refused_where_there_are_not_two_classes() -> None:
    document = changed("gate.metrics", {"auc": 0.05})
    assert parse(document).gate.metrics == {"auc": 0.05}
    document["schema"]["classes"] = ["no", "maybe", "yes"]
    with pytest.raises(PipelineInvalidError, match="auc is made for two classes"):
        parse(document)


def test_several_problems_are_told_at_once() -> None:
    with pytest.raises(PipelineInvalidError) as caught:
        parse({"name": "fraud"})
    errors: Any = caught.value.members["errors"]
    assert {error["where"] for error in errors} == {"schema", "trigger", "strategy"}


@pytest.mark.parametrize("document", ["", "just text", "- a\n- b", "3", "null"])
def test_what_is_no_mapping_is_refused(document: str) -> None:
    with pytest.raises(PipelineInvalidError, match="body"):
        parse(document)


@pytest.mark.parametrize("document", ["a: [", "a: b: c", "\ttab: 1", "!!python/object/apply:os.getcwd []"])
def test_what_is_no_yaml_is_refused(document: str) -> None:
    with pytest.raises(PipelineInvalidError, match="This is not YAML"):
        parse(document)


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(PipelineInvalidError):
        parse("1: one")


def test_the_input_is_not_repeated_in_the_problem() -> None:
    with pytest.raises(PipelineInvalidError) as caught:
        parse(changed("colour", "hunter2"))
    assert "hunter2" not in str(caught.value) + str(caught.value.members)


def create(engine: sa.Engine, spec: PipelineSpec) -> None:
    with engine.begin() as connection:
        pipelines.create(connection, spec)


def test_a_pipeline_is_read_as_it_was_declared(database: sa.Engine) -> None:
    spec = parse(GOOD)
    create(database, spec)
    create(database, parse(changed("name", "abuse")))
    with database.begin() as connection:
        assert pipelines.load_spec(connection, "fraud") == spec
        assert pipelines.names(connection) == ["abuse", "fraud"]


def test_a_name_is_taken_once_and_the_first_stays_as_it_was(database: sa.Engine) -> None:
    create(database, parse(GOOD))
    with pytest.raises(PipelineExistsError, match="'fraud' already; it was not changed"):
        create(database, parse(changed("trigger.records", 7)))
    with database.begin() as connection:
        assert pipelines.load_spec(connection, "fraud").trigger == RecordsTrigger(records=500)


def test_of_eight_who_declare_one_name_at_once_one_succeeds(database: sa.Engine) -> None:
    candidates = [parse(changed("trigger.records", 100 + number)) for number in range(8)]
    outcomes = together(8, lambda number: outcome(lambda: create(database, candidates[number])))
    won = [number for number, each in enumerate(outcomes) if each is None]
    assert len(won) == 1, outcomes
    assert sum(isinstance(each, PipelineExistsError) for each in outcomes) == 7
    with database.begin() as connection:
        assert pipelines.load_spec(connection, "fraud") == candidates[won[0]]


@pytest.mark.parametrize("name", ["nothing", "", "\0", "fraud\0", "'; DROP TABLE pipelines; --"])
def test_a_name_that_nobody_declared_is_unknown(database: sa.Engine, name: str) -> None:
    with database.begin() as connection, pytest.raises(PipelineUnknownError):
        pipelines.load_spec(connection, name)


def test_a_list_of_strategies_is_their_combination() -> None:
    spec = parse({**GOOD, "strategy": ["replay", {"name": "lwf", "alpha": 1.5}]})
    assert spec.strategy.name == "combined"
    stored = spec.model_dump(mode="json", by_alias=True)
    assert [part["name"] for part in stored["strategy"]["parts"]] == ["replay", "lwf"]
    assert parse(stored) == spec
    with pytest.raises(PipelineInvalidError, match="cannot be combined"):
        parse({**GOOD, "strategy": ["replay", "der"]})


def kafka_asking(name: str, value: str) -> dict[str, Any]:
    properties = {name: value}
    return {"kind": "kafka", "bootstrap_servers": "127.0.0.1:1", "topic": "t", "properties": properties}


@pytest.mark.parametrize("strategy", ["replay", "combined"])
def test_a_network_may_be_a_bare_name_and_is_read_again_as_it_was(strategy: str, database: sa.Engine) -> None:
    images = {**GOOD, "schema": {"shape": [1, 8, 8], "classes": ["no", "yes"]}}
    spec = parse({**images, "strategy": {"name": strategy, "network": "cnn"}})
    assert spec == parse({**images, "strategy": {"name": strategy, "network": {"name": "cnn"}}})
    create(database, spec)
    with database.begin() as connection:
        assert pipelines.load_spec(connection, "fraud") == spec


def test_a_pipeline_is_held_to_the_networks_and_weights_of_the_installation(tmp_path: Path) -> None:
    images = {**GOOD, "schema": {"shape": [1, 8, 8], "classes": ["no", "yes"]}}
    own = parse({**images, "strategy": {"name": "replay", "network": {"name": "own", "of": "mine"}}})
    backbone = {"name": "backbone", "weights": "w.pth"}
    pretrained = parse({**images, "strategy": {"name": "combined", "network": backbone}})
    for spec, message in ((own, "called 'mine'"), (pretrained, "HOLDFAST_WEIGHTS")):
        with pytest.raises(PipelineInvalidError, match=message) as caught:
            require_allowed(spec, Settings(home=tmp_path))
        errors: Any = caught.value.members["errors"]
        assert [error["where"] for error in errors] == ["strategy.network"]
        assert ".." not in caught.value.detail
    (tmp_path / "w.pth").touch()
    settings = Settings(home=tmp_path, networks="mine=anywhere:make", weights=tmp_path)
    for spec in (own, pretrained):
        require_allowed(spec, settings)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"duplicate_window": 10_000_001}, "duplicate_window"),
        ({"schema": {"shape": [2**20], "classes": ["no", "yes"]}, "trigger": {"records": 3000}}, "trigger"),
        ({"source": kafka_asking("queued.max.messages.kbytes", "262145")}, "source"),
        ({"source": kafka_asking("receive.message.max.bytes", "0x7fffffff")}, "source"),
        ({"source": kafka_asking("fetch.max.bytes", str(2**28 + 1))}, "source"),
    ],
)
def test_a_declaration_asks_for_no_more_memory_than_the_settings_grant(
    changes: dict[str, Any], where: str, tmp_path: Path
) -> None:
    with pytest.raises(PipelineInvalidError) as caught:
        require_allowed(parse({**GOOD, **changes}), Settings(home=tmp_path))
    errors: Any = caught.value.members["errors"]
    assert [error["where"] for error in errors] == [where]


def test_what_the_settings_grant_may_be_asked_for(tmp_path: Path) -> None:
    for changes in (
        {"duplicate_window": 10_000_000},
        {"source": kafka_asking("queued.max.messages.kbytes", "262144")},
    ):
        require_allowed(parse({**GOOD, **changes}), Settings(home=tmp_path))


@pytest.mark.parametrize(("numbers", "refused"), [(10, False), (560, True)])
def test_classes_that_are_numbers_on_a_scale_are_refused(numbers: int, refused: bool, tmp_path: Path) -> None:
    classes = [f"{100 + number}.5" for number in range(numbers)]
    spec = PipelineSpec.model_validate(
        {
            "name": "prices",
            "schema": {"shape": [3], "classes": classes},
            "trigger": {"kind": "records", "records": 700},
            "strategy": {"name": "replay"},
        }
    )
    if not refused:
        require_allowed(spec, Settings(home=tmp_path))
        return
    with pytest.raises(PipelineInvalidError, match=r"560 classes are numbers.*on a scale"):
        require_allowed(spec, Settings(home=tmp_path))


@pytest.mark.parametrize(
    ("strategy", "computes", "gpu", "cluster", "refused"),
    [
        ({"precision": "bfloat16"}, False, False, None, True),
        ({"precision": "bfloat16"}, True, False, None, False),
        ({"precision": "bfloat16"}, False, True, None, False),
        ({"precision": "bfloat16", "device": "cpu"}, False, True, None, True),
        ({"precision": "bfloat16"}, False, False, "ray://head:10001", False),
        ({}, False, False, None, False),
    ],
)
def test_bfloat16_is_refused_where_this_machine_trains_and_only_imitates_it(
    strategy: dict[str, Any],
    computes: bool,
    gpu: bool,
    cluster: str | None,
    refused: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "computes_bfloat16", lambda: computes)
    monkeypatch.setattr(sources, "has_gpu", lambda: gpu)
    spec = parse({**GOOD, "strategy": {"name": "replay", **strategy}})
    settings = Settings(home=tmp_path, ray_address=cluster)
    if not refused:
        require_allowed(spec, settings)
        return
    with pytest.raises(PipelineInvalidError, match="many times slower than float32"):
        require_allowed(spec, settings)
