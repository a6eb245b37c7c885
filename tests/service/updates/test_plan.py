"""What one attempt fixes holds for the next one, whatever people and other updates change in between."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from service.errors import InputsUnfitError, LostLeaseError
from service.state import freezes, holdouts
from service.state.database import backlog, pipelines, update_inputs, versions
from service.state.inputs import digest_of
from service.state.ledger import By
from service.training.repeats import repeat_folder
from service.training.tasks import RESULT_FILE, read_result
from service.updates import decisions
from service.updates.plan import Plan, make_plan
from streams.state.tables import CLASSES
from tests.support import postgres
from tests.support.homes import EXPIRED, NAME, Home, declared, digits, home, silent

LOOSE: dict[str, Any] = {
    "split": {"gate": 0.25, "audit": 0.25},
    "strategy": {"name": "replay", "capacity": 100, "epochs": 6},
    "gate": {"margin": 0.3, "learning_margin": 0.3, "budget": 0.4, "calibration": 0.5},
}


@pytest.fixture
def make(tmp_path: Path, mlflow_store: Path) -> Iterator[Callable[..., Home]]:
    """Homes that are closed when the test ends."""
    with ExitStack() as stack:
        folders = iter(tmp_path / f"home-{number}" for number in range(10))
        yield lambda **changes: stack.enter_context(home(next(folders), mlflow_store, **{**LOOSE, **changes}))


class DiedError(Exception):
    pass


def die(*_arguments: object, **_named: object) -> Any:
    raise DiedError


def attempt_that_dies(each: Home) -> None:
    """The trainer is done, and the worker dies before the gate."""
    stale = each.claim(lease_seconds=EXPIRED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.updates.update.decide", die)
        with pytest.raises(DiedError):
            each.updater.run(stale, silent)


def change_everything(each: Home) -> None:
    """All that a plan is made from and that may change while an update waits for its next attempt."""
    decisions.mark_holdout(each.engine, NAME, 0, marking="retire", by=By("Ada", "old"))
    decisions.mark_holdout(each.engine, NAME, 1, marking="pin", by=By("Ada", "expensive"))
    decisions.set_holdout_margin(each.engine, NAME, 1, margin=0.01, by=By("Ada", "expensive"))
    decisions.set_holdout_traffic(each.engine, NAME, 1, traffic=0.01, by=By("Ada", "rare"))
    decisions.mark_holdout(each.engine, NAME, 1, marking="keep", by=By("Ada", "still true"))
    with each.engine.begin() as connection:
        for part in ("gate", "audit"):
            holdouts.note_looks(
                connection, NAME, update_id="u-other", experiences=[0, 1, 2], part=part, passed=True
            )
        freezes.begin(connection, NAME, last_audited=1, champion=2, by=By("gate", "lost", "u-other"))
        names = [*each.spec.record_schema.classes, "one more"]
        rows = [{"pipeline": NAME, "class_id": place, "name": name} for place, name in enumerate(names)]
        connection.execute(sa.insert(CLASSES), rows)
        document = declared(gate={"margin": 0.01, "max_holdouts": 1}).model_dump(mode="json", by_alias=True)
        connection.execute(sa.update(pipelines).values(spec=document))


def assert_same_plan(one: Plan, other: Plan) -> None:
    for field in fields(Plan):
        before, after = getattr(one, field.name), getattr(other, field.name)
        if field.name == "update":
            assert list(before.experiences) == list(after.experiences)
            assert (before.base_version, before.base_revision) == (after.base_version, after.base_revision)
        elif field.name in ("past", "anchors", "gate_anchors"):
            assert {index: bits.tolist() for index, bits in before.items()} == {
                index: bits.tolist() for index, bits in after.items()
            }
        elif field.name == "past_details":
            assert before.keys() == after.keys()
            for index, details in before.items():
                np.testing.assert_array_equal(details.brier, after[index].brier)
        elif field.name in ("looks", "audits", "margins", "traffic"):
            seen = {*one.judged, *one.experiences}
            assert {key: value for key, value in before.items() if key in seen} == after
        else:
            assert before == after, field.name


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_plan_of_a_later_attempt_is_that_of_the_first(
    make: Callable[..., Home], kind: str, request: pytest.FixtureRequest
) -> None:
    url = None
    if kind == "postgresql":
        server: postgres.Server = request.getfixturevalue("postgres_server")
        url = server.migrated_database()
    each = make(database_url=url)
    for batch in range(2):
        assert each.learn(digits(batch)).outcome in ("promote", "review")
        approve(each)
    each.arrive(digits(2))
    stale = each.claim(lease_seconds=EXPIRED)
    first = make_plan(each.engine, stale)
    assert set(first.judged) == {0, 1}
    assert set(first.past) == set(first.past_details) == set(first.anchors) == set(first.references) == {0, 1}
    change_everything(each)
    assert_same_plan(first, make_plan(each.engine, each.claim()))
    # A worker that fell silent gets the same, and may write nothing.
    assert_same_plan(first, make_plan(each.engine, stale))


def approve(each: Home) -> None:
    newest = each.updates()[-1]
    if newest.state == "review":
        decisions.decide_review(each.engine, newest.id, choice="approve", by=By("Ada", "fine"))


def test_a_second_attempt_judges_the_holdouts_that_the_first_was_made_for(make: Callable[..., Home]) -> None:
    each = make()
    for batch in range(2):
        each.learn(digits(batch))
        approve(each)
    decisions.mark_holdout(each.engine, NAME, 0, marking="retire", by=By("Ada", "old"))
    each.arrive(digits(2))
    attempt_that_dies(each)
    decisions.mark_holdout(each.engine, NAME, 0, marking="restore", by=By("Ada", "it is not"))
    decisions.mark_holdout(each.engine, NAME, 1, marking="retire", by=By("Ada", "but this one"))
    verdict = each.run()
    assert len(each.trained) == 3, "the first attempt's work is taken"
    retained = [finding.experience for finding in verdict.findings if finding.guard == "retention"]
    assert retained == [1]
    assert "missing" not in str(verdict)
    assert "cannot be paired" not in str(verdict)


def test_a_result_of_a_release_that_stored_no_inputs_is_made_again(make: Callable[..., Home]) -> None:
    each = make()
    each.arrive(digits(0))
    attempt_that_dies(each)
    (update,) = each.updates()
    file = each.updater.folder(update.id) / RESULT_FILE
    document = json.loads(file.read_text())
    del document["origin"]
    file.write_text(json.dumps(document))
    with each.engine.begin() as connection:
        connection.execute(sa.delete(update_inputs))
    assert each.run().outcome == "promote"
    assert each.trained == [update.id, update.id]
    made = read_result(file.parent)
    assert made is not None
    assert made.origin is not None


def test_repeats_of_a_release_that_stored_no_inputs_are_made_again(make: Callable[..., Home]) -> None:
    each = make(gate={**LOOSE["gate"], "seeds": 2})
    each.arrive(digits(0))
    attempt_that_dies(each)
    (update,) = each.updates()
    folder = each.updater.folder(update.id)
    shutil.rmtree(folder)
    file = repeat_folder(folder, 1) / RESULT_FILE
    document = json.loads(file.read_text())
    assert document.pop("inputs")
    file.write_text(json.dumps(document))
    each.run()
    assert len(each.trained) == 4, "both seeds learnt twice"
    assert not file.exists(), "repeats are removed with the decision"


def test_inputs_that_were_changed_stop_the_update_instead_of_judging_it_otherwise(
    make: Callable[..., Home],
) -> None:
    each = make()
    each.arrive(digits(0))
    make_plan(each.engine, each.claim(lease_seconds=EXPIRED))
    with each.engine.begin() as connection:
        changed = sa.func.replace(update_inputs.c.document, '"margin":0.3', '"margin":0.9')
        connection.execute(sa.update(update_inputs).values(document=changed))
    with pytest.raises(InputsUnfitError, match="stored configuration"):
        make_plan(each.engine, each.claim())


@pytest.mark.parametrize("name", ["configuration", "plan"])
def test_a_document_of_another_form_is_refused(make: Callable[..., Home], name: str) -> None:
    each = make()
    each.arrive(digits(0))
    make_plan(each.engine, each.claim(lease_seconds=EXPIRED))
    own = update_inputs.c.name == name
    with each.engine.begin() as connection:
        text = connection.execute(sa.select(update_inputs.c.document).where(own)).scalar_one()
        text = text.replace('"form":1', '"form":2')
        values = {"document": text, "digest": digest_of(text)}
        connection.execute(sa.update(update_inputs).where(own).values(values))
    with pytest.raises(InputsUnfitError, match="form 2, and this release reads form 1"):
        make_plan(each.engine, each.claim())


def planned_from_version_1(make: Callable[..., Home]) -> Home:
    """A home whose second update was planned; its worker's lease has expired."""
    each = make()
    each.learn(digits(0))
    approve(each)
    each.arrive(digits(1))
    make_plan(each.engine, each.claim(lease_seconds=EXPIRED))
    return each


@pytest.mark.parametrize("change", ["removed", "another update"])
def test_a_champion_that_is_not_the_one_of_the_plan_stops_the_update(
    make: Callable[..., Home], change: str
) -> None:
    each = planned_from_version_1(make)
    with each.engine.begin() as connection:
        if change == "removed":
            connection.execute(sa.delete(versions))
        else:
            connection.execute(sa.update(versions).values(update_id="u-other"))
    with pytest.raises(InputsUnfitError, match=r"starts from version 1 .* that version is"):
        make_plan(each.engine, each.claim())


def test_screens_that_were_changed_stop_the_update(make: Callable[..., Home]) -> None:
    each = planned_from_version_1(make)
    with each.engine.begin() as connection:
        screen = connection.execute(sa.select(backlog.c.screen).where(backlog.c.experience == 0)).scalar_one()
        assert screen["label_errors"]
        changed = {**screen, "label_errors": [0.9 for _ in screen["label_errors"]]}
        connection.execute(sa.update(backlog).where(backlog.c.experience == 0).values(screen=changed))
    with pytest.raises(InputsUnfitError, match=r"screens .* changed"):
        make_plan(each.engine, each.claim())


def test_a_worker_without_the_lease_stores_no_plan(make: Callable[..., Home]) -> None:
    each = make()
    each.arrive(digits(0))
    stale = each.claim(lease_seconds=EXPIRED)
    each.claim()
    with pytest.raises(LostLeaseError):
        make_plan(each.engine, stale)
    with each.engine.begin() as connection:
        assert connection.execute(sa.select(update_inputs.c.name)).all() == []
