"""Golden sets over HTTP and by command: what is added, what is refused, and what no update ever learns."""

import json
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa

from service.ingest import golden
from service.ingest.retention import Upkeep
from service.state import golden as rows
from service.state.database import updates
from service.storage import store_location
from streams.state.manifest import Manifest
from streams.state.tables import EXPERIENCES
from tests.service.api.test_updates import WHY, get, post
from tests.support.api_parts import Api, declare, ingest, learn, record, running_api, unchanged
from tests.support.commands import holdfast

NAMES = count()
LINES = "application/x-ndjson"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def pipeline(api: Api) -> Iterator[str]:
    yield declare(api, f"g{next(NAMES)}", gate={"holdout_records": 300})
    with api.engine.begin() as connection:
        connection.execute(sa.update(updates).values(state="done"))


def some(records: int = 4, *, prefix: str = "gold", **changes: Any) -> list[dict[str, Any]]:
    return [record(f"{prefix}-{row}", **changes) for row in range(records)]


def command(api: Api, *arguments: str) -> subprocess.CompletedProcess[str]:
    return holdfast(*arguments, "--url", api.url)


def lines(records: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


def add(
    api: Api, pipeline: str, records: list[dict[str, Any]] | bytes, *, media: str = LINES, **asked: Any
) -> httpx.Response:
    body = records if isinstance(records, bytes) else lines(records)
    wanted = {"name": "curated", "margin": "0.1", "reason": "by hand", "by": "Ada", **asked}
    return api.http.post(
        f"/v1/pipelines/{pipeline}/holdouts",
        params={name: value for name, value in wanted.items() if value is not None},
        content=body,
        headers={"Content-Type": media},
    )


def test_a_set_is_added_listed_marked_and_kept_in_the_ledger(api: Api, pipeline: str) -> None:
    answer = add(api, pipeline, some(30))
    assert answer.status_code == 201, answer.text
    added = answer.json()
    assert 30 < added["takes"]["fewest"] < added["takes"]["likely"]
    assert (added["entry"]["action"], added["entry"]["actor"]) == ("golden", "Ada")
    assert added["entry"]["reason"] == "golden set curated of 30 records, margin 10 points: by hand"
    assert added["unchecked_experiences"] == 0
    (listed,) = get(api, f"/pipelines/{pipeline}/holdouts")["golden"]
    assert listed == added["golden"]
    assert (listed["name"], listed["records"], listed["margin"]) == ("curated", 30, 0.1)
    assert (listed["since_version"], listed["anchor_version"], listed["retired"]) == (None, None, False)
    path = f"/pipelines/{pipeline}/holdouts/golden/curated"
    assert post(api, f"{path}/margin", {"margin": None, **WHY}).json()["action"] == "margin"
    assert post(api, f"{path}/retire", WHY).json()["action"] == "retire"
    (listed,) = get(api, f"/pipelines/{pipeline}/holdouts")["golden"]
    assert (listed["margin"], listed["retired"]) == (None, True)
    with unchanged(api):
        api.refuses(post(api, f"{path}/retire", WHY), 409, "holdout-conflict")
        api.refuses(post(api, f"{path}/pin", WHY), 422, "request-invalid")
        api.refuses(post(api, f"{path}/margin", {"margin": 2, **WHY}), 422, "request-invalid")
        api.refuses(post(api, path.replace("curated", "Nobody") + "/retire", WHY), 422, "request-invalid")
        api.refuses(post(api, path.replace("curated", "nobody") + "/retire", WHY), 404, "holdout-unknown")
    assert get(api, f"/pipelines/{pipeline}/ledger")["intact"]


def test_every_form_of_records_is_taken(api: Api, pipeline: str) -> None:
    import msgspec

    table = pa.table({"id": ["a", "b"], "features": [[0.5, 1.5], [0.5, 2.5]], "label": ["up", "down"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    bodies = {
        "application/json": json.dumps({"records": some()}).encode(),
        "application/msgpack": msgspec.msgpack.encode(some()),
        "application/vnd.apache.arrow.stream": sink.getvalue().to_pybytes(),
    }
    for number, (media, body) in enumerate(bodies.items()):
        answer = add(api, pipeline, body, media=media, name=f"set-{number}", margin=None, none_lost="true")
        assert answer.status_code == 201, answer.text
        assert answer.json()["takes"] is None


def test_bad_records_refuse_the_whole_file(api: Api, pipeline: str) -> None:
    with unchanged(api):
        for records, said in (
            ([*some(2), record("x", label="sideways")], "Record 2: "),
            ([*some(2), record("x", features=[1.0])], "Record 2: "),
            ([*some(2), {"features": [0.5, 1.5], "label": "up"}], "Record 2: "),
            ([*some(2), {"id": "x", "features": [0.5, 1.5]}], "The record has no label"),
            ([*some(3), *some(1)], "Records 0 and 3 have the same id 'gold-0'"),
        ):
            found = api.refuses(add(api, pipeline, records), 422, "records-invalid")
            assert said in found["detail"], found
        api.refuses(add(api, pipeline, []), 422, "records-invalid")
        api.refuses(add(api, pipeline, b"{", media="application/json"), 422, "records-invalid")
        found = api.refuses(add(api, pipeline, some(301)), 413, "batch-too-large")
        assert found["detail"] == "301 records are more than are judged of one holdout: 300."
        api.refuses(add(api, pipeline, some(), media="text/csv"), 415, "media-type")
        api.refuses(add(api, "nobody", some()), 404, "pipeline-unknown")


@pytest.mark.parametrize(
    "asked",
    [
        {"margin": None},
        {"none_lost": "true"},
        {"margin": None, "none_lost": "false"},
        {"margin": "0"},
        {"margin": "1"},
        {"margin": "nan"},
        {"margin": "wide"},
        {"name": "7"},
        {"name": "Curated"},
        {"name": "a" * 64},
        {"name": None},
        {"reason": " "},
        {"reason": None},
        {"by": ""},
        {"colour": "gold"},
    ],
)
def test_what_is_asked_wrongly_changes_nothing(api: Api, pipeline: str, asked: dict[str, Any]) -> None:
    with unchanged(api):
        api.refuses(add(api, pipeline, some(), **asked), 422, "request-invalid")


def test_a_second_set_of_the_name_is_refused_retired_or_not(api: Api, pipeline: str) -> None:
    assert add(api, pipeline, some()).status_code == 201
    with unchanged(api):
        api.refuses(add(api, pipeline, some(prefix="other")), 409, "holdout-conflict")
    post(api, f"/pipelines/{pipeline}/holdouts/golden/curated/retire", WHY)
    with unchanged(api):
        api.refuses(add(api, pipeline, some(prefix="other")), 409, "holdout-conflict")
    assert add(api, pipeline, some(), name="another").status_code == 201


def test_names_of_relabelled_holdouts_are_kept_for_these(api: Api, pipeline: str) -> None:
    with unchanged(api):
        for name in ("relabelled-4", "relabelled-4-2", "relabelled-by-hand"):
            found = api.refuses(add(api, pipeline, some(), name=name), 409, "holdout-conflict")
            assert found["detail"].startswith(f"{name!r} is no name for this set")
            assert "Choose another name" in found["fix"]
    assert add(api, pipeline, some(), name="relabelled").status_code == 201


def parts_of(api: Api, pipeline: str, index: int = 0) -> dict[str, list[str]]:
    row = Manifest(api.engine).experience(pipeline, index)
    assert row is not None
    store = store_location(api.settings).open()
    parts = {"train": row.train, "gate": row.gate, "audit": row.audit}
    return {name: store.open(part.digest, index=0).record_ids.tolist() for name, part in parts.items()}


def test_what_was_taken_for_training_or_sealed_is_refused_by_id(api: Api, pipeline: str) -> None:
    records = [record(f"r-{row}") for row in range(60)]
    assert api.http.post(f"/v1/pipelines/{pipeline}/records", json={"records": records}).is_success
    assert api.http.post(f"/v1/pipelines/{pipeline}/updates", json={}).is_success
    ingest(api, pipeline)
    parts = parts_of(api, pipeline)
    assert all(parts.values())
    with unchanged(api):
        known = [record(name) for name in parts["train"]]
        found = api.refuses(add(api, pipeline, [*some(3), *known]), 422, "golden-unfit")
        assert found["detail"].startswith(f"{len(known)} of {len(known) + 3} records were taken for training")
        assert (found["known"], found["ids"]) == (len(known), parts["train"][:20])
        sealed = [record(parts["audit"][0])]
        found = api.refuses(add(api, pipeline, sealed), 422, "golden-unfit")
        assert found["detail"].startswith("1 of 1 records are sealed for audits")
    # Records of a gate part were never trained on.
    assert add(api, pipeline, [record(name) for name in parts["gate"]]).status_code == 201
    # Of removed train parts nobody knows the ids any more, and the answer says so.
    with api.engine.begin() as connection:
        rows = EXPERIENCES.c.pipeline == pipeline
        connection.execute(sa.update(EXPERIENCES).where(rows).values(train_removed_at=1.0))
    answer = add(api, pipeline, some(), name="late")
    assert answer.json()["unchecked_experiences"] == 1


def test_what_waits_or_comes_later_with_an_id_of_a_set_is_dropped_and_counted(
    api: Api, pipeline: str
) -> None:
    path = f"/v1/pipelines/{pipeline}/records"
    waiting = [record(f"r-{row}") for row in range(40)]
    assert api.http.post(path, json={"records": waiting}).is_success
    ingest(api, pipeline)
    assert add(api, pipeline, waiting[:10]).status_code == 201
    assert api.http.post(path, json={"records": waiting[5:10]}).is_success
    assert api.http.post(f"/v1/pipelines/{pipeline}/updates", json={}).is_success
    ingest(api, pipeline)
    ids = [name for names in parts_of(api, pipeline).values() for name in names]
    assert sorted(ids) == sorted(each["id"] for each in waiting[10:])
    # Those after the last record of the cut are counted as soon as nothing else of the stream is pending.
    ingest(api, pipeline)
    assert get(api, f"/pipelines/{pipeline}/stream")["held_out"] == 15
    shown = command(api, "stream", "status", pipeline)
    assert "15 records were dropped because a golden set holds their id" in shown.stdout
    held = golden.held_out(api.engine, store_location(api.settings).open(), pipeline)
    asked = pa.array(["r-0", "r-9", "r-10"])
    np.testing.assert_array_equal(held.among(asked), [True, True, False])


def test_upkeep_keeps_the_files_of_sets_retired_or_not(api: Api, pipeline: str) -> None:
    add(api, pipeline, some())
    post(api, f"/pipelines/{pipeline}/holdouts/golden/curated/retire", WHY)
    store = store_location(api.settings).open()
    orphan = store.path("0" * 64)
    orphan.write_bytes(b"nobody's")
    settings = api.settings.model_copy(update={"orphan_grace_seconds": -1.0})
    assert orphan.name in Upkeep(api.engine, settings, store).run()
    with api.engine.begin() as connection:
        kept = rows.digests(connection)
    assert kept
    assert all(store.path(digest).is_file() for digest in kept)


def test_labels_of_an_open_set_are_those_of_the_stream(api: Api) -> None:
    schema = {"shape": [2], "open_classes": True}
    name = declare(api, f"g{next(NAMES)}", schema=schema)
    with unchanged(api):
        found = api.refuses(add(api, name, some()), 422, "records-invalid")
        assert found["detail"] == "No record of the stream has had the label 'up'; none was stored."
    learn(api, name, "promote")
    assert add(api, name, some()).status_code == 201


def test_records_of_late_labels_must_be_complete(api: Api) -> None:
    schema = {"shape": [2], "classes": ["down", "up"], "labels_within_seconds": 60}
    name = declare(api, f"g{next(NAMES)}", schema=schema)
    with unchanged(api):
        alone = {"id": "x", "label": "up"}
        found = api.refuses(add(api, name, [*some(1), alone]), 422, "records-invalid")
        assert found["detail"] == "Record 1 has no features or no label; none was stored."
    assert add(api, name, some()).status_code == 201


def test_the_commands_say_what_was_done_and_what_it_takes(api: Api, pipeline: str, tmp_path: Path) -> None:
    file = tmp_path / "set.ndjson"
    file.write_bytes(lines(some(20)))
    why = ("--reason", "by hand", "--by", "Ada")
    done = command(api, "holdout", "add", pipeline, str(file), "--name", "small", "--margin", "0.1", *why)
    assert done.returncode == 0, done.stdout
    assert "Golden set small has 20 records, margin 10 points; they are never trained on." in done.stdout
    assert "No update can pass with so few" in done.stdout
    done = command(api, "holdout", "add", pipeline, str(file), "--name", "whole", "--none-lost", *why)
    assert done.returncode == 0, done.stdout
    assert "no right answer may be lost" in done.stdout
    shown = command(api, "holdout", "list", pipeline).stdout
    assert "golden set small: 20 records, margin 10 points, since before the first version" in shown
    assert "golden set whole: 20 records, none lost" in shown
    assert command(api, "holdout", "margin", pipeline, "small", "none-lost", *why).returncode == 0
    assert command(api, "holdout", "retire", pipeline, "small", *why).stdout == (
        "Golden set small is retired.\n"
    )
    assert "retired" in command(api, "holdout", "list", pipeline).stdout
    assert command(api, "holdout", "restore", pipeline, "small", *why).returncode == 0
    for wrong in (
        ("add", pipeline, str(file), "--name", "x", *why),
        ("add", pipeline, str(file), "--name", "x", "--margin", "0.1", "--none-lost", *why),
        ("add", pipeline, str(file), "--name", "small", "--none-lost", *why),
        ("add", pipeline, str(tmp_path), "--name", "x", "--none-lost", *why),
        ("retire", pipeline, "no/body", *why),
        ("margin", pipeline, "small", "default", *why),
    ):
        assert command(api, "holdout", *wrong).returncode != 0, wrong
    table = file.rename(tmp_path / "set.csv")
    done = command(api, "holdout", "add", pipeline, str(table), "--name", "x", "--none-lost", *why)
    assert done.returncode == 2
