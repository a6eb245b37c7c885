"""Disputes through the front door: the same holdouts reject twice, a person is asked, and answers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa

from service.gate.base import DISPUTE, Verdict
from service.state import holdouts, inputs
from service.state.database import updates
from service.state.holdouts import Mark
from service.state.inputs import StoredDocument, digest_of
from service.state.ledger import By
from service.updates import decisions
from service.updates.inputs import PlanDocument, decode
from service.updates.past import Dispute
from service.updates.plan import make_plan
from streams.records import Records
from tests.service.updates.test_plan import attempt_that_dies
from tests.service.updates.test_reproduction import reproduce
from tests.support.homes import BATCH, NAME, Home, digits, home

SQUARES: dict[str, Any] = {
    "schema": {"shape": [3], "classes": ["left", "right"]},
    "strategy": {"hidden": [32], "epochs": 60, "learning_rate": 1e-2},
    "gate": {"margin": 0.05, "learning_margin": 0.3, "suspect_excess": 0.3, "label_error_excess": 0.5},
    "max_carries": 9,
}


@pytest.fixture
def make(tmp_path: Path, mlflow_store: Path) -> Iterator[Callable[..., Home]]:
    """Homes that are closed when the test ends."""
    with ExitStack() as stack:
        folders = iter(tmp_path / f"home-{number}" for number in range(10))
        yield lambda **changes: stack.enter_context(home(next(folders), mlflow_store, **changes))


def squares(batch: int, *, renamed: bool = True, moved: bool = False) -> Records:
    """Points left and right of a line.

    Renamed: of a seventh of them, too few for near duplicates to show it, the classes are swapped. Moved: a
    feature that says nothing of the class is another.
    """
    features = np.random.default_rng(20 + batch).random((BATCH, 3), dtype=np.float32)
    labels = (features[:, 0] > 0.5) ^ (renamed & (features[:, 1] > 0.86))
    features[:, 2] += moved
    ids = pa.array([f"b{batch}-{row}" for row in range(BATCH)])
    return Records(ids, features, labels.astype(np.int64), np.full(BATCH, np.nan), ids, {})


def marks(each: Home) -> dict[int, Mark]:
    with each.engine.begin() as connection:
        return holdouts.marks(connection, NAME)


def keep(each: Home, marking: decisions.Marking = "keep") -> None:
    decisions.mark_holdout(each.engine, NAME, 0, marking=marking, by=By("Ada", "still true"))


def reject(each: Home) -> None:
    waiting = each.updates()[-1]
    decisions.decide_review(each.engine, waiting.id, choice="reject", by=By("Ada", "not this one"))


def questions(verdict: Verdict) -> list[tuple[int, ...]]:
    """Experiences of the disputes of a verdict."""
    return [each.experiences for each in verdict.findings if each.guard == DISPUTE]


def test_a_concept_that_changes_unseen_is_rejected_then_asked_about_until_it_is_kept(
    make: Callable[..., Home],
) -> None:
    each = make(**SQUARES)
    assert each.learn(squares(0, renamed=False)).outcome == "promote"
    first = each.learn(squares(1))
    assert (first.outcome, questions(first)) == ("reject", []), first
    second = each.learn(squares(2))
    assert (second.outcome, questions(second)) == ("review", [(0,)]), second
    assert second.reason.startswith("experience 0 stopped this update and the one before: are the labels")
    assert each.states() == {0: "learnt", 1: "review", 2: "review"}
    assert each.ledger()[-1].action == "review"
    keep(each)
    assert marks(each) == {0: Mark(kept=True)}
    assert each.ledger()[-1].action == "keep"
    reject(each)
    third = each.learn(squares(3))
    assert (third.outcome, questions(third)) == ("reject", []), third
    fourth = each.learn(squares(4, moved=True))
    assert (fourth.outcome, questions(fourth)) == ("review", [(0,)]), fourth
    assert marks(each) == {0: Mark()}, "to be asked again takes the mark back"
    keep(each)
    assert marks(each) == {0: Mark(kept=True, kept_through=1)}
    reject(each)
    fifth = each.learn(squares(5, moved=True))
    assert (fifth.outcome, questions(fifth)) == ("reject", []), fifth
    keep(each, "unkeep")
    assert questions(each.learn(squares(6, moved=True))) == [(0,)]
    assert each.champion() == 1


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Iterator[Home]:
    """Two updates in a row that the first holdout stopped; the second awaits a decision."""
    strict: dict[str, Any] = {"gate": {"margin": 0.05, "learning_margin": 0.05}, "strategy": {"epochs": 30}}
    with home(tmp_path_factory.mktemp("turned") / "home", mlflow_store, **strict) as each:
        each.learn(digits(0))
        assert each.learn(digits(1, angle=90)).outcome == "reject"
        each.arrive(digits(2, angle=90))
        attempt_that_dies(each)
        decisions.mark_holdout(each.engine, NAME, 0, marking="keep", by=By("Ada", "too late for this one"))
        verdict = each.run()
        assert questions(verdict) == [(0,)], "the first attempt's plan is judged by"
        yield each


def test_a_question_is_asked_again_by_every_attempt_and_reproduced(turned: Home) -> None:
    assert marks(turned) == {0: Mark(kept=True, kept_through=1)}, "what came after the plan stays"
    done = reproduce(turned, turned.updates()[2].id, "--json")
    assert done.document["outcome"] == "reproduced", done
    assert done.document["verdict"]["outcome"] == "review"


def test_plans_and_verdicts_of_before_are_still_read(turned: Home) -> None:
    update = turned.updates()[2]
    with turned.engine.begin() as connection:
        stored = inputs.read(connection, update.id)["plan"]
    assert decode(stored, PlanDocument).disputed == (0,)
    text = stored.text
    for field in ('"disputed":[0],', '"kept":[],', '"kept_shifted":[],'):
        assert field in text
        text = text.replace(field, "")
    before = decode(StoredDocument("plan", text, digest_of(text)), PlanDocument)
    assert (before.disputed, before.kept, before.kept_shifted) == ((), (), ())


def test_a_verdict_of_before_that_names_no_members_is_disputed_by_its_experience(turned: Home) -> None:
    reject(turned)
    first, second = turned.updates()[1:]
    assert first.verdict is not None
    for finding in first.verdict["findings"]:
        del finding["experiences"]
    with turned.engine.begin() as connection:
        connection.execute(sa.delete(updates).where(updates.c.id == second.id))
        connection.execute(sa.update(updates).where(updates.c.id == first.id).values(verdict=first.verdict))
    turned.arrive(digits(3, angle=90))
    plan = make_plan(turned.engine, turned.claim())
    assert plan.dispute == Dispute(disputed=(0,), kept=(0,), kept_shifted=(0,))
