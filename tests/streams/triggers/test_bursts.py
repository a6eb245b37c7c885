"""Bursts of errors are measured on the answers alone, and detectors that know them keep their run length."""

import json
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streams.triggers import detectors
from streams.triggers.bursts import (
    BLOCK_LENGTHS,
    EVERY,
    FEWEST,
    MOST,
    SETTLED,
    Bursts,
    autocorrelation_time,
    block_length,
)
from streams.triggers.catalog import AnyOfTrigger, PerformanceTrigger, TriggerContext
from streams.triggers.detectors import (
    COST,
    LARGEST,
    Cusum,
    Detector,
    EDetector,
    average_run_length,
    cusum_plan,
    run_lengths,
)
from tests.support.trigger_parts import Parrot, answered, cuts_of, fed, in_bursts

Bits = NDArray[np.bool_]
DECLARED = 1000


def time_of(rate: float, length: float) -> float:
    """The autocorrelation time of that chain."""
    return 2 * length * (1 - rate) - 1


@pytest.mark.parametrize(("rate", "length"), [(0.05, 3), (0.05, 10), (0.2, 3), (0.2, 10), (0.2, 30)])
def test_the_autocorrelation_time_of_a_markov_chain_is_found(rate: float, length: float) -> None:
    random = np.random.default_rng(1)
    found = [autocorrelation_time(in_bursts(MOST, rate, length, random))[0] for _ in range(30)]
    assert np.mean(found) == pytest.approx(time_of(rate, length), rel=0.15)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2, 0.5])
def test_independent_answers_have_the_block_length_1(rate: float) -> None:
    random = np.random.default_rng(2)
    found = [block_length(random.random(5000) < rate) for _ in range(200)]
    assert np.mean(np.array(found) == 1.0) > 0.97
    assert max(found) <= 3.0


def test_errors_that_avoid_each_other_have_the_block_length_1() -> None:
    assert block_length(np.arange(5000) % 10 == 0) == 1.0
    assert block_length(in_bursts(5000, 0.2, 1, np.random.default_rng(3))) == 1.0


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5000])
@pytest.mark.parametrize("value", [False, True])
def test_answers_that_are_all_the_same_have_the_block_length_1(count: int, value: bool) -> None:
    assert autocorrelation_time(np.full(count, value)) == (1.0, 0)
    assert block_length(np.full(count, value)) == 1.0


def test_the_block_length_is_rounded_up_and_capped() -> None:
    random = np.random.default_rng(4)
    found = block_length(in_bursts(MOST, 0.2, 10, random))
    assert found in BLOCK_LENGTHS
    assert time_of(0.2, 10) < found < 2 * time_of(0.2, 10)
    assert block_length(np.arange(MOST) < MOST // 2) == BLOCK_LENGTHS[-1]


def test_what_is_measured_does_not_depend_on_chunks_and_saved_states() -> None:
    random = np.random.default_rng(5)
    wrong = in_bursts(MOST + 10 * EVERY + 77, 0.1, 8, random)
    whole, pieces = Bursts(), Bursts()
    lengths: list[list[float | None]] = [[], []]
    for kept, bursts, most in ((lengths[0], whole, EVERY), (lengths[1], pieces, 190)):
        bursts.follow(3)
        start = 0
        while start < len(wrong):
            piece = wrong[start : start + min(most, bursts.until_measured)]
            if bursts.see(piece):
                kept.append(bursts.length)
            start += len(piece)
            if most < EVERY and start % 7 == 0:
                saved = json.loads(json.dumps(bursts.state(), allow_nan=False))
                bursts = Bursts.from_state(saved)
        assert bursts.state() == whole.state()
    assert lengths[0] == lengths[1] != []
    assert len(json.dumps(whole.state())) < 3000


def test_a_measurement_takes_enough_answers_of_one_champion_and_leaves_the_latest_out() -> None:
    bursts, random = Bursts(), np.random.default_rng(6)
    bursts.follow(1)
    seen = 0
    while bursts.length is None:
        bursts.see(in_bursts(EVERY, 0.2, 10, random))
        seen += EVERY
    assert seen == FEWEST + SETTLED
    found = bursts.length
    assert found > 4
    bursts.follow(2)
    for _ in range((FEWEST + SETTLED) // EVERY - 1):
        assert not bursts.see(random.random(EVERY) < 0.2)
        assert bursts.length == found, "too few answers of the new champion"
    assert bursts.see(random.random(EVERY) < 0.2)
    assert bursts.length == 1.0
    # All wrong at once is a rise, which must not delay its own alarm.
    assert not bursts.see(np.ones(EVERY, dtype=np.bool_))


def test_an_empty_state_of_an_earlier_release_has_seen_nothing() -> None:
    assert Bursts.from_state({}).state() == Bursts().state()


@pytest.mark.parametrize(("rate", "length"), [(0.05, 3), (0.2, 3), (0.2, 10)])
def test_the_run_length_in_bursts_is_exact(rate: float, length: float) -> None:
    plan = cusum_plan(rate, 0.05, DECLARED, time_of(rate, length))
    random = np.random.default_rng(7)
    lengths = []
    for _ in range(400):
        wrong = in_bursts(20_000, rate, length, random)
        # Just after a wrong answer.
        wrong = wrong[int(wrong.argmax()) + 1 :]
        index = Cusum(plan).see(wrong)
        lengths.append(len(wrong) if index is None else index + 1)
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert abs(np.mean(lengths) - plan.run_length) < 3 * error
    assert DECLARED <= plan.run_length < 1.1 * DECLARED


def test_the_run_length_of_two_states_is_what_paper_and_pencil_give() -> None:
    # The first wrong answer, after a wrong one: 0.6 follow at once, the others after a wait of 1 / 0.1 more.
    found = average_run_length(0.2, up=1, down=1, threshold=1, block_length=3.0)
    assert found == pytest.approx(1 + 0.4 / 0.1)
    # A block length near 1 is nearly independent.
    near = average_run_length(0.2, up=7, down=2, threshold=50, block_length=1 + 1e-9)
    assert near == pytest.approx(average_run_length(0.2, up=7, down=2, threshold=50))


@pytest.mark.parametrize("block_length", [1.0, 1.2, 16.0])
@pytest.mark.parametrize(
    ("rate", "up", "down"), [(0.07, 13, 1), (0.3, 41, 18), (0.66, 150, 310), (0.495, 1, 1)]
)
def test_the_run_lengths_are_the_solution_of_the_equations(
    rate: float, up: int, down: int, block_length: float
) -> None:
    found = list(islice(run_lengths(rate, up=up, down=down, block_length=block_length), 700))
    correlation = (block_length - 1) / (block_length + 1)
    for threshold in (1, 2, 255, 256, 257, 700):
        rows = np.eye(2 * threshold)
        for state in range(2 * threshold):
            total, before = divmod(state, 2)
            wrong = correlation * before + (1 - correlation) * rate
            if total + up < threshold:
                rows[state, 2 * (total + up) + 1] -= wrong
            rows[state, 2 * max(total - down, 0)] -= 1 - wrong
        expected = np.linalg.solve(rows, np.ones(2 * threshold))[1]
        assert found[threshold - 1] == pytest.approx(expected, rel=1e-6)


def test_large_steps_are_solved_for_fewer_thresholds_and_keep_the_run_length() -> None:
    plan = cusum_plan(0.66, 0.01, 4000, 2.0)
    assert COST // (plan.up + plan.down) ** 2 < plan.threshold < LARGEST
    found = average_run_length(0.66, up=plan.up, down=plan.down, threshold=plan.threshold, block_length=2.0)
    assert 4000 <= plan.run_length <= found


def test_independent_answers_are_extrapolated_only_where_the_equations_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = cusum_plan(0.3, 0.01, 10_000)
    assert average_run_length(0.3, up=exact.up, down=exact.down, threshold=exact.threshold - 1) < 10_000
    monkeypatch.setattr(detectors, "COST", exact.threshold * (exact.up + exact.down) ** 2 // 8)
    estimated = cusum_plan.__wrapped__(0.3, 0.01, 10_000)
    assert exact.threshold <= estimated.threshold < 1.05 * exact.threshold
    found = average_run_length(0.3, up=exact.up, down=exact.down, threshold=estimated.threshold)
    assert 10_000 <= estimated.run_length <= found


def test_a_threshold_too_large_to_be_solved_for_keeps_the_run_length_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = cusum_plan(0.2, 0.05, 20_000, 16.0)
    monkeypatch.setattr(detectors, "LARGEST", exact.threshold // 2)
    estimated = cusum_plan.__wrapped__(0.2, 0.05, 20_000, 16.0)
    assert exact.threshold <= estimated.threshold < 1.05 * exact.threshold
    found = average_run_length(
        0.2, up=exact.up, down=exact.down, threshold=estimated.threshold, block_length=16.0
    )
    assert 20_000 <= estimated.run_length <= found
    monkeypatch.undo()
    monkeypatch.setattr(detectors, "COST", exact.threshold * (exact.up + exact.down) ** 2 // 2)
    assert cusum_plan.__wrapped__(0.2, 0.05, 20_000, 16.0) == estimated
    monkeypatch.undo()
    # The smallest increase and the rarest alarm that a pipeline may declare.
    assert cusum_plan(0.3, 0.01, 1e8, 64.0).run_length >= 1e8


def cusum(length: float) -> Detector:
    return Cusum.designed(0.2, increase=0.05, run_length=DECLARED, block_length=length)


def e_detector(length: float) -> Detector:
    return EDetector(0.2, run_length=DECLARED, block_length=length)


@pytest.mark.parametrize("make", [cusum, e_detector])
def test_the_block_length_1_leaves_the_arithmetic_as_it_is(make: Callable[[float], Detector]) -> None:
    corrected, plain = make(1.0), make(1.0)
    corrected.correct(8.0)
    corrected.correct(1.0)
    wrong = np.random.default_rng(8).random(5000) < 0.2
    for piece in np.split(wrong, 50):
        assert corrected.see(piece) == plain.see(piece)
        assert corrected.state() == plain.state()
    bare = Cusum.designed(0.2, increase=0.05, run_length=DECLARED)
    assert bare.plan == cusum_plan(0.2, 0.05, DECLARED, 1.0)


def test_a_block_length_that_falls_makes_no_alarm_by_itself() -> None:
    detector = Cusum.designed(0.05, increase=0.05, run_length=10_000, block_length=8.0)
    high, low = detector.threshold, cusum_plan(0.05, 0.05, 10_000).threshold
    steps = (int(high) - 1) // detector.plan.up
    assert detector.see(np.ones(steps, dtype=np.bool_)) is None
    reached = detector.statistic
    assert low < reached < high
    detector.correct(1.0)
    assert detector.threshold == low
    assert detector.statistic == reached * low // high, "as near to an alarm as before"
    assert detector.see(np.zeros(1, dtype=np.bool_)) is None
    assert detector.see(np.ones(10, dtype=np.bool_)) is not None
    for value in range(int(high)):
        scaled = Cusum(cusum_plan(0.05, 0.05, 10_000, 8.0), value)
        scaled.correct(1.0)
        assert scaled.statistic < low
    risen = Cusum(cusum_plan(0.05, 0.05, 10_000), low - 1)
    risen.correct(8.0)
    assert (risen.statistic, risen.threshold) == (low - 1, high)


def test_an_alarm_at_the_answer_that_is_measured_at_keeps_the_numbers_that_made_it() -> None:
    calm = in_bursts(FEWEST + SETTLED - 30, 0.2, 10, np.random.default_rng(16))
    config = PerformanceTrigger(tolerance=0.3, false_alarm_every=10_000, at_least=1)
    rise = np.ones(1000, dtype=np.bool_)
    (alarmed,) = cuts_of(config, answered(np.concatenate([calm, rise])), around=PROMISED)[:1]
    right = np.zeros(FEWEST + SETTLED - alarmed.records, dtype=np.bool_)
    moved = np.concatenate([right, calm, rise])
    (cut, *_) = cuts_of(config, answered(moved), around=PROMISED)
    assert cut.records == FEWEST + SETTLED
    assert cut.state["bursts"]["length"] > 1
    assert cut.decision["block_length"] is None
    assert cut.decision["statistic"] >= cut.decision["threshold"]


def test_states_of_earlier_releases_are_read() -> None:
    plan = {"acceptable": 0.2, "up": 7, "down": 2, "threshold": 139, "run_length": 10105.1}
    old = Cusum.from_state({"plan": plan, "value": 5})
    assert (old.plan.block_length, old.statistic, old.threshold) == (1.0, 5.0, 139.0)
    old.correct(8.0)
    assert old.threshold == 139.0, "it does not say what it was designed for"
    other = EDetector.from_state({"acceptable": 0.2, "run_length": 1000.0, "values": [1.0] * 5})
    assert other.state() == {
        "acceptable": 0.2,
        "run_length": 1000.0,
        "block_length": 1.0,
        "values": [1.0] * 5,
    }


def alarms(detector: Any, wrong: Bits, *, rate: float = 0.2, saved: Any = None) -> tuple[int, Any]:
    """Alarms of a watch over these answers, restarted after each with its saved state; and the last state."""
    config = PerformanceTrigger(
        detector=detector, tolerance=0.0, false_alarm_every=DECLARED, at_least=1, at_most=10_000
    )
    judge = Parrot(rate)
    cuts = cuts_of(config, answered(wrong), around=TriggerContext(judge=lambda: judge), state=saved)
    return sum(cut.decision["alarm"] for cut in cuts), cuts[-1].state


@pytest.mark.parametrize("detector", ["cusum", "e-detector"])
@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("length", [1, 3, 10, 30])
def test_a_stream_in_bursts_alarms_no_more_often_than_is_declared(
    detector: str, rate: float, length: float
) -> None:
    random, records = np.random.default_rng(9), 40_000
    _, measured = alarms(detector, in_bursts(records, rate, length, random), rate=rate)
    found = [
        alarms(detector, in_bursts(records, rate, length, random), rate=rate, saved=measured)[0]
        for _ in range(2)
    ]
    # The number of alarms varies about as much as a count does.
    most = len(found) * records / DECLARED
    assert sum(found) <= most + 2 * np.sqrt(most)


def test_a_measured_block_length_outlives_cuts_and_champions() -> None:
    random = np.random.default_rng(10)
    _, saved = alarms("cusum", in_bursts(20_000, 0.2, 10, random))
    assert saved["bursts"]["length"] > 4
    config = PerformanceTrigger(tolerance=0.0, false_alarm_every=DECLARED, at_least=1)
    around = TriggerContext(judge=lambda: Parrot(0.2, version=2))
    (cut, *_) = cuts_of(config, answered(np.ones(500, dtype=np.bool_)), around=around, state=saved)
    assert cut.decision["block_length"] == saved["bursts"]["length"]
    assert cut.state["bursts"]["version"] == 2
    uncorrected = cuts_of(config, answered(np.ones(500, dtype=np.bool_)), around=around)[0]
    assert uncorrected.decision["block_length"] is None
    assert uncorrected.decision["alarmed_at"] < cut.decision["alarmed_at"]


@pytest.mark.parametrize("chunk", [97, 5000])
def test_cuts_of_others_leave_what_was_measured(chunk: int) -> None:
    wrong = in_bursts(100_000, 0.2, 10, np.random.default_rng(11))
    performance = {"kind": "performance", "tolerance": 0.0, "false_alarm_every": 5000, "at_least": 1}
    held = AnyOfTrigger.model_validate(
        {"kind": "any-of", "any": [performance, {"kind": "records", "records": 3500}], "min_records": 3000}
    )
    cuts = cuts_of(held, answered(wrong), chunk=chunk, around=TriggerContext(judge=lambda: Parrot(0.2)))
    assert {cut.decision["child"] for cut in cuts} == {"performance", "records"}
    assert cuts == cuts_of(held, answered(wrong), chunk=333, around=TriggerContext(judge=lambda: Parrot(0.2)))
    assert cuts[-1].state["triggers"]["0"]["bursts"]["length"] > 1


def measured_on(wrong: Bits) -> Any:
    """The state of the trigger `performance` after these answers of version 1."""
    bursts = Bursts()
    bursts.follow(1)
    for piece in np.split(wrong, range(EVERY, len(wrong), EVERY)):
        bursts.see(piece)
    return {"bursts": bursts.state()}


def never_alarmed(*others: Any, **bounds: Any) -> AnyOfTrigger:
    """Any of `performance`, which finds no rise in answers wrong as often as promised, and others."""
    performance = {"kind": "performance", "tolerance": 0.5, "false_alarm_every": 100_000_000}
    return AnyOfTrigger.model_validate({"kind": "any-of", "any": [performance, *others], **bounds})


PROMISED = TriggerContext(judge=lambda: Parrot(0.2))


@pytest.mark.parametrize("chunk", [1, 97, 333, 100_000])
def test_bursts_are_measured_where_only_others_cut(chunk: int) -> None:
    wrong = in_bursts(9_700, 0.2, 10, np.random.default_rng(12))[: 9_700 if chunk > 1 else 3_300]
    cuts = cuts_of(never_alarmed({"records": 470}), answered(wrong), chunk=chunk, around=PROMISED, state=None)
    assert {cut.decision["child"] for cut in cuts} == {"records"}
    cut_off = 470 * len(cuts)
    assert cut_off == len(wrong) // 470 * 470
    assert cuts[-1].state["triggers"] == {"0": measured_on(wrong[:cut_off])}
    assert cuts[-1].state["triggers"]["0"]["bursts"]["length"] > 4


@pytest.mark.parametrize("sizes", [[], [1] * 400, [150] * 5])
def test_a_held_cut_keeps_what_was_followed_up_to_the_alarm_that_it_waits_for(sizes: list[int]) -> None:
    wrong = in_bursts(900, 0.2, 10, np.random.default_rng(13))
    held = never_alarmed({"records": 300}, min_records=700)
    cut = fed(held.watch({}, PROMISED), answered(wrong), sizes)
    assert cut is not None
    assert (cut.records, cut.state["triggers"]) == (700, {"0": measured_on(wrong[:300])})


def test_the_longest_wait_and_a_forced_cut_keep_all_that_was_measured() -> None:
    wrong = in_bursts(6_000, 0.2, 10, np.random.default_rng(14))
    expected = {"0": measured_on(wrong)}
    config = never_alarmed({"records": 50_000}, max_seconds=60)
    watch = config.watch({}, PROMISED)
    for piece in np.split(wrong, 4):
        assert watch.see(answered(piece), 1000.0, 1000.0) is None
    assert watch.forced("Asked for.", 1001.0).state["triggers"] == expected
    cut = watch.due(1060.0)
    assert cut is not None
    assert cut.state["triggers"] == expected
    late = watch.see(answered(wrong), 1061.0, 1061.0)
    assert late is not None
    assert (late.records, late.state["triggers"]) == (6_000, expected), "not the records after the cut"


def test_a_champion_that_is_gone_leaves_what_was_measured() -> None:
    saved = measured_on(in_bursts(6_000, 0.2, 10, np.random.default_rng(15)))
    cut = fed(
        PerformanceTrigger(first=100).watch(saved, TriggerContext()), answered(np.ones(100, dtype=np.bool_))
    )
    assert cut is not None
    assert cut.state == saved
