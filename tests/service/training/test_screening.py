"""The data guard before learning: judged once, on the worst experience, with the verdict it always had."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.gate.base import DataEvidence, Evidence, Finding, GateConfig
from service.gate.decide import decide
from service.gate.guards import batch as batch_guards
from service.gate.screen import profile
from service.storage import StoreLocation
from service.training.screening import NEWEST_HOLDOUTS, OLDER_HOLDOUTS, reference_holdouts, screen
from service.training.tasks import RESULT_FILE, Result, Stored, Task, read_result, write_result
from strategies.base import StreamInfo
from streams.base import Experience
from tests.support.homes import digits, home, with_shuffled_labels

CLASSES = ("a", "b")
CONFIG = GateConfig()


def experience(index: int, *, records: int = 300, shuffled: bool = False, broken: int = 0) -> Experience:
    """Two well separated clouds of points; some with wrong labels, or with NaN."""
    random = np.random.default_rng(index)
    labels = np.arange(records, dtype=np.int64) % 2
    inputs = random.normal(labels[:, None] * 6.0, 1.0, (records, 3)).astype(np.float32)
    inputs[:broken, 0] = np.nan
    shown = random.permutation(labels) if shuffled else labels
    ids = np.array([f"{index}-{row}" for row in range(records)])
    return Experience(index, inputs, shown, ids, {}, f"digest {index}")


def task(folder: Path, *, past_holdouts: tuple[Stored, ...] = ()) -> Task:
    good = experience(100)
    return Task(
        update_id="u1",
        folder=folder / "u1",
        store=StoreLocation(folder / "store", bucket=None, cache_bytes=0),
        champion=None,
        strategy={"name": "naive"},
        stream=StreamInfo((3,), CLASSES),
        gate=CONFIG,
        learn=(),
        new_holdouts=(),
        past_holdouts=past_holdouts,
        missing_baselines=(),
        references=(profile(good.inputs, good.labels),),
    )


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[DataEvidence]:
    """The evidence of each time that the data guard was asked. The guard itself answers."""
    asked: list[DataEvidence] = []
    guard = batch_guards.data

    def counting(evidence: DataEvidence, config: GateConfig) -> tuple[Finding, ...]:
        asked.append(evidence)
        return guard(evidence, config)

    monkeypatch.setattr(batch_guards, "data", counting)
    return asked


def evidence_of(result: Result) -> Evidence:
    return Evidence(data=result.data, learnt=False, data_findings=result.data_findings)


@pytest.mark.parametrize(
    ("part", "answer"),
    [
        (experience(0), "pass"),
        (experience(0, shuffled=True), "fail"),
        (experience(0, broken=4), "fail"),
        (experience(0, records=20), "undecided"),
    ],
    ids=["sound", "shuffled", "broken", "small"],
)
def test_the_verdict_on_stored_findings_is_that_on_the_evidence_alone(
    part: Experience, answer: str, tmp_path: Path, judged: list[DataEvidence]
) -> None:
    result = screen(task(tmp_path), [part], None)
    write_result(result, tmp_path / RESULT_FILE)
    stored = read_result(tmp_path)
    assert stored is not None
    assert stored.data_findings == result.data_findings
    assert len(judged) == 1
    verdict = decide(evidence_of(stored), CONFIG)
    assert len(judged) == 1
    afresh = decide(replace(evidence_of(stored), data_findings=()), CONFIG)
    assert len(judged) == 2
    assert verdict.as_dict() == afresh.as_dict()
    assert repr(verdict.as_dict()) == repr(afresh.as_dict()), "whole numbers stay whole"
    assert answer in {finding.answer for finding in verdict.findings if finding.guard != "gate"}


def test_each_experience_is_judged_once_and_the_worst_decides(
    tmp_path: Path, judged: list[DataEvidence]
) -> None:
    parts = [experience(0), experience(1, shuffled=True), experience(2, records=20)]
    result = screen(task(tmp_path), parts, None)
    assert len(judged) == 3
    assert result.stopped == (1,)
    assert result.data is judged[1]
    assert {finding.answer for finding in result.data_findings} == {"pass", "fail"}
    assert result.screens.keys() == {0, 1, 2}


def test_of_equally_good_experiences_the_newest_is_the_evidence(tmp_path: Path) -> None:
    result = screen(task(tmp_path), [experience(0, records=300), experience(1, records=302)], None)
    assert result.stopped == ()
    assert result.data.records == 302


def test_a_result_stored_without_findings_is_judged_by_the_gate(
    tmp_path: Path, judged: list[DataEvidence]
) -> None:
    result = replace(screen(task(tmp_path), [experience(0, shuffled=True)], None), data_findings=())
    assert decide(evidence_of(result), CONFIG).outcome == "reject"
    assert len(judged) == 2


def test_new_data_is_compared_with_the_newest_holdouts_and_some_older_ones(tmp_path: Path) -> None:
    past = tuple(Stored(index, f"digest {index}") for index in range(40))
    chosen = [part.experience for part in reference_holdouts(task(tmp_path, past_holdouts=past))]
    assert chosen[:NEWEST_HOLDOUTS] == [39, 38, 37, 36, 35]
    assert len(chosen) == NEWEST_HOLDOUTS + OLDER_HOLDOUTS
    assert (chosen[NEWEST_HOLDOUTS], chosen[-1]) == (34, 0)


def test_an_update_asks_the_data_guard_once_an_experience(
    tmp_path: Path, mlflow_store: Path, judged: list[DataEvidence]
) -> None:
    with home(tmp_path / "home", mlflow_store) as each:
        each.learn(digits(0))
        assert len(judged) == 1
        verdict = each.learn(with_shuffled_labels(digits(1)))
        assert len(judged) == 2
        assert verdict.outcome == "reject"
        assert "labels" in verdict.reason
        assert each.champion() == 1
