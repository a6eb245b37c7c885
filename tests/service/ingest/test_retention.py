"""Records that nothing needs go; what an update, a rollback, a window or a reference needs stays."""

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.ingest.retention import Upkeep
from service.storage import store_location
from streams.base import ExperienceDamagedError
from streams.state.manifest import ExperienceRow, Manifest
from streams.store.experiences import ExperienceStore
from tests.support.api_parts import Api, declare, ingest, learn, push, record, running_api

KEPT = {"retention": {"keep_experiences": 1}}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_api(tmp_path / "home") as running:
        yield running


def store(api: Api) -> ExperienceStore:
    return store_location(api.settings).open()


def upkeep(api: Api) -> list[str]:
    """One run, as long after everything was written as the grace period."""
    long_ago = time.time() - 2 * api.settings.orphan_grace_seconds
    for path in api.settings.experiences.iterdir():
        os.utime(path, (long_ago, long_ago))
    return Upkeep(api.engine, api.settings, store(api)).run()


def rows(api: Api, pipeline: str) -> list[ExperienceRow]:
    return Manifest(api.engine).experiences(pipeline)


def gone(api: Api, pipeline: str) -> list[int]:
    """Experiences whose train part is gone from the manifest, and so from the disk."""
    found = []
    for row in rows(api, pipeline):
        for part in (row.gate, row.audit):
            store(api).open(part.digest, index=row.index)
        if row.train_removed_at is None:
            store(api).open(row.train.digest, index=row.index)
        else:
            found.append(row.index)
            with pytest.raises(ExperienceDamagedError, match="missing"):
                store(api).open(row.train.digest, index=row.index)
    return found


def learn_other(api: Api, pipeline: str, turn: int) -> None:
    """An experience of records of its own, learnt and promoted: equal records would share one file."""
    records = [record(f"{turn}-{place}", features=[turn, place]) for place in range(20)]
    answer = api.http.post(f"/v1/pipelines/{pipeline}/records", json={"records": records})
    assert answer.status_code == 202, answer.text
    learn(api, pipeline, "promote")


def test_everything_is_kept_unless_the_pipeline_says_otherwise(api: Api) -> None:
    declare(api, "all")
    for turn in range(3):
        learn_other(api, "all", turn)
    assert upkeep(api) == []
    assert gone(api, "all") == []


def test_only_what_the_champion_and_the_one_before_it_learnt_goes(api: Api) -> None:
    declare(api, "few", **KEPT)
    for turn in range(5):
        learn_other(api, "few", turn)
    assert len(upkeep(api)) == 3
    # Of 0 to 4 the champion before this one learnt 0 to 3, of which the newest is kept.
    assert gone(api, "few") == [0, 1, 2]
    assert upkeep(api) == []


def test_what_waits_is_parked_or_is_tried_stays(api: Api) -> None:
    declare(api, "few", **KEPT)
    learn(api, "few", "reject")
    for turn in range(4):
        learn_other(api, "few", turn)
    push(api, "few")
    upkeep(api)
    states = {view["index"]: view["state"] for view in api.http.get("/v1/pipelines/few/experiences").json()}
    removed = gone(api, "few")
    assert removed
    assert all(states[index] == "learnt" for index in removed)


def test_upkeep_with_nothing_to_remove_waits_for_no_writer(api: Api) -> None:
    declare(api, "few", **KEPT)
    for turn in range(4):
        learn_other(api, "few", turn)
    upkeep(api)
    assert gone(api, "few")
    writer = sqlite3.connect(api.settings.root / "holdfast.db", isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        upkeep(api)
        # One that waited for the writer would give up after 30 seconds.
        assert time.monotonic() - began < 15
    finally:
        writer.close()


def test_the_duplicate_window_keeps_the_records_that_it_knows_ids_from(api: Api) -> None:
    declare(api, "window", duplicate_window=80, **KEPT)
    for turn in range(6):
        learn_other(api, "window", turn)
    upkeep(api)
    removed = gone(api, "window")
    behind = sum(row.rows for row in rows(api, "window") if row.index > max(removed))
    assert removed
    assert behind >= 80


def test_what_is_gone_cannot_be_asked_for_again(api: Api) -> None:
    declare(api, "few", **KEPT)
    for turn in range(5):
        learn_other(api, "few", turn)
    upkeep(api)
    body = {"version": 1, "reason": "Back to the first.", "by": "ada"}
    assert api.http.post("/v1/pipelines/few/rollback", json=body).is_success
    answer = api.http.post("/v1/pipelines/few/updates", json={"experiences": [1]})
    problem = api.refuses(answer, 409, "nothing-to-learn")
    assert "retention" in problem["detail"]
    view = api.http.get("/v1/pipelines/few/experiences").json()[1]
    assert (view["state"], view["train_removed_at"] is not None) == ("parked", True)


def test_a_file_that_no_row_names_goes_after_its_grace_and_not_before(api: Api) -> None:
    declare(api, "all")
    learn_other(api, "all", 0)
    orphan = api.settings.experiences / f"{'0' * 64}.arrow"
    orphan.write_bytes(b"left over")
    upkeep_now = Upkeep(api.engine, api.settings, store(api))
    assert upkeep_now.run() == []
    assert upkeep(api) == [orphan.name]
    assert gone(api, "all") == []


def test_records_that_two_pipelines_share_stay_while_one_needs_them(api: Api) -> None:
    declare(api, "few", **KEPT)
    declare(api, "all")
    for turn in range(5):
        learn_other(api, "few", turn)
    for turn in range(5):
        learn_other(api, "all", turn)
    assert upkeep(api) == []
    assert [row.train_removed_at is not None for row in rows(api, "few")] == [True, True, True, False, False]
    ingest(api, "all")
    for row in rows(api, "all"):
        store(api).open(row.train.digest, index=row.index)
