"""One update from claim to recorded decision, with the real trainer, gate and MLflow; and what crashes do."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import registry
from service.errors import CancelConflictError, ChampionMovedError, LostLeaseError
from service.gate.decide import decide
from service.registry import UPDATE_TAG
from service.state import claims, jobs, ledger
from service.state.ledger import By
from service.training.tasks import LEARNER_FOLDER, SERVED_FILE, read_result
from service.training.trainer import load_learner
from service.updates import decisions, dispatcher, update
from service.updates.publication import publication
from streams.records import Records
from streams.split import TRAIN, parts_of
from tests.support import postgres
from tests.support.homes import EXPIRED, NAME, Home, digits, home, silent, with_shuffled_labels
from tests.support.threads import outcome


@pytest.fixture
def make(tmp_path: Path, mlflow_store: Path) -> Iterator[Callable[..., Home]]:
    """Homes that are closed when the test ends."""
    with ExitStack() as stack:
        folders = iter(tmp_path / f"home-{number}" for number in range(10))
        yield lambda **changes: stack.enter_context(home(next(folders), mlflow_store, **changes))


def versions(each: Home) -> list[Any]:
    found = each.registry._client.search_model_versions(f"name = '{NAME}'")
    return sorted(found, key=lambda version: int(version.version))


def runs(each: Home) -> list[Any]:
    client = each.registry._client
    experiment = client.get_experiment_by_name(NAME)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def aliases(each: Home) -> dict[str, int]:
    found = each.registry._client.get_registered_model(NAME).aliases
    return {name: int(version) for name, version in found.items()}


def dispatch(each: Home) -> jobs.Update:
    """Claim the next update and run it as the dispatcher does; how it stands afterwards."""
    claimed = each.claim()
    dispatcher._run_one(each.engine, each.settings, each.updater, claimed)
    return each.read(claimed.id)


def test_the_first_update_is_promoted_and_the_champion_is_served(make: Callable[..., Home]) -> None:
    each = make()
    verdict = each.learn(digits(0))
    assert verdict.outcome == "promote", verdict
    assert each.champion() == 1
    assert each.states() == {0: "learnt"}
    (entry,) = each.ledger()
    assert (entry.action, entry.actor, entry.version, entry.previous_version) == ("promote", "gate", 1, None)
    (done,) = each.updates()
    assert (done.state, done.outcome, done.version, done.base_version) == ("done", "promote", 1, None)
    assert done.accuracy is not None
    assert done.accuracy["0"] > 0.6
    assert aliases(each) == {"champion": 1}
    inputs = digits(4).features
    served = registry.load(NAME, settings=each.settings).predict(inputs)
    learner = load_learner(each.updater.folder(done.id))
    np.testing.assert_allclose(served, learner.predict(inputs), atol=1e-5)


def test_a_second_update_goes_on_from_the_champion(make: Callable[..., Home]) -> None:
    each = make(strategy={"name": "replay", "capacity": 300})
    each.learn(digits(0))
    verdict = each.learn(digits(1, angle=20))
    assert verdict.outcome == "promote", verdict
    assert {finding.guard for finding in verdict.findings} >= {"values", "retention", "learning"}
    assert each.champion() == 2
    second = each.updates()[1]
    assert (second.base_version, second.base_revision) == (1, 1)
    assert set(second.accuracy or {}) == {"0", "1"}
    assert aliases(each) == {"champion": 2}
    assert ledger.first_break(each.ledger()) is None


def test_what_was_rejected_is_learnt_with_the_next_experience_and_then_parked(
    make: Callable[..., Home],
) -> None:
    each = make(gate={"margin": 0.05, "learning_margin": 0.05}, max_carries=1, strategy={"epochs": 30})
    each.learn(digits(0))
    verdict = each.learn(digits(1, angle=90))
    assert verdict.outcome == "reject", verdict
    assert "lost" in verdict.reason
    assert each.champion() == 1
    assert each.states() == {0: "learnt", 1: "carried"}
    assert aliases(each) == {"champion": 1, "challenger": 2}
    assert claims.claim(each.engine, "w", lease_seconds=60, max_attempts=3) is None
    _keep_the_first(each)
    assert each.learn(digits(2, angle=90)).outcome == "reject"
    third = each.updates()[2]
    assert (list(third.experiences), third.base_version, third.cause) == ([1, 2], 1, "retention")
    assert each.states() == {0: "learnt", 1: "parked", 2: "carried"}
    assert [entry.action for entry in each.ledger()] == ["promote", "reject", "keep", "reject"]


def _keep_the_first(each: Home) -> None:
    """Say that the first holdout's labels are true: else a second rejection by it is a question."""
    decisions.mark_holdout(each.engine, NAME, 0, marking="keep", by=By("Ada", "upright digits are digits"))


def test_what_was_rejected_is_never_tried_again_with_nothing_new_beside_it(
    make: Callable[..., Home],
) -> None:
    each = make(
        gate={"margin": 0.05, "learning_margin": 0.05},
        strategy={"epochs": 30},
        max_experiences_per_update=2,
        max_carries=9,
    )
    each.learn(digits(0))
    for batch in (1, 2, 3, 4):
        each.arrive(digits(batch, angle=90))
    assert each.run().outcome == "reject"
    _keep_the_first(each)
    while jobs_wait(each):
        assert each.run().outcome == "reject"
    assert [list(update.experiences) for update in each.updates()] == [[0], [1, 2], [3, 4]]
    assert set(each.states().values()) == {"learnt", "carried"}


def jobs_wait(each: Home) -> bool:
    return any(update.state == "queued" for update in each.updates())


def test_the_experiences_that_were_named_are_the_ones_that_are_learnt(make: Callable[..., Home]) -> None:
    each = make(gate={"margin": 0.05, "learning_margin": 0.05}, strategy={"epochs": 30}, max_carries=9)
    each.learn(digits(0))
    each.learn(digits(1, angle=90))
    _keep_the_first(each)
    each.learn(digits(2, angle=90))
    assert each.states() == {0: "learnt", 1: "carried", 2: "carried"}
    asked = each.ask([2])
    each.run()
    assert list(each.read(asked).experiences) == [2]


def test_a_batch_too_small_to_screen_is_not_hidden_by_the_one_it_is_merged_with(
    make: Callable[..., Home],
) -> None:
    each = make()
    each.learn(digits(0))
    each.arrive(digits(1, records=60))
    each.ask()
    each.arrive(digits(2))
    verdict = each.run()
    assert list(each.updates()[-1].experiences) == [1, 2]
    assert verdict.outcome == "review", verdict
    assert "too few to compare" in verdict.reason


def test_a_batch_with_wrong_labels_is_stopped_before_it_is_learnt(make: Callable[..., Home]) -> None:
    each = make()
    each.learn(digits(0))
    verdict = each.learn(with_shuffled_labels(digits(1)))
    assert (verdict.outcome, each.champion()) == ("reject", 1)
    assert "labels" in verdict.reason
    stopped = each.updates()[1]
    assert (stopped.version, stopped.outcome) == (None, "reject")
    assert each.states() == {0: "learnt", 1: "parked"}
    assert len(versions(each)) == 1
    assert len(runs(each)) == 2
    result = read_result(each.updater.folder(stopped.id))
    assert result is not None
    assert not result.learnt
    assert not (each.updater.folder(stopped.id) / LEARNER_FOLDER).exists()


def test_what_was_merged_with_a_stopped_batch_is_learnt_by_the_next_update(make: Callable[..., Home]) -> None:
    each = make()
    each.learn(digits(0))
    each.arrive(with_shuffled_labels(digits(1)))
    each.arrive(digits(2))
    assert each.run().outcome == "reject"
    assert each.states() == {0: "learnt", 1: "parked", 2: "waiting"}
    assert each.run().outcome == "promote"
    assert each.states() == {0: "learnt", 1: "parked", 2: "learnt"}


def test_an_update_with_nothing_to_learn_ends_without_a_decision(make: Callable[..., Home]) -> None:
    each = make()
    with each.engine.begin() as connection:
        update_id = jobs.enqueue(connection, NAME, requested_by="test")
    assert each.updater.run(each.claim(), silent) is None
    done = each.read(update_id)
    assert (done.state, done.outcome) == ("done", None)
    assert done.reason == "Nothing to learn: no record has arrived since the last update."
    assert (each.ledger(), each.trained) == ([], [])


def test_more_experiences_than_one_update_takes_get_more_updates(make: Callable[..., Home]) -> None:
    each = make(max_experiences_per_update=1)
    for batch in range(3):
        each.arrive(digits(batch))
    for _ in range(3):
        each.run()
    assert each.states() == {0: "learnt", 1: "learnt", 2: "learnt"}
    assert [list(done.experiences) for done in each.updates()] == [[0], [1], [2]]


def test_what_awaits_a_person_is_promoted_by_the_approval(make: Callable[..., Home]) -> None:
    each = make(gate={"first_update": "review"})
    verdict = each.learn(digits(0))
    assert verdict.outcome == "review"
    (waiting,) = each.updates()
    assert (waiting.state, each.states(), each.champion()) == ("review", {0: "review"}, None)
    assert aliases(each) == {"challenger": 1}
    each.arrive(digits(1))
    assert claims.claim(each.engine, "w", lease_seconds=60, max_attempts=3) is None
    decisions.decide_review(each.engine, waiting.id, choice="approve", by=By("Ada", "fine"))
    update.project(each.engine, each.registry, NAME)
    assert aliases(each) == {"champion": 1}
    assert each.run().outcome == "promote"
    assert [entry.action for entry in each.ledger()] == ["review", "promote", "promote"]
    assert each.states() == {0: "learnt", 1: "learnt"}


def test_a_rejected_review_is_parked_and_learnt_when_asked_for(make: Callable[..., Home]) -> None:
    each = make(gate={"first_update": "review"})
    each.learn(digits(0))
    decisions.decide_review(each.engine, each.updates()[0].id, choice="reject", by=By("Ada", "no"))
    assert each.states() == {0: "parked"}
    each.ask([0])
    assert each.run().outcome == "review"
    assert [(done.version, done.cause) for done in each.updates()] == [
        (1, "first_update"),
        (2, "first_update"),
    ]


def test_a_person_gets_what_few_records_cannot_settle(make: Callable[..., Home]) -> None:
    each = make(gate={"margin": 0.02, "learning_margin": 0.02})
    each.learn(digits(0))
    each.arrive(digits(1, records=60))
    each.ask()
    verdict = each.run()
    assert verdict.outcome == "review", verdict
    assert each.states() == {0: "learnt", 1: "review"}


def test_an_experience_without_holdout_records_is_a_past_one_like_others(make: Callable[..., Home]) -> None:
    """So few records arrived that none was put aside; a person let them in."""
    each = make(strategy={"name": "replay", "capacity": 300})
    each.learn(digits(0))
    batch = digits(1)
    to_learn = np.flatnonzero(parts_of(batch.split_keys, each.spec.split) == TRAIN)[:3]
    each.arrive(batch.take(to_learn))
    each.ask()
    assert each.run().outcome == "review"
    decisions.decide_review(each.engine, each.updates()[1].id, choice="approve", by=By("Ada", "new"))
    verdict = each.learn(digits(2))
    assert verdict.outcome == "review"
    empty = [finding for finding in verdict.findings if finding.experience == 1]
    assert [(finding.guard, finding.answer) for finding in empty] == [("retention", "undecided")], verdict
    assert "its holdout is empty; retire it" in empty[0].sentence
    decisions.mark_holdout(each.engine, NAME, 1, marking="retire", by=By("Ada", "it is empty"))
    decisions.decide_review(each.engine, each.updates()[2].id, choice="approve", by=By("Ada", "kept"))
    after = each.learn(digits(3))
    assert after.outcome == "promote", after


class DiedError(Exception):
    """The worker's process ended here."""


def die(*_: object, **__: object) -> None:
    raise DiedError


def then_die(work: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any, **named: Any) -> None:
        work(*arguments, **named)
        raise DiedError

    return both


DEATHS: dict[str, Callable[[Home, pytest.MonkeyPatch], object]] = {
    "before the trainer": lambda each, patch: patch.setattr(each, "before_training", die),
    "after the trainer": lambda each, patch: patch.setattr(update, "read_result", die),
    "before the gate": lambda each, patch: patch.setattr(update, "decide", die),
    "before publishing": lambda each, patch: patch.setattr(each.registry, "publish", die),
    "between run and version": lambda each, patch: patch.setattr(each.registry, "_version", die),
    "before the version": lambda each, patch: patch.setattr(
        each.registry, "_log_model", then_die(each.registry._log_model)
    ),
    "after publishing": lambda each, patch: patch.setattr(
        each.registry, "publish", then_die(each.registry.publish)
    ),
    "in the settlement": lambda each, patch: patch.setattr(update, "_act", then_die(update._act)),
}
TRAINED_TWICE = {"before the trainer"}


@pytest.mark.parametrize("death", DEATHS)
def test_an_attempt_that_dies_is_repeated_without_a_second_effect(
    make: Callable[..., Home], death: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = make()
    each.arrive(digits(0))
    first = each.claim(lease_seconds=EXPIRED)
    with monkeypatch.context() as patch:
        DEATHS[death](each, patch)
        with pytest.raises(DiedError):
            each.updater.run(first, silent)
    assert (each.champion(), each.ledger(), each.states()) == (None, [], {0: "waiting"})
    second = each.claim()
    assert (second.id, second.attempt) == (first.id, 2)
    verdict = each.updater.run(second, silent)
    assert verdict is not None
    assert verdict.outcome == "promote"
    assert len(each.trained) == (2 if death in TRAINED_TWICE else 1)
    assert ([int(version.version) for version in versions(each)], len(runs(each))) == ([1], 1)
    assert versions(each)[0].tags[UPDATE_TAG] == first.id
    assert [entry.action for entry in each.ledger()] == ["promote"]
    assert (each.champion(), each.states()) == (1, {0: "learnt"})
    assert runs(each)[0].info.status == "FINISHED"


def test_a_worker_that_dies_after_the_settlement_leaves_nothing_to_repeat(
    make: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = make()
    each.arrive(digits(0))
    with monkeypatch.context() as patch:
        patch.setattr(each.registry, "project", die)
        with pytest.raises(DiedError):
            each.updater.run(each.claim(lease_seconds=EXPIRED), silent)
    assert claims.claim(each.engine, "w", lease_seconds=60, max_attempts=3) is None
    assert each.champion() == 1
    update.project(each.engine, each.registry, NAME)
    assert aliases(each) == {"champion": 1}


def test_a_worker_that_comes_back_after_its_lease_changes_nothing(make: Callable[..., Home]) -> None:
    each = make()
    each.arrive(digits(0))
    stale = each.claim(lease_seconds=EXPIRED)

    def taken_over() -> None:
        each.before_training = lambda: None
        each.run()

    each.before_training = taken_over
    with pytest.raises(LostLeaseError):
        each.updater.run(stale, silent)
    assert ([int(version.version) for version in versions(each)], len(runs(each))) == ([1], 1)
    assert [entry.action for entry in each.ledger()] == ["promote"]
    assert (each.champion(), each.states()) == (1, {0: "learnt"})


def test_a_worker_that_loses_its_lease_while_it_publishes_settles_nothing(
    make: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = make()
    each.arrive(digits(0))
    stale = each.claim(lease_seconds=EXPIRED)
    publish = each.registry.publish

    def slow(publication: registry.Publication) -> tuple[str, int | None]:
        answer = publish(publication)
        monkeypatch.undo()
        each.run()
        return answer

    monkeypatch.setattr(each.registry, "publish", slow)
    assert isinstance(outcome(partial(each.updater.run, stale, silent)), LostLeaseError)
    assert [entry.action for entry in each.ledger()] == ["promote"]
    assert len(versions(each)) == 1


@pytest.mark.parametrize("batch", ["good", "bad"])
def test_an_update_whose_champion_is_rolled_back_meanwhile_starts_over(
    make: Callable[..., Home], batch: str
) -> None:
    each = make()
    each.learn(digits(0))
    each.learn(digits(1))
    each.arrive(digits(2) if batch == "good" else with_shuffled_labels(digits(2)))

    def rolled_back() -> None:
        each.before_training = lambda: None
        decisions.roll_back(each.engine, NAME, version=None, by=By("Ada", "worse"))

    each.before_training = rolled_back
    ended = dispatch(each)
    assert (ended.state, ended.outcome, ended.version) == ("failed", None, None)
    assert ended.error is not None
    assert "no longer the one" in ended.error
    assert "A new update was queued in its place." in ended.error
    assert each.champion() == 1
    assert each.states() == {0: "learnt", 1: "parked", 2: "waiting"}
    again = dispatch(each)
    assert (list(again.experiences), again.base_version) == ([2], 1)
    assert again.outcome == ("promote" if batch == "good" else "reject")
    assert each.states()[2] == ("learnt" if batch == "good" else "parked")
    assert ledger.first_break(each.ledger()) is None


def test_a_learner_that_diverges_fails_the_update_and_parks_its_experiences(
    make: Callable[..., Home],
) -> None:
    each = make(strategy={"optimizer": "sgd", "learning_rate": 1e30})
    each.arrive(digits(0))
    failed = dispatch(each)
    assert (failed.state, failed.attempt) == ("failed", 1)
    assert failed.error is not None
    assert each.states() == {0: "parked"}
    assert (each.champion(), each.ledger(), versions(each)) == (None, [], [])


def test_a_network_of_this_installation_is_learnt_and_served(make: Callable[..., Home]) -> None:
    each = make(strategy={"network": {"name": "own", "of": "mine"}})
    each.settings = each.settings.model_copy(
        update={"networks": "mine=tests.support.own_networks:normalised"}
    )
    each.arrive(digits(0))
    done = dispatch(each)
    assert (done.state, done.outcome, each.champion()) == ("done", "promote", 1)
    assert (each.updater.folder(done.id) / SERVED_FILE).exists()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("no_such_package:make", "'mine' cannot be made by no_such_package:make: ModuleNotFoundError"),
        ("tests.support.own_networks:tiring", "network 'mine' failed: LookupError, see"),
        ("tests.support.own_networks:branching", "cannot be exported to serve any number of records"),
    ],
)
def test_a_network_of_this_installation_that_fails_ends_the_update_in_words(
    network: str, message: str, make: Callable[..., Home]
) -> None:
    each = make(strategy={"network": {"name": "own", "of": "mine"}})
    each.settings = each.settings.model_copy(update={"networks": f"mine={network}"})
    each.arrive(digits(0))
    failed = dispatch(each)
    assert (failed.state, failed.attempt) == ("failed", 1)
    assert message in (failed.error or "")
    assert each.states() == {0: "parked"}


def test_a_failure_that_may_pass_is_tried_again_and_at_last_parked(
    make: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "RETRY_SECONDS", 0.0)
    each = make()
    each.arrive(digits(0))
    each.before_training = die
    assert [dispatch(each).state for _ in range(3)] == ["queued", "queued", "failed"]
    (failed,) = each.updates()
    assert failed.attempt == 3
    assert (failed.error or "").startswith("DiedError: a fault inside Holdfast.")
    assert each.states() == {0: "parked"}


def test_a_damaged_experience_file_fails_the_update_with_its_name(make: Callable[..., Home]) -> None:
    each = make()
    each.arrive(digits(0))
    for path in each.settings.experiences.iterdir():
        path.write_bytes(b"not what it was")
    failed = dispatch(each)
    assert failed.state == "failed"
    assert "is damaged" in (failed.error or "")
    assert each.states() == {0: "parked"}


def test_a_rejected_update_leaves_no_trace_in_the_next_one(make: Callable[..., Home]) -> None:
    """The next update starts from the champion, so it is the same with and without the rejected one."""
    strict = {"margin": 0.05, "learning_margin": 0.05}
    with_rejected = make(gate=strict, max_carries=0, strategy={"epochs": 20})
    without = make(gate=strict, strategy={"epochs": 20})
    for each in (with_rejected, without):
        each.learn(digits(0))
    assert with_rejected.learn(digits(1, angle=90)).outcome == "reject"
    assert with_rejected.states()[1] == "parked"
    for each in (with_rejected, without):
        each.learn(digits(2))
    same_champion = [each.updater.folder(each.updates()[-1].id) for each in (with_rejected, without)]
    inputs = digits(4).features
    one, other = (load_learner(folder).predict(inputs) for folder in same_champion)
    np.testing.assert_array_equal(one, other)


def test_the_same_updates_in_two_homes_give_the_same_challenger_bit_for_bit(
    make: Callable[..., Home],
) -> None:
    homes = [make(strategy={"name": "replay", "capacity": 100}) for _ in range(2)]
    for each in homes:
        assert [each.learn(digits(batch, angle=15.0 * batch)).outcome for batch in range(2)] == [
            "promote",
            "promote",
        ]
    folders = [each.updater.folder(each.updates()[-1].id) for each in homes]
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in folders]
    assert files[0] == files[1]
    for name in files[0]:
        if LEARNER_FOLDER in name.parts and (folders[0] / name).is_file():
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    assert (folders[0] / SERVED_FILE).exists()
    inputs = digits(4).features
    one, other = (registry.load(NAME, settings=each.settings).predict(inputs) for each in homes)
    np.testing.assert_array_equal(one, other)


def test_what_a_killed_trainer_left_half_done_is_cleared_away(make: Callable[..., Home]) -> None:
    each = make()
    each.arrive(digits(0))
    waiting = each.updates()[0].id
    leftover = each.settings.checkpoints / f"{waiting}.123-456.tmp"
    leftover.mkdir(parents=True)
    (leftover / "served.pt2").write_bytes(b"half")
    each.run()
    assert [path.name for path in each.settings.checkpoints.iterdir()] == [waiting]


def test_start_over_without_the_lease_changes_nothing(make: Callable[..., Home]) -> None:
    each = make()
    each.arrive(digits(0))
    stale = each.claim(lease_seconds=EXPIRED)
    each.claim()
    with pytest.raises(LostLeaseError):
        each.updater.start_over(stale, ChampionMovedError("moved", fix=""))
    assert [each.read(found.id).state for found in each.updates()] == ["running"]


def cancel(each: Home, update_id: str) -> jobs.Update:
    return decisions.cancel(each.engine, update_id, by=By("Ada", "wrong settings"))


def cancel_newest(each: Home) -> None:
    cancel(each, each.updates()[-1].id)


def assert_nothing_is_left_of(each: Home, ended: jobs.Update) -> None:
    assert (ended.state, ended.outcome, ended.version, ended.run_id) == ("failed", None, None, None)
    assert ended.error == "Cancelled by Ada: wrong settings"
    assert not list(each.settings.checkpoints.glob(f"{ended.id}*"))
    assert all(version.tags[UPDATE_TAG] != ended.id for version in versions(each))
    assert all(run.data.tags.get(UPDATE_TAG) != ended.id for run in runs(each))
    assert all(entry.update_id != ended.id for entry in each.ledger())


def test_an_update_cancelled_while_it_learns_stops_soon_and_leaves_nothing(make: Callable[..., Home]) -> None:
    each = make(strategy={"epochs": 10_000})
    each.arrive(digits(0))
    each.before_training = partial(cancel_newest, each)
    started = time.monotonic()
    ended = dispatch(each)
    assert time.monotonic() - started < 15, "ten thousand epochs take minutes"
    assert_nothing_is_left_of(each, ended)
    assert (each.champion(), each.states()) == (None, {0: "parked"})


CANCELS: dict[str, Callable[[Home, pytest.MonkeyPatch], object]] = {
    "before the trainer": lambda each, patch: setattr(each, "before_training", partial(cancel_newest, each)),
    "before the gate": lambda each, patch: patch.setattr(
        update, "decide", first(partial(cancel_newest, each), decide)
    ),
    "before the recording": lambda each, patch: patch.setattr(
        update, "publication", first(partial(cancel_newest, each), publication)
    ),
}


def first(before: Callable[[], object], work: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any, **named: Any) -> Any:
        before()
        return work(*arguments, **named)

    return both


@pytest.mark.parametrize("moment", CANCELS)
def test_a_cancelled_update_leaves_the_champion_and_the_next_update_as_they_were(
    make: Callable[..., Home], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = make()
    each.learn(digits(0))
    each.arrive(digits(1))
    with monkeypatch.context() as patch:
        CANCELS[moment](each, patch)
        ended = dispatch(each)
    each.before_training = lambda: None
    assert_nothing_is_left_of(each, ended)
    assert (each.champion(), each.states()) == (1, {0: "learnt", 1: "parked"})
    assert aliases(each) == {"champion": 1}
    asked = each.ask([1])
    again = dispatch(each)
    assert (again.id, again.outcome, list(again.experiences), again.base_version) == (
        asked,
        "promote",
        [1],
        1,
    )
    assert (each.champion(), [entry.action for entry in each.ledger()]) == (2, ["promote", "promote"])


def test_an_update_that_is_being_recorded_ends_and_is_not_cancelled(
    make: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = make()
    each.arrive(digits(0))
    errors: list[object] = []

    def refused() -> None:
        errors.append(outcome(partial(cancel_newest, each)))

    monkeypatch.setattr(each.registry, "publish", first(refused, each.registry.publish))
    ended = dispatch(each)
    (error,) = errors
    assert isinstance(error, CancelConflictError)
    assert "is being recorded" in error.detail
    assert (ended.state, ended.outcome, ended.decision, each.champion()) == ("done", "promote", None, 1)


def test_a_queued_update_that_is_cancelled_is_not_learnt(make: Callable[..., Home]) -> None:
    each = make()
    each.arrive(digits(0))
    ended = cancel(each, each.updates()[0].id)
    assert claims.claim(each.engine, "w", lease_seconds=60, max_attempts=3) is None
    assert_nothing_is_left_of(each, ended)
    assert (each.trained, each.states()) == ([], {0: "parked"})
    assert each.learn(digits(1)).outcome == "promote"
    assert each.states() == {0: "parked", 1: "learnt"}


def test_updates_run_on_postgresql_as_well(
    make: Callable[..., Home], postgres_server: postgres.Server, mlflow_store: Path
) -> None:
    url = postgres_server.migrated_database()
    each = make(database_url=url, gate={"margin": 0.05, "learning_margin": 0.05}, strategy={"epochs": 30})
    assert each.engine.dialect.name == "postgresql"
    outcomes = [dispatch_of(each, records).outcome for records in (digits(0), digits(1, angle=90))]
    outcomes.append(dispatch_of(each, with_shuffled_labels(digits(2))).outcome)
    assert outcomes == ["promote", "reject", "reject"]
    assert each.states() == {0: "learnt", 1: "carried", 2: "parked"}
    assert ledger.first_break(each.ledger()) is None
    stored = each.updates()[1]
    assert stored.verdict is not None
    assert stored.verdict["outcome"] == "reject"


def dispatch_of(each: Home, records: Records) -> jobs.Update:
    each.arrive(records)
    return dispatch(each)
