"""Exactly once, whatever comes when: generated schedules of sending, reading, cutting and crashing."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams import late_labels
from streams.split import part_of
from streams.triggers.catalog import RecordsTrigger
from tests.support.ingest_environment import BOUNDARIES, JOINED, SPLIT, Environment, Kind, environment

PARTITIONS = ("p", "q")
Turn = Callable[[Environment], Any]

IDS = st.sampled_from([f"r{number}" for number in range(8)])


def _arming(boundary: str, occurrence: int, environment: Environment) -> None:
    environment.bomb.arm(boundary, occurrence)


def _polling(chunk: int, environment: Environment) -> None:
    """The next ingest reads so much at a time, and the partitions in the other order."""
    environment.chunk = chunk
    environment.sent = dict(reversed(environment.sent.items()))
    environment.crash()


def _later(seconds: float, environment: Environment) -> None:
    environment.now += seconds


CONTROL = st.one_of(
    st.sampled_from([Environment.step, Environment.cut, Environment.crash]),
    st.tuples(st.sampled_from(BOUNDARIES), st.integers(1, 3)).map(lambda bomb: partial(_arming, *bomb)),
    st.sampled_from([1, 2, 5, 100]).map(lambda chunk: partial(_polling, chunk)),
    st.sampled_from([1.0, 300.0, 1500.0]).map(lambda seconds: partial(_later, seconds)),
)


def _sending(kinds: Sequence[Kind], *, timed: bool) -> st.SearchStrategy[Turn]:
    ages = st.sampled_from([None, 0.0, -400.0, 50.0, 1e7]) if timed else st.none()
    message = st.tuples(IDS, st.sampled_from(kinds), st.sampled_from(PARTITIONS), ages)

    def turn(messages: list[tuple[str, Kind, str, float | None]]) -> Turn:
        def send(environment: Environment) -> None:
            for name, kind, partition, age in messages:
                time = {} if age is None else {"time": environment.now + age}
                environment.send(name, kind, partition, **time)

        return send

    return st.lists(message, min_size=2, max_size=8).map(turn)


def _schedules(kinds: Sequence[Kind], *, timed: bool = False) -> st.SearchStrategy[list[Turn]]:
    # Mostly reading: without it the best of schedules finds nothing.
    control = st.one_of(st.just(Environment.step), st.just(Environment.step), CONTROL)
    rounds = st.tuples(_sending(kinds, timed=timed), control, control)
    return st.lists(rounds, min_size=4, max_size=9).map(
        lambda drawn: [turn for each in drawn for turn in each]
    )


WINDOWS = st.sampled_from([0, 3, 10, 1000])
TRIGGERS = st.sampled_from([RecordsTrigger(records=count) for count in (1, 2, 5)])
SOME = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(SOME, max_examples=400)
RECORDS = given(_schedules(["complete", "complete", "complete", "poison"]), WINDOWS, TRIGGERS)
LATE_LABELS = given(
    _schedules(["complete", "features", "label", "features", "label", "poison"], timed=True),
    WINDOWS,
    TRIGGERS,
    st.sampled_from([1, 4, 50_000]),
)


def run(env: Environment, turns: Sequence[Turn]) -> None:
    """Take every turn, and what is stored is right after each; then all that can be is cut, and again."""
    for turn in turns:
        turn(env)
        env.check()
    env.finish()
    env.check()
    env.crash()
    env.finish()


@SOME
@RECORDS
def test_every_record_is_in_exactly_one_place(
    turns: list[Turn], window: int, trigger: RecordsTrigger
) -> None:
    records_once(turns, window, trigger)


@pytest.mark.slow
@MANY
@RECORDS
def test_every_record_is_in_exactly_one_place_in_many_more_schedules(
    turns: list[Turn], window: int, trigger: RecordsTrigger
) -> None:
    records_once(turns, window, trigger)


def records_once(turns: list[Turn], window: int, trigger: RecordsTrigger) -> None:
    with environment(partitions=PARTITIONS, window=window, trigger=trigger) as env:
        run(env, turns)
        stored = env.check()
        good = [message for message in env.messages if message.kind == "complete"]
        poison = [message for message in env.messages if message.kind == "poison"]
        assert stored.dead_letters == {(message.partition, message.position) for message in poison}
        learnt = [name for name, _, _ in stored.learnt]
        trained = {name for name in learnt if part_of(name, SPLIT) == "train"}
        wanted = {message.id for message in good if part_of(message.id, SPLIT) == "train"}
        assert trained == wanted, "only what falls in a holdout may still wait for a record to train on"
        if window == 0:
            assert stored.duplicates == 0
            assert sum(name in wanted for name in learnt) == sum(message.id in wanted for message in good)
        if window == 1000:
            assert len(learnt) == len(set(learnt))


@SOME
@LATE_LABELS
def test_every_unmatched_record_is_in_exactly_one_place(
    turns: list[Turn], window: int, trigger: RecordsTrigger, uncommitted: int
) -> None:
    late_labels_once(turns, window, trigger, uncommitted=uncommitted)


@pytest.mark.slow
@MANY
@LATE_LABELS
def test_every_unmatched_record_is_in_exactly_one_place_in_many_more_schedules(
    turns: list[Turn], window: int, trigger: RecordsTrigger, uncommitted: int
) -> None:
    late_labels_once(turns, window, trigger, uncommitted=uncommitted)


def late_labels_once(turns: list[Turn], window: int, trigger: RecordsTrigger, *, uncommitted: int) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        environment(partitions=PARTITIONS, schema=JOINED, window=window, trigger=trigger) as env,
    ):
        patch.setattr(late_labels, "_MAX_UNCOMMITTED", uncommitted)
        run(env, turns)
        stored = env.check()
        if window == 1000:
            learnt = [name for name, _, _ in stored.learnt]
            assert len(learnt) == len(set(learnt))


@SOME
@given(st.permutations(range(12)), st.lists(CONTROL, min_size=24, max_size=24), TRIGGERS)
def test_features_and_labels_are_joined_in_any_order_over_any_crash(
    order: list[int], turns: list[Turn], trigger: RecordsTrigger
) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        environment(partitions=PARTITIONS, schema=JOINED, trigger=trigger) as env,
    ):
        patch.setattr(late_labels, "_MAX_UNCOMMITTED", 4)
        for number, turn in zip([*order, *order[::-1]], turns, strict=True):
            kind: Kind = (
                "label" if any(message.id == f"r{number}" for message in env.messages) else "features"
            )
            env.send(f"r{number}", kind, PARTITIONS[number % 2 if kind == "label" else 0])
            turn(env)
            env.now = 1e9  # nothing ages
            env.check()
        env.finish()
        stored = env.check()
        learnt = [name for name, _, _ in stored.learnt]
        assert len(set(learnt)) == len(learnt)
        assert env.open().pending == 12 - len(learnt)
        left = {f"r{number}" for number in range(12)} - set(learnt)
        assert all(part_of(name, SPLIT) != "train" for name in left), "it waits for a record to train on"
