"""Trigger that cuts when the champion's error on arriving records has risen above its holdout error."""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from streams.records import Records
from streams.triggers.base import Cut, Judge, RecordWatch, TriggerConfig, TriggerContext, TriggerState
from streams.triggers.bursts import Bursts
from streams.triggers.detectors import Cusum, Detector, EDetector, bounded_rate

LATEST = 1000
"""How many of the latest answers the reason of a cut is taken from."""


class PerformanceTrigger(TriggerConfig):
    """Cut when the champion's error on arriving labels has risen above that on its holdout."""

    kind: Literal["performance"] = "performance"
    detector: Literal["cusum", "e-detector"] = Field(
        "cusum",
        description="cusum: for a rise by increase; e-detector: for any rise, sooner when it is large.",
    )
    tolerance: float = Field(
        0.01, ge=0, le=0.5, description="An error rate up to this much above the holdout's is accepted."
    )
    increase: float = Field(
        0.05, ge=0.01, le=0.5, description="cusum: a rise by this much above that is found soonest."
    )
    false_alarm_every: int = Field(
        10_000,
        ge=100,
        le=100_000_000,
        description="Average number of records to a false alarm, at the highest error rate that is accepted; "
        "in bursts of errors too, once they are measured.",
    )
    first: int = Field(
        1000, ge=1, le=10_000_000, description="Records of an experience while there is no champion."
    )
    at_least: int = Field(
        200, ge=1, le=10_000_000, description="After an earlier alarm, so many records are waited for."
    )
    at_most: int = Field(
        100_000, ge=1, le=10_000_000, description="So many records are cut without an alarm."
    )

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.at_least > self.at_most:
            raise ValueError("at_least must not be above at_most")
        return self

    @property
    def least_records(self) -> int:
        return self.at_least

    def watch(self, state: TriggerState, context: TriggerContext) -> RecordWatch:
        """See `TriggerConfig`."""
        return PerformanceWatch(self, state, context)


class PerformanceWatch(RecordWatch):
    """Runs a detector over the champion's answers to all records; a new champion restarts it.

    Its state is what was measured of bursts of errors, which outlives cuts and champions.
    """

    def __init__(self, config: PerformanceTrigger, state: TriggerState, context: TriggerContext) -> None:
        super().__init__(config.kind)
        self._bursts = Bursts.from_state(state.get("bursts", {}))
        self._bursts_before = self._bursts
        """As they were before the latest chunk."""
        self._seen_before = 0
        self._answers: NDArray[np.bool_] = np.empty(0, dtype=np.bool_)
        """Those of the latest chunk that were followed."""
        self._config = config
        self._context = context
        self._detector: Detector | None = None
        self._version: int | None = None
        self._length: float | None = None
        """The block length that the detector goes by."""
        self._acceptable = 0.0
        self._judged = 0
        self._latest: NDArray[np.bool_] = np.empty(0, dtype=np.bool_)
        self._alarm: Cut | None = None

    def _follow(self, records: Records, arrival: float) -> Cut | None:
        config = self._config
        total = self.seen + len(records)
        self._seen_before, self._bursts_before = self.seen, self._bursts.copy()
        self._answers = self._answers[:0]
        if self._alarm is None:
            judge = self._context.judge()
            if judge is None and self._version is None:
                return self._without_champion() if total >= config.first else None
            if judge is not None:
                self._alarm = self._judge(judge, records)
        if self._alarm is not None:
            return self._alarm if total >= self._alarm.records else None
        if total >= config.at_most:
            return self._cut(
                config.at_most,
                f"{config.at_most:,} records have arrived without an alarm.",
                state=_state_of(self._bursts),
                alarm=False,
                judged=self._judged,
                version=self._version,
            )
        return None

    def _without_champion(self) -> Cut:
        first = self._config.first
        reason = f"{first:,} records have arrived, and there is no champion yet."
        return self._cut(first, reason, state=_state_of(self._bursts), first=True)

    def lasting_at(self, records: int) -> TriggerState:
        """See `RecordWatch`: all of it, since bursts are measured on answers, wherever a cut is made."""
        answers = self._answers[: max(0, records - self._seen_before)]
        if len(answers) == len(self._answers):
            return _state_of(self._bursts)
        bursts = self._bursts_before.copy()
        if len(answers):
            assert self._version is not None, "a champion has given these answers"
            bursts.follow(self._version)
        while len(answers):
            piece, answers = np.split(answers, [bursts.until_measured])
            bursts.see(piece)
        return _state_of(bursts)

    def _state_now(self, now: float) -> TriggerState:
        return _state_of(self._bursts)

    def _judge(self, judge: Judge, records: Records) -> Cut | None:
        """Follow the champion's answers; the cut of an alarm, which may have to wait for more records."""
        if judge.version != self._version:
            self._start(judge)
        assert self._detector is not None, "a detector is started for every champion"
        room = max(0, self._config.at_most - self.seen)
        wrong = judge.wrong(records.features[:room], records.labels[:room])
        index = self._detect(wrong)
        answered = wrong if index is None else wrong[: index + 1]
        self._answers = answered
        self._judged += len(answered)
        self._latest = np.concatenate([self._latest, answered[-LATEST:]])[-LATEST:]
        return None if index is None else self._alarmed(self.seen + index + 1, self._detector, judge)

    def _detect(self, wrong: NDArray[np.bool_]) -> int | None:
        """The index of the alarm; the detector is corrected between two answers when bursts are measured."""
        assert self._detector is not None, "a detector is started for every champion"
        start = 0
        while start < len(wrong):
            piece = wrong[start : start + self._bursts.until_measured]
            index = self._detector.see(piece)
            measured = self._bursts.see(piece if index is None else piece[: index + 1])
            if index is not None:
                return start + index
            if measured:
                self._correct()
            start += len(piece)
        return None

    def _start(self, judge: Judge) -> None:
        config, self._length = self._config, self._bursts.length
        length = self._length or 1.0
        self._version, self._judged, self._latest = judge.version, 0, self._latest[:0]
        self._bursts.follow(judge.version)
        self._acceptable = bounded_rate(judge.error_rate + config.tolerance)
        if config.detector == "cusum":
            self._detector = Cusum.designed(
                self._acceptable,
                increase=config.increase,
                run_length=config.false_alarm_every,
                block_length=length,
            )
        else:
            self._detector = EDetector(
                self._acceptable, run_length=config.false_alarm_every, block_length=length
            )

    def _correct(self) -> None:
        """Go on with the evidence so far, judged by the block length as it is measured now."""
        assert self._detector is not None, "a detector is started for every champion"
        self._length = self._bursts.length
        self._detector.correct(self._length or 1.0)

    def _alarmed(self, alarmed_at: int, detector: Detector, judge: Judge) -> Cut:
        config = self._config
        wrong, latest = since_the_rise(self._latest, self._acceptable + config.increase / 2)
        return self._cut(
            max(alarmed_at, config.at_least),
            f"Version {judge.version} got {wrong:,} of the last {latest:,} records wrong; at most "
            f"{self._acceptable:.1%} is accepted ({config.detector}, one false alarm in "
            f"{config.false_alarm_every:,} records).",
            state=_state_of(self._bursts),
            alarm=True,
            alarmed_at=alarmed_at,
            detector=config.detector,
            statistic=detector.statistic,
            threshold=detector.threshold,
            version=judge.version,
            error_rate=judge.error_rate,
            acceptable=self._acceptable,
            judged=self._judged,
            latest=latest,
            latest_wrong=wrong,
            false_alarm_every=config.false_alarm_every,
            block_length=self._length,
        )


def _state_of(bursts: Bursts) -> TriggerState:
    """Empty before the first answer."""
    return {} if bursts.version is None else {"bursts": bursts.state()}


def since_the_rise(wrong: NDArray[np.bool_], between: float) -> tuple[int, int]:
    """Wrong answers, and all answers, since the moment when the error rate most probably rose.

    That is the moment since which the answers exceed `between`, a rate between the old and the new, by most.
    """
    excess = np.cumsum(wrong[::-1] - between)
    latest = int(excess.argmax()) + 1
    return int(wrong[-latest:].sum()), latest
