"""Audits and holdouts through the front door: real updates, the freeze one may bring, and what people do."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from service.errors import FreezeConflictError, HoldoutConflictError, HoldoutUnknownError
from service.gate.base import GateConfig
from service.state import freezes, holdouts, ledger
from service.state.database import updates
from service.state.holdouts import Audits, Mark
from service.state.ledger import GATE, By
from service.training.answers import judging_order
from service.updates import decisions
from service.updates.past import records_judged
from service.updates.plan import make_plan
from tests.support.homes import NAME, Home, digits, home

SEALED = {"gate": 0.2, "audit": 0.3}


@pytest.fixture
def make(tmp_path: Path, mlflow_store: Path) -> Iterator[Callable[..., Home]]:
    """Homes that are closed when the test ends."""
    with ExitStack() as stack:
        folders = iter(tmp_path / f"home-{number}" for number in range(10))
        yield lambda **changes: stack.enter_context(home(next(folders), mlflow_store, **changes))


def audits(each: Home) -> dict[int, int]:
    with each.engine.begin() as connection:
        return holdouts.count_looks(connection, NAME, part="audit")


def looks(each: Home) -> dict[int, int]:
    with each.engine.begin() as connection:
        return holdouts.count_looks(connection, NAME)


def test_every_promotion_is_audited_against_the_anchors_and_looks_are_counted(
    make: Callable[..., Home],
) -> None:
    each = make(
        split=SEALED,
        strategy={"name": "replay", "capacity": 300},
        gate={"margin": 0.3, "learning_margin": 0.3, "budget": 0.4, "audits": 5},
    )
    each.learn(digits(0))
    assert (looks(each), audits(each)) == ({0: 1}, {})
    verdict = each.learn(digits(1, angle=10))
    assert verdict.outcome == "promote", verdict
    (finding,) = verdict.audit
    assert finding.experience is None, "which experience was how near to the budget stays sealed"
    assert finding.numbers == {"n": pytest.approx(90, abs=25), "look": 1, "budget": 0.4}
    assert (looks(each), audits(each)) == ({0: 2, 1: 1}, {0: 1})
    third = each.learn(digits(2, angle=20))
    assert third.outcome == "promote", third
    assert [finding.numbers["look"] for finding in third.audit] == [2]
    assert audits(each) == {0: 2, 1: 1}
    # Of the anchors, which are the versions right after each was learnt.
    each.arrive(digits(3, angle=30))
    plan = make_plan(each.engine, each.claim())
    with each.engine.begin() as connection:
        for version, experience in ((1, 0), (2, 1), (3, 2)):
            sealed = holdouts.of_version(connection, NAME, version=version, part="audit")
            np.testing.assert_array_equal(plan.anchors[experience], sealed[experience])
            on_gate = holdouts.of_version(connection, NAME, version=version)
            np.testing.assert_array_equal(plan.gate_anchors[experience], on_gate[experience])
    assert [learnt.experience for learnt in plan.learnt] == [0, 1, 2]


def test_an_audit_that_does_not_pass_freezes_until_a_person_lifts_it(make: Callable[..., Home]) -> None:
    each = make(
        split=SEALED,
        strategy={"epochs": 30},
        # The step allows almost anything, so only the budget can see what is forgotten.
        gate={
            "margin": 0.95,
            "learning_margin": 0.95,
            "budget": 0.3,
            "audits": 5,
            "rare_classes": False,
        },
    )
    each.learn(digits(0))
    verdict = each.learn(digits(1, angle=90))
    assert verdict.freezes, verdict
    assert verdict.outcome == "review", "what was lost stays sealed, even that it is shown"
    assert "promotion is frozen" in verdict.reason
    assert each.champion() == 1
    assert [entry.action for entry in each.ledger()] == ["promote", "review", "freeze"]
    decisions.decide_review(each.engine, each.updates()[-1].id, choice="reject", by=By("Ada", "frozen"))
    harmless = each.learn(digits(2))
    assert harmless.outcome == "review"
    assert "promotion is frozen" in harmless.reason
    assert harmless.audit == ()
    with pytest.raises(HoldoutUnknownError):
        decisions.mark_holdout(each.engine, NAME, 7, marking="retire", by=By("Ada", "why"))
    decisions.unfreeze(each.engine, NAME, by=By("Ada", "the new angle matters more"))
    with pytest.raises(FreezeConflictError):
        decisions.unfreeze(each.engine, NAME, by=By("Ada", "again"))
    assert ledger.first_break(each.ledger()) is None


def test_going_back_to_the_audited_version_lifts_the_freeze(make: Callable[..., Home]) -> None:
    each = make(
        split=SEALED,
        strategy={"name": "replay", "capacity": 300},
        gate={"margin": 0.95, "learning_margin": 0.95, "budget": 0.3, "audits": 5},
    )
    each.learn(digits(0))
    assert each.learn(digits(1)).audit
    each.learn(digits(2))
    with each.engine.begin() as connection:
        freezes.begin(connection, NAME, last_audited=2, champion=3, by=By(GATE, "lost", "u-9"))
        assert freezes.current(connection, NAME) is not None
    decisions.roll_back(each.engine, NAME, version=2, by=By("Ada", "as the audit says"))
    with each.engine.begin() as connection:
        assert freezes.current(connection, NAME) is None
    assert [entry.action for entry in each.ledger()][-3:] == ["freeze", "rollback", "unfreeze"]


def test_a_retired_holdout_is_no_evidence_and_can_come_back(make: Callable[..., Home]) -> None:
    each = make(strategy={"name": "replay", "capacity": 300})
    each.learn(digits(0))
    each.learn(digits(1))

    def mark(marking: decisions.Marking) -> ledger.Entry:
        return decisions.mark_holdout(each.engine, NAME, 0, marking=marking, by=By("Ada", "relabelled"))

    entry = mark("retire")
    assert (entry.action, entry.actor, entry.reason) == (
        "retire",
        "Ada",
        "holdout of experience 0: relabelled",
    )
    with pytest.raises(HoldoutConflictError):
        mark("retire")
    verdict = each.learn(digits(2))
    assert {finding.experience for finding in verdict.findings if finding.guard == "retention"} == {1}
    mark("restore")
    mark("pin")
    decisions.set_holdout_margin(each.engine, NAME, 1, margin=0.25, by=By("Ada", "few records"))
    after = each.learn(digits(3))
    margins = {
        (finding.experience, finding.numbers.get("pooled")): finding.numbers["margin"]
        for finding in after.findings
        if finding.guard == "retention"
    }
    # Experiences 0 and 2 are one block; 1, which stands between them, has a margin of its own.
    assert margins == {(None, 2): 0.2, (1, None): 0.25}
    assert ledger.first_break(each.ledger()) is None


def test_tries_of_the_same_experience_spend_less_each_time(make: Callable[..., Home]) -> None:
    each = make(gate={"margin": 0.05, "learning_margin": 0.05}, max_carries=3, strategy={"epochs": 30})
    each.learn(digits(0))
    alphas = []
    for batch in (1, 2, 3):
        verdict = each.learn(digits(batch, angle=90))
        alphas.append(next(f.numbers["alpha"] for f in verdict.findings if f.guard == "retention"))
        if batch == 1:
            # Else the second rejection by it is a question, which waits for a person.
            by = By("Ada", "upright digits are digits")
            decisions.mark_holdout(each.engine, NAME, 0, marking="keep", by=by)
        # As if the champion had been rolled back, and back to: it is the same, and so are the tries.
        with each.engine.begin() as connection:
            connection.execute(sa.update(updates).values(base_revision=90 + batch))
    assert alphas == pytest.approx([0.0304, 0.0076, 0.00338], rel=1e-2)


def test_the_newest_and_the_pinned_are_judged_whole_and_the_rest_share_an_archive() -> None:
    gate = GateConfig(max_holdouts=3, holdout_records=100, archive_records=40)
    marks = {0: Mark(pinned=True), 4: Mark(retired=True)}
    judged = records_judged(tuple(range(8)), marks, gate)
    assert judged == {0: 100, 1: 10, 2: 10, 3: 10, 5: 10, 6: 100, 7: 100}
    many = records_judged(tuple(range(1000)), {}, gate)
    assert sum(many.values()) == 3 * 100 + 40
    assert list(many)[-3:] == [997, 998, 999]


@pytest.mark.parametrize("share", [10, 50, 200])
def test_the_first_records_of_a_holdout_are_a_sample_of_all_its_classes(share: int) -> None:
    labels = np.repeat(np.arange(4), [400, 200, 100, 100])
    order = judging_order(labels, seed="a digest")
    assert sorted(order) == list(range(800))
    np.testing.assert_array_equal(order, judging_order(labels, seed="a digest"))
    counts = np.bincount(labels[order[:share]], minlength=4)
    assert np.abs(counts - share * np.array([0.5, 0.25, 0.125, 0.125])).max() <= 1.5


def test_looks_and_marks_come_back_on_both_databases(database: sa.Engine) -> None:
    with database.begin() as connection:
        for update_id, passed in (("a", True), ("b", False)):
            for _ in range(2):
                holdouts.note_looks(
                    connection, NAME, update_id=update_id, experiences=[0, 1], part="audit", passed=passed
                )
        assert holdouts.count_looks(connection, NAME, part="audit") == {0: 2, 1: 2}
        assert holdouts.count_looks(connection, NAME, part="audit", excluding="b") == {0: 1, 1: 1}
        assert holdouts.count_looks(connection, NAME) == {}
        assert holdouts.audited(connection, NAME) == {"a"}
        assert holdouts.count_audits(connection, NAME) == {0: Audits(2, 1, 1), 1: Audits(2, 1, 1)}
        for update_id, passed in (("c", False), ("d", True), ("e", False)):
            holdouts.note_looks(
                connection, NAME, update_id=update_id, experiences=[1], part="audit", passed=passed
            )
        assert holdouts.count_audits(connection, NAME, excluding="a") == {
            0: Audits(1, 1, 1),
            1: Audits(4, 3, 2),
        }
        holdouts.set_mark(connection, NAME, experience=3, mark=Mark(retired=True))
        holdouts.set_mark(connection, NAME, experience=3, mark=Mark(pinned=True))
        holdouts.set_mark(connection, NAME, experience=3, mark=Mark(pinned=True, margin=0.05))
        assert holdouts.marks(connection, NAME) == {3: Mark(retired=False, pinned=True, margin=0.05)}
