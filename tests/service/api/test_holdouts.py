"""Past holdouts and freezes over HTTP and by command, on rows that the service's own functions wrote."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from service.state import freezes
from service.state.database import updates
from service.state.ledger import GATE, By
from tests.service.api.test_updates import WHY, get, post
from tests.support.api_parts import Api, declare, learn, running_api, unchanged
from tests.support.commands import holdfast

NAMES = count()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def pipeline(api: Api) -> Iterator[str]:
    yield declare(api, f"h{next(NAMES)}")
    with api.engine.begin() as connection:
        connection.execute(sa.update(updates).values(state="done"))


def frozen(api: Api, pipeline: str) -> None:
    """What an audit that did not pass leaves behind."""
    with api.engine.begin() as connection:
        freezes.begin(
            connection,
            pipeline,
            last_audited=1,
            champion=2,
            by=By(GATE, "experience 0 lost about 9 points since learnt", "u-audit"),
        )


def test_holdouts_are_listed_and_marked_and_the_ledger_tells(api: Api, pipeline: str) -> None:
    path = f"/pipelines/{pipeline}/holdouts"
    assert get(api, path) == {"pipeline": pipeline, "freeze": None, "holdouts": [], "golden": []}
    learn(api, pipeline, "promote")
    learn(api, pipeline, "promote")
    first, second = get(api, path)["holdouts"]
    assert (first["experience"], first["anchor_version"], second["anchor_version"]) == (0, 1, 2)
    assert first["judged_records"] == first["records"]
    for marking, retired, pinned, kept in (
        ("pin", False, True, False),
        ("keep", False, True, True),
        ("retire", True, True, True),
        ("unpin", True, False, True),
        ("unkeep", True, False, False),
        ("restore", False, False, False),
    ):
        entry = post(api, f"{path}/0/{marking}", {"reason": "as agreed", "by": "Ada"}).json()
        assert (entry["action"], entry["actor"]) == (marking, "Ada")
        assert entry["reason"] == "holdout of experience 0: as agreed"
        now = get(api, path)["holdouts"][0]
        assert (now["retired"], now["pinned"], now["kept"]) == (retired, pinned, kept)
        assert now["judged_records"] == (0 if retired else now["records"])
    assert get(api, f"/pipelines/{pipeline}/ledger")["intact"]


def test_a_holdout_gets_a_margin_of_its_own_and_gives_it_back(api: Api, pipeline: str) -> None:
    path = f"/pipelines/{pipeline}/holdouts"
    learn(api, pipeline, "promote")
    usual = get(api, path)["holdouts"][0]["margin"]
    post(api, f"{path}/0/pin", WHY)
    entry = post(api, f"{path}/0/margin", {"margin": 0.125, "reason": "few records", "by": "Ada"}).json()
    assert (entry["action"], entry["actor"]) == ("margin", "Ada")
    assert entry["reason"] == "holdout of experience 0, a margin of 12.5 points from now on: few records"
    now = get(api, path)["holdouts"][0]
    assert (now["margin"], now["pinned"]) == (0.125, True)
    with unchanged(api):
        api.refuses(post(api, f"{path}/0/margin", {"margin": 0.125, **WHY}), 409, "holdout-conflict")
        api.refuses(post(api, f"{path}/3/margin", {"margin": 0.1, **WHY}), 404, "holdout-unknown")
        refused: tuple[Any, ...] = (0, 1, -0.1, "NaN", True, {})
        for wrong in refused:
            api.refuses(post(api, f"{path}/0/margin", {"margin": wrong, **WHY}), 422, "request-invalid")
        api.refuses(post(api, f"{path}/0/margin", WHY), 422, "request-invalid")
        api.refuses(post(api, f"{path}/0/margin", {"margin": 0.1}), 422, "request-invalid")
    post(api, f"{path}/0/margin", {"margin": None, **WHY})
    assert get(api, path)["holdouts"][0]["margin"] == usual
    assert get(api, f"/pipelines/{pipeline}/ledger")["intact"]


def test_a_person_says_what_traffic_a_holdout_stands_for(api: Api, pipeline: str) -> None:
    path = f"/pipelines/{pipeline}/holdouts"
    learn(api, pipeline, "promote")
    assert get(api, path)["holdouts"][0]["traffic"] is None
    entry = post(api, f"{path}/0/traffic", {"traffic": 0.01, "reason": "the log of May", "by": "Ada"}).json()
    assert (entry["action"], entry["actor"]) == ("traffic", "Ada")
    assert entry["reason"] == "holdout of experience 0, 1 % of the traffic from now on: the log of May"
    assert get(api, path)["holdouts"][0]["traffic"] == 0.01
    with unchanged(api):
        api.refuses(post(api, f"{path}/0/traffic", {"traffic": 0.01, **WHY}), 409, "holdout-conflict")
        api.refuses(post(api, f"{path}/3/traffic", {"traffic": 0.1, **WHY}), 404, "holdout-unknown")
        refused: tuple[Any, ...] = (1.01, -0.1, "NaN", True, {})
        for wrong in refused:
            api.refuses(post(api, f"{path}/0/traffic", {"traffic": wrong, **WHY}), 422, "request-invalid")
        api.refuses(post(api, f"{path}/0/traffic", WHY), 422, "request-invalid")
    for share in (0, 1, None):
        post(api, f"{path}/0/traffic", {"traffic": share, **WHY})
        assert get(api, path)["holdouts"][0]["traffic"] == share
    assert get(api, f"/pipelines/{pipeline}/ledger")["intact"]


def test_marks_that_cannot_be_change_nothing(api: Api, pipeline: str) -> None:
    path = f"/pipelines/{pipeline}/holdouts"
    with unchanged(api):
        api.refuses(post(api, f"{path}/0/retire", WHY), 404, "holdout-unknown")
    learn(api, pipeline, "promote")
    with unchanged(api):
        api.refuses(post(api, f"{path}/7/retire", WHY), 404, "holdout-unknown")
        api.refuses(post(api, f"{path}/0/restore", WHY), 409, "holdout-conflict")
        api.refuses(post(api, f"{path}/0/unkeep", WHY), 409, "holdout-conflict")
        api.refuses(post(api, f"{path}/0/burn", WHY), 422, "request-invalid")
        api.refuses(post(api, f"{path}/-1/pin", WHY), 422, "request-invalid")
        api.refuses(post(api, f"{path}/{10**30}/pin", WHY), 422, "request-invalid")
        api.refuses(post(api, f"{path}/0/pin", {"reason": " "}), 422, "request-invalid")


def test_a_freeze_is_shown_and_lifted_with_a_reason(api: Api, pipeline: str) -> None:
    path = f"/pipelines/{pipeline}/unfreeze"
    with unchanged(api):
        api.refuses(post(api, path, WHY), 409, "freeze-conflict")
    learn(api, pipeline, "promote")
    learn(api, pipeline, "promote")
    frozen(api, pipeline)
    freeze = get(api, f"/pipelines/{pipeline}/holdouts")["freeze"]
    assert freeze == {"update": "u-audit", "last_audited": 1}
    with unchanged(api):
        api.refuses(post(api, path, {"reason": ""}), 422, "request-invalid")
    entry = post(api, path, {"reason": "the sensor is gone", "by": "Ada"}).json()
    assert (entry["action"], entry["update"], entry["version"]) == ("unfreeze", "u-audit", 1)
    assert get(api, f"/pipelines/{pipeline}/holdouts")["freeze"] is None


def test_going_back_behind_the_audit_lifts_the_freeze(api: Api, pipeline: str) -> None:
    learn(api, pipeline, "promote")
    learn(api, pipeline, "promote")
    frozen(api, pipeline)
    post(api, f"/pipelines/{pipeline}/rollback", {"version": 1, **WHY})
    assert get(api, f"/pipelines/{pipeline}/holdouts")["freeze"] is None


def test_the_commands_say_the_same(api: Api, pipeline: str) -> None:
    def run(*arguments: str) -> Any:
        return holdfast(*arguments, env={"HOLDFAST_URL": api.url, "USER": "ada"})

    assert run("holdout", "list", pipeline).stdout == "No past holdout yet: nothing was promoted.\n"
    learn(api, pipeline, "promote")
    learn(api, pipeline, "promote")
    frozen(api, pipeline)
    shown = run("holdout", "list", pipeline).stdout.splitlines()
    assert shown[0].startswith("experience 0: ")
    assert "anchor v1" in shown[0]
    assert shown[-1] == (
        "Promotion is frozen: the audit of update u-audit did not pass; the last that passed is v1."
    )
    assert len(json.loads(run("holdout", "list", pipeline, "--json").stdout)["holdouts"]) == 2
    for command, said in (
        ("pin", "The holdout of experience 0 is pinned.\n"),
        ("unpin", "The holdout of experience 0 is no longer pinned.\n"),
        ("keep", "The holdout of experience 0 is kept: its rejections stand, until it moves again.\n"),
        ("unkeep", "The holdout of experience 0 is no longer kept.\n"),
        ("keep", "The holdout of experience 0 is kept: its rejections stand, until it moves again.\n"),
        ("retire", "The holdout of experience 0 is retired.\n"),
    ):
        assert run("holdout", command, pipeline, "0", "-m", "why").stdout == said
    assert ", retired, kept" in run("holdout", "list", pipeline).stdout
    assert run("holdout", "margin", pipeline, "0", "0.03", "-m", "why").stdout == (
        "The margin of the holdout of experience 0 is 3 points from now on.\n"
    )
    assert "margin 3 points" in run("holdout", "list", pipeline).stdout
    assert run("holdout", "margin", pipeline, "0", "default", "-m", "why").stdout == (
        "The margin of the holdout of experience 0 is the pipeline's from now on.\n"
    )
    assert run("holdout", "traffic", pipeline, "0", "0.015", "-m", "why").stdout == (
        "The holdout of experience 0 stands for 1.5 % of the traffic from now on.\n"
    )
    assert ", 1.5 % of the traffic" in run("holdout", "list", pipeline).stdout
    assert run("holdout", "traffic", pipeline, "0", "unknown", "-m", "why").stdout == (
        "The holdout of experience 0 stands for an unknown share of the traffic from now on.\n"
    )
    assert run("holdout", "traffic", pipeline, "0", "1.5", "-m", "why").returncode == 2
    for wrong in ("much", "2", "nan"):
        refused = run("holdout", "margin", pipeline, "0", wrong, "-m", "why")
        assert refused.returncode, wrong
        assert refused.stderr, wrong
    refused = run("holdout", "retire", pipeline, "0", "-m", "again")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "it is so already" in refused.stderr
    assert run("holdout", "restore", pipeline, "0", "-m", "why").stdout == (
        "The holdout of experience 0 is evidence again.\n"
    )
    assert run("unfreeze", pipeline, "-m", "why").stdout == f"Promotion of {pipeline} is free again.\n"


def test_a_verdict_is_explained_in_words(api: Api, pipeline: str) -> None:
    update = learn(api, pipeline, "review")
    done = holdfast("update", "explain", update, env={"HOLDFAST_URL": api.url})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{update}: review\n")
    whole = get(api, f"/updates/{update}/decision")["verdict"]
    for finding in whole["findings"]:
        assert finding["sentence"].split()[0] in done.stdout
    asked = holdfast("update", "explain", update, "--json", env={"HOLDFAST_URL": api.url})
    assert json.loads(asked.stdout) == whole
    unknown = holdfast("update", "explain", "u-nobody", env={"HOLDFAST_URL": api.url})
    assert (unknown.returncode, unknown.stdout) == (1, "")
