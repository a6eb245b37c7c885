"""Updates, decisions, champions and the ledger over HTTP, on rows that the service's own functions wrote."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Literal

import httpx
import pytest
import sqlalchemy as sa

from service.state.database import ledger, updates
from tests.support.api_parts import Api, declare, ingest, learn, push, running_api, unchanged

NAMES = count()
WHY = {"reason": "because"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def pipeline(api: Api) -> Iterator[str]:
    yield declare(api, f"p{next(NAMES)}")
    # What a test leaves behind must not be claimed by the next one.
    with api.engine.begin() as connection:
        connection.execute(sa.update(updates).values(state="done"))


def post(api: Api, path: str, body: Any = None, **headers: str) -> httpx.Response:
    return api.http.post(f"/v1{path}", json=body, headers=headers)


def get(api: Api, path: str) -> Any:
    answer = api.http.get(f"/v1{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_update_is_accepted_and_can_be_followed(api: Api, pipeline: str) -> None:
    push(api, pipeline)
    answer = post(api, f"/pipelines/{pipeline}/updates", {"by": "Ada"})
    assert answer.status_code == 202
    accepted = answer.json()
    assert answer.headers["location"] == accepted["href"] == f"/v1/updates/{accepted['update']}"
    view = get(api, f"/updates/{accepted['update']}")
    assert (view["state"], view["requested_by"], view["outcome"]) == ("queued", "Ada", None)
    assert [each["id"] for each in get(api, f"/pipelines/{pipeline}/updates")] == [accepted["update"]]


def test_an_update_needs_no_body(api: Api, pipeline: str) -> None:
    push(api, pipeline)
    assert post(api, f"/pipelines/{pipeline}/updates").status_code == 202
    assert api.http.post(f"/v1/pipelines/{pipeline}/updates").status_code == 202


def test_a_second_update_with_the_same_key_names_the_first(api: Api, pipeline: str) -> None:
    push(api, pipeline)
    path, key = f"/pipelines/{pipeline}/updates", {"Idempotency-Key": "nightly-7"}
    first = post(api, path, {}, **key).json()["update"]
    with unchanged(api):
        document = api.refuses(post(api, path, {}, **key), 409, "update-duplicate")
    assert document["update"] == first
    assert first in document["detail"]
    assert f"GET /v1/updates/{first}" in document["fix"]
    other = declare(api, f"{pipeline}-other")
    push(api, other)
    assert post(api, f"/pipelines/{other}/updates", {}, **key).status_code == 202


def test_of_many_callers_with_one_key_one_starts_an_update(api: Api, pipeline: str) -> None:
    push(api, pipeline)
    url = f"{api.url}/v1/pipelines/{pipeline}/updates"

    def start(_: int) -> int:
        return httpx.post(url, json={}, headers={"Idempotency-Key": "once"}, timeout=30).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(start, range(8))) == [202] + [409] * 7


def test_nothing_to_learn_starts_nothing(api: Api, pipeline: str) -> None:
    with unchanged(api):
        document = api.refuses(post(api, f"/pipelines/{pipeline}/updates", {}), 409, "nothing-to-learn")
    assert "Send records" in document["fix"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"experiences": []}, "experiences"),
        ({"experiences": [-1]}, "experiences.0"),
        ({"experiences": [1.5]}, "experiences.0"),
        ({"experiences": [10**30]}, "experiences.0"),
        ({"experiences": "all"}, "experiences"),
        ({"by": ""}, "by"),
        ({"by": "a\0b"}, "by"),
        ({"by": "x" * 201}, "by"),
        ({"force": True}, "force"),
        ([], "the body"),
    ],
)
def test_an_update_that_is_asked_for_wrongly_says_where(
    api: Api, pipeline: str, body: Any, where: str
) -> None:
    push(api, pipeline)
    with unchanged(api):
        document = api.refuses(post(api, f"/pipelines/{pipeline}/updates", body), 422, "request-invalid")
    assert document["errors"][0]["where"] == where


def test_an_experience_that_cannot_be_learnt_again_is_named(api: Api, pipeline: str) -> None:
    learn(api, pipeline, "promote")
    for experience, words in ((7, "does not exist"), (0, "'learnt'")):
        with unchanged(api):
            answer = post(api, f"/pipelines/{pipeline}/updates", {"experiences": [experience]})
            document = api.refuses(answer, 409, "nothing-to-learn")
        assert words in document["detail"]


@pytest.mark.parametrize("rest", ["", "/decision"])
@pytest.mark.parametrize("name", ["u-0000000000000000", "x" * 500, "é", "..%2F"])
def test_an_unknown_update_is_a_problem(api: Api, name: str, rest: str) -> None:
    slug = "http-404" if name == "..%2F" else "update-unknown"
    api.refuses(api.http.get(f"/v1/updates/{name}{rest}"), 404, slug)


def test_a_review_is_approved_once_with_a_reason(api: Api, pipeline: str) -> None:
    update = learn(api, pipeline, "review")
    path = f"/updates/{update}/decision"
    before = get(api, path)
    assert before["awaits_decision"] is True
    assert before["verdict"]["outcome"] == "review"
    answer = post(api, path, {"decision": "approve", "reason": "  looks right ", "by": "Ada"})
    assert answer.status_code == 200
    decided = answer.json()
    assert decided["awaits_decision"] is False
    assert decided["decision"]["choice"] == "approve"
    assert (decided["decision"]["by"], decided["decision"]["reason"]) == ("Ada", "looks right")
    assert get(api, f"/pipelines/{pipeline}/champion")["update"] == update
    for choice in ("approve", "reject"):
        with unchanged(api):
            again = post(api, path, {"decision": choice, **WHY})
            document = api.refuses(again, 409, "decision-conflict")
        assert "approve by Ada" in document["detail"] or "approved by Ada" in document["detail"]


def test_a_review_is_rejected_and_its_experience_is_parked(api: Api, pipeline: str) -> None:
    update = learn(api, pipeline, "review")
    post(api, f"/updates/{update}/decision", {"decision": "reject", "reason": "too risky", "by": "Ada"})
    (experience,) = get(api, f"/pipelines/{pipeline}/experiences")
    assert (experience["state"], experience["note"]) == ("parked", "rejected by Ada: too risky")
    api.refuses(api.http.get(f"/v1/pipelines/{pipeline}/champion"), 404, "champion-missing")
    # It can be learnt after all, when somebody asks for it.
    assert post(api, f"/pipelines/{pipeline}/updates", {"experiences": [0]}).status_code == 202


def test_of_two_people_who_decide_at_once_one_is_told(api: Api, pipeline: str) -> None:
    update = learn(api, pipeline, "review")
    url = f"{api.url}/v1/updates/{update}/decision"

    def decide(choice: str) -> int:
        return httpx.post(url, json={"decision": choice, **WHY}, timeout=30).status_code

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(decide, ["approve", "reject"] * 3)) == [200] + [409] * 5
    assert len(get(api, f"/pipelines/{pipeline}/ledger")["entries"]) == 2


@pytest.mark.parametrize("choice", ["approve", "reject"])
def test_an_update_that_the_gate_decided_or_that_still_waits_takes_no_decision(
    api: Api, pipeline: str, choice: str
) -> None:
    promoted = learn(api, pipeline, "promote")
    push(api, pipeline)
    waiting = post(api, f"/pipelines/{pipeline}/updates", {}).json()["update"]
    for update, words in ((promoted, "by the gate: promote"), (waiting, "is queued")):
        with unchanged(api):
            answer = post(api, f"/updates/{update}/decision", {"decision": choice, **WHY})
            document = api.refuses(answer, 409, "decision-conflict")
        assert words in document["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"decision": "approve"},
        {"decision": "approve", "reason": ""},
        {"decision": "approve", "reason": " \n\t "},
        {"decision": "approve", "reason": None},
        {"decision": "approve", "reason": "x" * 2001},
        {"decision": "approve", "reason": "a\0b"},
        {"decision": "maybe", **WHY},
        {"decision": "approve", "reason": "why", "by": " "},
        {"decision": "approve", "reason": "why", "force": 1},
    ],
)
def test_a_decision_without_a_good_reason_decides_nothing(
    api: Api, pipeline: str, body: dict[str, Any]
) -> None:
    update = learn(api, pipeline, "review")
    with unchanged(api):
        api.refuses(post(api, f"/updates/{update}/decision", body), 422, "request-invalid")


def test_a_decision_on_an_unknown_update_is_a_problem(api: Api) -> None:
    with unchanged(api):
        answer = post(api, "/updates/u-nobody/decision", {"decision": "approve", **WHY})
        api.refuses(answer, 404, "update-unknown")


def test_a_waiting_update_is_cancelled_once_with_a_reason(api: Api, pipeline: str) -> None:
    push(api, pipeline)
    update = post(api, f"/pipelines/{pipeline}/updates", {}).json()["update"]
    ingest(api, pipeline)
    answer = post(api, f"/updates/{update}/cancel", {"reason": "  wrong day ", "by": "Ada"})
    assert answer.status_code == 200, answer.text
    view = answer.json()
    assert (view["state"], view["error"], view["outcome"]) == ("failed", "Cancelled by Ada: wrong day", None)
    assert (view["decision"]["choice"], view["decision"]["by"]) == ("cancel", "Ada")
    assert get(api, f"/updates/{update}") == view
    (experience,) = get(api, f"/pipelines/{pipeline}/experiences")
    assert experience["state"] == "parked"
    assert experience["note"] == f"Update {update} was cancelled by Ada: wrong day"
    assert get(api, f"/pipelines/{pipeline}/ledger")["entries"] == []
    with unchanged(api):
        again = post(api, f"/updates/{update}/cancel", {"reason": "me too", "by": "Bob"})
        document = api.refuses(again, 409, "cancel-conflict")
    assert "cancelled already, by Ada at 20" in document["detail"]
    # It can be learnt after all, when somebody asks for it.
    assert post(api, f"/pipelines/{pipeline}/updates", {"experiences": [0]}).status_code == 202


@pytest.mark.parametrize(
    ("outcome", "message", "instead"),
    [
        ("review", "awaits a decision", "/decision"),
        ("promote", "has ended already: promote", "rollback"),
        ("reject", "has ended already: reject", "rollback"),
    ],
)
def test_an_update_that_has_learnt_is_not_cancelled(
    api: Api, pipeline: str, outcome: Literal["review", "promote", "reject"], message: str, instead: str
) -> None:
    update = learn(api, pipeline, outcome)
    with unchanged(api):
        document = api.refuses(post(api, f"/updates/{update}/cancel", WHY), 409, "cancel-conflict")
    assert message in document["detail"]
    assert instead in document["fix"]


def test_a_cancel_of_an_unknown_update_is_a_problem(api: Api) -> None:
    with unchanged(api):
        api.refuses(post(api, "/updates/u-nobody/cancel", WHY), 404, "update-unknown")


@pytest.mark.parametrize(
    "body", [{}, {"reason": " "}, {"reason": "x" * 2001}, {**WHY, "by": ""}, {**WHY, "x": 1}]
)
def test_a_cancel_without_a_good_reason_cancels_nothing(
    api: Api, pipeline: str, body: dict[str, Any]
) -> None:
    push(api, pipeline)
    update = post(api, f"/pipelines/{pipeline}/updates", {}).json()["update"]
    with unchanged(api):
        api.refuses(post(api, f"/updates/{update}/cancel", body), 422, "request-invalid")


def test_a_rollback_brings_the_former_champion_back(api: Api, pipeline: str) -> None:
    for _ in range(3):
        learn(api, pipeline, "promote")
    path = f"/pipelines/{pipeline}/rollback"
    view = post(api, path, {"reason": "it answers strangely", "by": "Ada"}).json()
    assert (view["version"], view["revision"], view["learnt"]) == (2, 4, [0, 1])
    assert view["model_uri"] == f"models:/{pipeline}/2"
    assert post(api, path, {"version": 3, **WHY}).json()["version"] == 3
    states = [each["state"] for each in get(api, f"/pipelines/{pipeline}/experiences")]
    assert states == ["learnt"] * 3


@pytest.mark.parametrize("version", [2, 99, 2**31 - 1])
def test_a_rollback_to_what_was_never_champion_changes_nothing(api: Api, pipeline: str, version: int) -> None:
    learn(api, pipeline, "promote")
    learn(api, pipeline, "reject")
    with unchanged(api):
        answer = post(api, f"/pipelines/{pipeline}/rollback", {"version": version, **WHY})
        document = api.refuses(answer, 409, "version-unfit")
    assert f"Version {version}" in document["detail"]


def test_a_rollback_to_the_champion_or_beyond_the_first_changes_nothing(api: Api, pipeline: str) -> None:
    path = f"/pipelines/{pipeline}/rollback"
    with unchanged(api):
        api.refuses(post(api, path, WHY), 404, "champion-missing")
        api.refuses(post(api, path, {"version": 1, **WHY}), 404, "champion-missing")
    learn(api, pipeline, "promote")
    with unchanged(api):
        api.refuses(post(api, path, WHY), 409, "version-unfit")
        api.refuses(post(api, path, {"version": 1, **WHY}), 409, "version-unfit")


@pytest.mark.parametrize(
    "body",
    [{}, {"reason": " "}, {"version": 0, **WHY}, {"version": 10**30, **WHY}, {"version": "1.5", **WHY}],
)
def test_a_rollback_that_is_asked_for_wrongly_changes_nothing(
    api: Api, pipeline: str, body: dict[str, Any]
) -> None:
    learn(api, pipeline, "promote")
    with unchanged(api):
        api.refuses(post(api, f"/pipelines/{pipeline}/rollback", body), 422, "request-invalid")


def test_an_update_says_which_other_one_it_waits_for(api: Api, pipeline: str) -> None:
    review = learn(api, pipeline, "review")
    push(api, pipeline)
    waiting = post(api, f"/pipelines/{pipeline}/updates", {}).json()["update"]
    assert get(api, f"/updates/{waiting}")["waits_for"] == review


def test_the_ledger_is_read_in_pages_each_of_which_is_checked(api: Api, pipeline: str) -> None:
    for _ in range(3):
        learn(api, pipeline, "promote")
    path = f"/pipelines/{pipeline}/ledger"
    whole = get(api, path)
    assert (len(whole["entries"]), whole["next_after"], whole["intact"]) == (3, None, True)
    first = get(api, f"{path}?limit=2")
    assert (len(first["entries"]), first["next_after"]) == (2, 2)
    rest = get(api, f"{path}?limit=2&after={first['next_after']}")
    assert first["entries"] + rest["entries"] == whole["entries"]
    assert rest["next_after"] is None
    with api.engine.begin() as connection:
        mine = sa.and_(ledger.c.pipeline == pipeline, ledger.c.sequence == 1)
        connection.execute(sa.update(ledger).where(mine).values(reason="forged"))
    for query, intact in (("", False), ("?limit=1", False), ("?after=1", False), ("?after=2", True)):
        assert get(api, f"{path}{query}")["intact"] is intact, query


def test_a_ledger_whose_end_was_cut_off_is_not_intact(api: Api, pipeline: str) -> None:
    path = f"/pipelines/{pipeline}/ledger"
    assert get(api, path)["intact"] is True, "no entries, and no champion"
    for _ in range(3):
        learn(api, pipeline, "promote")
    for last in (3, 2, 1):
        assert get(api, path)["intact"] is (last == 3)
        with api.engine.begin() as connection:
            mine = (ledger.c.pipeline == pipeline, ledger.c.sequence == last)
            connection.execute(sa.delete(ledger).where(*mine))
    view = get(api, path)
    assert (view["entries"], view["intact"]) == ([], False)


def test_experiences_are_read_in_pages(api: Api, pipeline: str) -> None:
    for _ in range(3):
        learn(api, pipeline, "promote")
    views = get(api, f"/pipelines/{pipeline}/experiences?first=1&limit=1")
    assert [(view["index"], view["state"]) for view in views] == [(1, "learnt")]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after=-1", f"after={10**30}"])
def test_a_page_that_is_none_is_a_problem(api: Api, pipeline: str, query: str) -> None:
    answer = api.http.get(f"/v1/pipelines/{pipeline}/ledger?{query}")
    document = api.refuses(answer, 422, "request-invalid")
    assert f"query {query.split('=')[0]}" in document["detail"]


def test_what_is_cut_is_counted(api: Api, pipeline: str) -> None:
    push(api, pipeline, 5)
    assert get(api, f"/pipelines/{pipeline}")["pending_records"] == 5
    post(api, f"/pipelines/{pipeline}/updates", {})
    ingest(api, pipeline)
    view = get(api, f"/pipelines/{pipeline}")
    assert (view["pending_records"], view["experiences"], view["live_updates"]) == (0, 1, 1)
