"""How many updates were promoted, asked about and rejected: over HTTP and by command, on both databases."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.registry import Registry
from service.state import claims, jobs, outcomes, pipelines
from service.state.database import updates
from service.state.outcomes import Outcomes
from service.updates.update import Updater
from tests.service.api.test_updates import WHY, get, post
from tests.support import service_parts
from tests.support.api_parts import Api, declare, learn, request, running_api
from tests.support.commands import holdfast
from tests.support.homes import silent


@pytest.fixture
def api(tmp_path: Path, empty_database_url: str) -> Iterator[Api]:
    with running_api(tmp_path / "home", HOLDFAST_DATABASE_URL=empty_database_url) as running:
        yield running


def claimed(api: Api) -> jobs.Update:
    update = claims.claim(api.engine, "test", lease_seconds=60, max_attempts=3)
    assert update is not None
    return update


NOTHING = {
    "updates": 0,
    "promoted": {"count": 0, "per_100": None, "low": 0.0, "high": 100.0},
    "asked": {"count": 0, "per_100": None, "low": 0.0, "high": 100.0},
    "rejected": {"count": 0, "per_100": None, "low": 0.0, "high": 100.0},
    "asked_by": {},
    "rejected_by": {},
    "left_out": {"nothing_to_learn": 0, "failed": 0, "cancelled": 0},
}


def counts(view: Any) -> dict[str, int]:
    return {name: rate["count"] for name, rate in view.items()}


def test_every_outcome_is_counted_by_the_guard_that_decided(api: Api) -> None:
    name, other = declare(api, "sensors"), declare(api, "other")
    assert [view["outcomes"] for view in get(api, "/pipelines")] == [NOTHING, NOTHING]
    shown = holdfast("pipeline", "status", other, env={"HOLDFAST_URL": api.url})
    assert shown.stdout == "other: no champion, 0 experiences\nno update was judged yet\n"
    learn(api, name, "promote")
    _without_verdicts(api, name)
    for guard, decision in (
        ("retention", "approve"),
        ("retention", "reject"),
        ("budget", "approve"),
        ("first_update", "reject"),
    ):
        asked = learn(api, name, "review", guard=guard)
        assert post(api, f"/updates/{asked}/decision", {"decision": decision, **WHY}).status_code == 200
    learn(api, name, "reject", guard="labels")
    learn(api, other, "promote")
    waits = learn(api, name, "review", guard="rare_class")
    view = get(api, f"/pipelines/{name}")["outcomes"]
    assert view["updates"] == 7
    assert view["promoted"] == {"count": 1, "per_100": 14.29, "low": 0.36, "high": 57.87}
    assert (view["asked"]["count"], view["rejected"]["count"]) == (5, 1)
    assert list(view["asked_by"]) == ["retention", "budget", "first_update", "rare_class"]
    assert counts(view["asked_by"]) == {"retention": 2, "budget": 1, "first_update": 1, "rare_class": 1}
    assert counts(view["rejected_by"]) == {"labels": 1}
    assert view["left_out"] == {"nothing_to_learn": 1, "failed": 1, "cancelled": 1}
    both = {each["spec"]["name"]: each["outcomes"] for each in get(api, "/pipelines")}
    assert both[name] == view
    assert (both[other]["updates"], both[other]["promoted"]["count"]) == (1, 1)

    # What the gate said counts, not what a person answers.
    assert post(api, f"/updates/{waits}/decision", {"decision": "approve", **WHY}).status_code == 200
    assert get(api, f"/pipelines/{name}")["outcomes"] == view
    _shown_by_command(api, name, view)


def _shown_by_command(api: Api, name: str, view: Any) -> None:
    shown = holdfast("pipeline", "status", name, env={"HOLDFAST_URL": api.url})
    assert (shown.returncode, shown.stderr) == (0, "")
    first, *lines = shown.stdout.splitlines()
    assert first.startswith("sensors: champion v")
    assert lines == [
        "last 7 updates: 1 promoted, 5 asked about (retention 2, budget 1, first version 1, rare class 1), "
        "1 rejected (labels 1)",
        "of 100 updates: 14 (0 to 58) promoted, 71 (29 to 96) asked about, 14 (0 to 58) rejected",
        "not counted: 1 without anything to learn, 1 failed, 1 cancelled",
    ]
    shown = holdfast("pipeline", "status", name, "--json", env={"HOLDFAST_URL": api.url})
    assert json.loads(shown.stdout)["outcomes"] == view
    done = holdfast("pipeline", "status", "nowhere", env={"HOLDFAST_URL": api.url})
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no pipeline 'nowhere'." in done.stderr


def _without_verdicts(api: Api, name: str) -> None:
    """Three updates that end without a verdict, each in its own way."""
    # Nothing is asked of MLflow where nothing is learnt.
    settings = api.settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:1"})
    updater = Updater(api.engine, settings, train=lambda *_: None, registry=Registry(settings))
    with api.engine.begin() as connection:
        jobs.enqueue(connection, name, requested_by="test")
    assert updater.run(claimed(api), silent) is None
    with api.engine.begin() as connection:
        jobs.enqueue(connection, name, requested_by="test")
    updater.fail(claimed(api), ValueError("The learner diverged."))
    cancelled = request(api, name)
    assert post(api, f"/updates/{cancelled}/cancel", WHY).status_code == 200


def ended(number: float, *, pipeline: str = service_parts.NAME, **values: Any) -> dict[str, Any]:
    """The row of an update that ended, the later the higher its number."""
    row = {"state": "done", "outcome": None, "cause": None, "decision": sa.null(), "finished_at": number}
    fixed = {"requested_by": "test", "wants_cut": False, "attempt": 1, "failures": 0, "not_before": 0.0}
    own = {"id": f"u-{pipeline}-{number}", "pipeline": pipeline, "created_at": -float(number)}
    return {**row, **fixed, **own, "experiences": [], **values}


def test_the_latest_hundred_are_counted_and_what_ended_between_them(database: sa.Engine) -> None:
    for name in ("p", "q"):
        service_parts.declare(database, name=name)
    rows = [ended(number, outcome="reject", cause="values") for number in range(50)]
    rows += [ended(50), ended(51, state="failed")]
    rows += [ended(number, outcome="promote") for number in range(60, 155)]
    rows += [ended(number, outcome="review", cause="learning", state="review") for number in range(155, 160)]
    rows += [ended(70.5), ended(80.5, state="failed", decision={"choice": "cancel"})]
    rows += [ended(number, pipeline="q", outcome="review", cause=None) for number in range(3)]
    with database.begin() as connection:
        for row in rows:
            connection.execute(sa.insert(updates).values(row))
        found = outcomes.latest(connection, ["p", "q"])
        assert found["p"] == Outcomes(95, asked={"learning": 5}, nothing_to_learn=1, cancelled=1)
        assert found["p"].judged == 100
        assert found["q"] == Outcomes(asked={"unknown": 3})
        assert outcomes.latest(connection, ["p"], last=2) == {"p": Outcomes(asked={"learning": 2})}
        everything = outcomes.latest(connection, ["p"], last=1000)["p"]
        assert (everything.judged, everything.nothing_to_learn, everything.failed) == (150, 2, 1)
        assert outcomes.latest(connection, []) == {}
        assert outcomes.latest(connection, ["nobody"]) == {"nobody": Outcomes()}


def test_all_pipelines_are_counted_by_one_query(database: sa.Engine) -> None:
    asked: list[str] = []
    for name in ("p", "q", "r"):
        service_parts.declare(database, name=name)
    with database.begin() as connection:
        names = pipelines.names(connection)
        sa.event.listen(database, "before_cursor_execute", lambda *call: asked.append(call[2]))
        outcomes.latest(connection, names)
    assert len(asked) == 1, asked
