"""Relabelled holdouts over HTTP and by command: a golden set replaces a past holdout."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from service.state import golden
from service.state.database import updates
from service.storage import store_location
from tests.service.api.test_updates import WHY, get, post
from tests.service.ingest.test_golden import LINES, command, lines, parts_of
from tests.support.api_parts import Api, declare, learn, running_api, unchanged

NAMES = count()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def pipeline(api: Api) -> Iterator[str]:
    """A pipeline whose champion learnt experience 0; its records are all labelled `up`."""
    name = declare(api, f"l{next(NAMES)}", split={"gate": 0.6})
    learn(api, name, "promote")
    yield name
    with api.engine.begin() as connection:
        connection.execute(sa.update(updates).values(state="done"))


def relabel(api: Api, pipeline: str, records: list[dict[str, Any]], experience: int = 0) -> httpx.Response:
    return api.http.post(
        f"/v1/pipelines/{pipeline}/holdouts/{experience}/relabel",
        params={"reason": "the sensor was upside down", "by": "Ada"},
        content=lines(records),
        headers={"Content-Type": LINES},
    )


def labels_of(api: Api, pipeline: str, name: str) -> dict[str, int]:
    with api.engine.begin() as connection:
        found = golden.named(connection, pipeline, name)
    assert found is not None
    stored = store_location(api.settings).open().open(found.part.digest, index=0)
    return dict(zip(stored.record_ids.tolist(), stored.labels.tolist(), strict=True))


def test_the_holdout_is_retired_and_a_set_with_the_new_labels_takes_its_place(
    api: Api, pipeline: str
) -> None:
    ids = parts_of(api, pipeline)["gate"]
    post(api, f"/pipelines/{pipeline}/holdouts/0/margin", {"margin": 0.125, **WHY})
    before = len(get(api, f"/pipelines/{pipeline}/ledger")["entries"])
    answer = relabel(api, pipeline, [{"id": ids[0], "label": "down"}])
    assert answer.status_code == 201, answer.text
    entries = get(api, f"/pipelines/{pipeline}/ledger")["entries"]
    assert len(entries) == before + 1
    assert (entries[-1]["action"], entries[-1]["actor"]) == ("relabel", "Ada")
    assert entries[-1]["reason"] == (
        "holdout of experience 0: 1 labels changed, now golden set relabelled-0, margin 12.5 points: the "
        "sensor was upside down"
    )
    view = get(api, f"/pipelines/{pipeline}/holdouts")
    assert view["holdouts"][0]["retired"]
    (listed,) = view["golden"]
    assert (listed["name"], listed["records"], listed["margin"]) == ("relabelled-0", len(ids), 0.125)
    assert (listed["since_version"], listed["anchor_version"]) == (1, 1)
    found = labels_of(api, pipeline, "relabelled-0")
    assert found == {**dict.fromkeys(ids, 1), ids[0]: 0}


def test_a_holdout_can_be_relabelled_again(api: Api, pipeline: str) -> None:
    ids = parts_of(api, pipeline)["gate"]
    assert relabel(api, pipeline, [{"id": ids[0], "label": "down"}]).is_success
    answer = relabel(api, pipeline, [{"id": ids[1], "label": "down"}])
    assert answer.json()["golden"]["name"] == "relabelled-0-2", answer.text
    found = labels_of(api, pipeline, "relabelled-0-2")
    assert [found[name] for name in ids[:3]] == [0, 0, 1]
    first, second = get(api, f"/pipelines/{pipeline}/holdouts")["golden"]
    assert (first["retired"], second["retired"]) == (True, False)
    # Few records settle no narrow margin: it is the widest that an experience alone is judged at.
    assert first["margin"] == second["margin"] == 0.15


def test_a_set_that_may_lose_no_answer_stays_so_when_it_is_relabelled(
    api: Api, pipeline: str, tmp_path: Path
) -> None:
    ids = parts_of(api, pipeline)["gate"]
    assert relabel(api, pipeline, [{"id": ids[0], "label": "down"}]).is_success
    path = f"/pipelines/{pipeline}/holdouts/golden/relabelled-0/margin"
    assert post(api, path, {"margin": None, **WHY}).is_success
    file = tmp_path / "labels.jsonl"
    file.write_bytes(lines([{"id": ids[1], "label": "down"}]))
    done = command(api, "holdout", "relabel", pipeline, "0", str(file), "--reason", "upside down")
    assert done.returncode == 0, done.stderr
    assert "no right answer may be lost" in done.stdout
    last = get(api, f"/pipelines/{pipeline}/holdouts")["golden"][-1]
    assert (last["name"], last["margin"]) == ("relabelled-0-2", None)
    assert "no right answer may be lost" in get(api, f"/pipelines/{pipeline}/ledger")["entries"][-1]["reason"]


def test_after_a_relabelling_that_was_taken_back_the_holdout_itself_is_relabelled(
    api: Api, pipeline: str, tmp_path: Path
) -> None:
    ids = parts_of(api, pipeline)["gate"]
    assert relabel(api, pipeline, [{"id": ids[0], "label": "down"}]).json()["replaces"] is None
    post(api, f"/pipelines/{pipeline}/holdouts/golden/relabelled-0/retire", WHY)
    post(api, f"/pipelines/{pipeline}/holdouts/0/restore", WHY)
    post(api, f"/pipelines/{pipeline}/holdouts/0/margin", {"margin": 0.25, **WHY})
    answer = relabel(api, pipeline, [{"id": ids[1], "label": "down"}])
    assert answer.json()["replaces"] is None, answer.text
    assert (answer.json()["golden"]["name"], answer.json()["golden"]["margin"]) == ("relabelled-0-2", 0.25)
    assert [labels_of(api, pipeline, "relabelled-0-2")[name] for name in ids[:2]] == [1, 0]
    assert get(api, f"/pipelines/{pipeline}/holdouts")["holdouts"][0]["retired"]
    # The holdout and the set in its place, both judged: both are retired.
    post(api, f"/pipelines/{pipeline}/holdouts/0/restore", WHY)
    file = tmp_path / "labels.jsonl"
    file.write_bytes(lines([{"id": ids[2], "label": "down"}]))
    done = command(api, "holdout", "relabel", pipeline, "0", str(file), "--reason", "upside down")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "The holdout of experience 0 and golden set relabelled-0-2 are retired; golden set relabelled-0-3 of "
        f"{len(ids)} records replaces them, margin 25 points."
    )
    view = get(api, f"/pipelines/{pipeline}/holdouts")
    assert view["holdouts"][0]["retired"]
    assert [each["retired"] for each in view["golden"]] == [True, True, False]
    last = get(api, f"/pipelines/{pipeline}/ledger")["entries"][-1]["reason"]
    assert "now golden set relabelled-0-3 in place of relabelled-0-2, margin 25 points" in last


def test_what_does_not_fit_changes_nothing(api: Api, pipeline: str) -> None:
    parts = parts_of(api, pipeline)
    name = parts["gate"][0]
    with unchanged(api):
        trained = [{"id": parts["train"][0], "label": "down"}, {"id": name, "label": "down"}]
        found = api.refuses(relabel(api, pipeline, trained), 422, "golden-unfit")
        assert found["detail"].startswith("1 of 2 ids are not in the holdout of experience 0: ")
        assert found["ids"] == parts["train"][:1]
        same = [{"id": name, "label": "up"}]
        assert "No label differs" in api.refuses(relabel(api, pipeline, same), 422, "golden-unfit")["detail"]
        for wrong in (
            [],
            [{"id": name}],
            [{"id": name, "features": [0.5, 1.5]}],
            [{"id": name, "label": "sideways"}],
            [{"id": name, "label": "down"}, {"id": name, "label": "up"}],
        ):
            api.refuses(relabel(api, pipeline, wrong), 422, "records-invalid")
        fine = [{"id": name, "label": "down"}]
        api.refuses(relabel(api, pipeline, fine, experience=3), 404, "holdout-unknown")
        api.refuses(relabel(api, "nobody", fine), 404, "pipeline-unknown")
        path = f"/v1/pipelines/{pipeline}/holdouts/0/relabel"
        answer = api.http.post(path, content=lines(fine), headers={"Content-Type": LINES})
        api.refuses(answer, 422, "request-invalid")


def test_the_command_says_what_takes_the_place(api: Api, pipeline: str, tmp_path: Path) -> None:
    ids = parts_of(api, pipeline)["gate"]
    file = tmp_path / "labels.jsonl"
    file.write_bytes(lines([{"id": each, "label": "down"} for each in ids]))
    done = command(api, "holdout", "relabel", pipeline, "0", str(file), "--reason", "upside down")
    assert done.returncode == 0, done.stderr
    assert "The holdout of experience 0 is retired; golden set relabelled-0 of" in done.stdout
    assert "margin 15 points" in done.stdout
    assert set(labels_of(api, pipeline, "relabelled-0").values()) == {0}
    assert np.all([each["retired"] for each in get(api, f"/pipelines/{pipeline}/holdouts")["holdouts"]])
