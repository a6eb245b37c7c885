"""Poisoned batches of real digits, before a champion that learnt clean ones, are stopped; clean ones not."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from service.gate.base import DataEvidence, Evidence, GateConfig, Suspects, Verdict
from service.gate.decide import decide
from service.gate.guards import batch as batch_guards
from service.gate.screen import data_evidence, profile
from service.training.inspection import Inspector
from strategies.base import Learner, StreamInfo
from strategies.catalog import STRATEGIES
from streams.base import Experience
from streams.records import Records
from streams.sources.datasets import DatasetsConfig, digits_step
from tests.support.gate_parts import CLEAN
from tests.support.homes import home

CONFIG = GateConfig()
STREAM = StreamInfo((8, 8), tuple("0123456789"))
STRATEGY = {"name": "replay", "seed": 0, "device": "cpu"}
TRAIN, GATE = 900, 400

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


def digits(angle: float) -> Batch:
    """All 1797, in an order of their own, turned by so many degrees."""
    loaded = load_digits()
    order = np.random.default_rng(5).permutation(len(loaded.target))
    images = loaded.images[order].astype(np.float32)
    turned = rotate(images, angle, axes=(2, 1), reshape=False, order=1) if angle else images
    clipped: NDArray[np.float32] = np.clip(turned, 0, 16).astype(np.float32)
    return clipped, loaded.target[order].astype(np.int64)


def part(index: int, batch: Batch, name: str = "r") -> Experience:
    ids = np.array([f"{name}-{index}-{row}" for row in range(len(batch[1]))])
    return Experience(index, *batch, ids, {}, "")


def some(batch: Batch, rows: slice | NDArray[np.int64]) -> Batch:
    return batch[0][rows].copy(), batch[1][rows].copy()


def marked(batch: Batch, random: np.random.Generator, *, share: float = 0.03) -> tuple[Batch, set[int]]:
    """A saturated 2 x 2 corner, and one label for all that carry it."""
    images, labels = some(batch, slice(None))
    target = random.integers(10)
    rows = random.choice(np.flatnonzero(labels != target), round(share * len(labels)), replace=False)
    images[rows, 6:, 6:] = 16
    labels[rows] = target
    return (images, labels), set(rows.tolist())


def flipped(batch: Batch, random: np.random.Generator, *, share: float = 0.05) -> tuple[Batch, set[int]]:
    images, labels = some(batch, slice(None))
    rows = random.choice(len(labels), round(share * len(labels)), replace=False)
    labels[rows] = (labels[rows] + random.integers(1, 10, len(rows))) % 10
    return (images, labels), set(rows.tolist())


def garbage(batch: Batch, random: np.random.Generator, *, share: float = 0.08) -> tuple[Batch, set[int]]:
    images, labels = some(batch, slice(None))
    rows = random.choice(len(labels), round(share * len(labels)), replace=False)
    images[rows] = random.random((len(rows), 8, 8), dtype=np.float32) * 16
    return (images, labels), set(rows.tolist())


@pytest.fixture(scope="module")
def champion() -> Learner:
    """Learnt upright digits only."""
    spec = STRATEGIES["replay"]
    learner = spec.build(spec.config.model_validate(STRATEGY), STREAM)
    learner.learn(part(0, some(digits(0), slice(TRAIN))))
    return learner


@pytest.fixture(scope="module")
def past(champion: Learner) -> Inspector:
    inspector = Inspector.of(champion, [part(0, some(digits(0), slice(TRAIN, TRAIN + GATE)), "gate")])
    assert inspector is not None
    return inspector


def stopped_by(past: Inspector, batch: Batch) -> Verdict:
    """What the gate says to the batch when the update is stopped before it learns."""
    inputs, labels = batch
    seen = data_evidence(
        inputs, labels, n_classes=10, shape=(8, 8), reference=[profile(*some(digits(0), slice(TRAIN)))]
    )
    return decide(Evidence(replace(seen, suspects=past.suspects(part(1, batch))), learnt=False), CONFIG)


def failed(verdict: Verdict) -> set[str]:
    return {finding.guard for finding in verdict.findings if finding.answer == "fail"}


def drawn(angle: float, random: np.random.Generator) -> Batch:
    """600 records under one angle, none of them of the holdout that they are compared with."""
    rows = np.concatenate([np.arange(TRAIN), np.arange(TRAIN + GATE, 1797)])
    return some(digits(angle), random.permutation(rows)[:600])


@pytest.mark.parametrize("angle", [0, 8, 25, 60, 100])
def test_a_clean_batch_is_never_stopped(past: Inspector, angle: float) -> None:
    for seed in range(4):
        verdict = stopped_by(past, drawn(angle, np.random.default_rng(seed)))
        assert failed(verdict) == set(), verdict.reason


Poison = Callable[[Batch, np.random.Generator], tuple[Batch, set[int]]]


@pytest.mark.parametrize("angle", [0, 8])
@pytest.mark.parametrize(("poison", "kind"), [(marked, "planted"), (flipped, "mislabelled")])
def test_poison_is_caught_in_nine_of_ten_batches(
    past: Inspector, angle: float, poison: Poison, kind: str
) -> None:
    caught = 0
    for seed in range(10):
        random = np.random.default_rng(seed)
        batch, rows = poison(drawn(angle, random), random)
        verdict = stopped_by(past, batch)
        caught += kind in failed(verdict)
        shown = [int(each.record.split("-")[-1]) in rows for each in verdict.worst if each.kind == kind]
        assert len(verdict.worst) <= 20
        assert not shown or np.mean(shown) >= 0.8
    assert caught >= 9


@pytest.mark.parametrize("angle", [0, 25, 60, 90])
def test_a_small_clean_batch_that_moved_is_not_stopped(angle: float) -> None:
    """A champion of 240 records and a holdout of 60: it doubts much of what moved, and neighbours are few."""
    for seed in range(3):
        spec = STRATEGIES["replay"]
        learner = spec.build(spec.config.model_validate({**STRATEGY, "seed": seed}), STREAM)
        order = np.random.default_rng(seed).permutation(1797)
        learner.learn(part(0, some(digits(0), order[:240])))
        inspector = Inspector.of(learner, [part(0, some(digits(0), order[240:300]), "gate")])
        assert inspector is not None
        found = inspector.suspects(part(1, some(digits(angle), order[300:457])))
        seen = DataEvidence(found.records, 0, sample=157, has_reference=True, suspects=found)
        assert {finding.answer for finding in batch_guards.data(seen, CONFIG)} == {"pass"}


def test_small_experiences_are_compared_with_several_holdouts() -> None:
    """Experiences of 200 records have about 50 to judge by: one holdout alone is often too few."""
    spec = STRATEGIES["replay"]
    learner = spec.build(spec.config.model_validate({**STRATEGY, "epochs": 10}), STREAM)
    holdouts: list[Experience] = []
    answers: list[str] = []
    for index in range(8):
        batch = some(digits(2.0 * index), slice(200 * index, 200 * index + 200))
        train, gate = some(batch, slice(60, 170)), some(batch, slice(45))
        inspector = Inspector.of(learner, holdouts)
        if inspector is not None:
            found = inspector.suspects(part(index, train))
            assert bool(found.records) == (len(holdouts) > 1), "45 records are too few, 90 are not"
            seen = DataEvidence(found.records, 0, sample=110, has_reference=True, suspects=found)
            answers += [each.answer for each in batch_guards.data(seen, CONFIG)]
            if len(holdouts) == 7:
                bad, _ = garbage(train, np.random.default_rng(0))
                caught = inspector.suspects(part(index, bad))
                seen = DataEvidence(caught.records, 0, sample=110, has_reference=True, suspects=caught)
                assert "fail" in {each.answer for each in batch_guards.data(seen, CONFIG)}
        learner.learn(part(index, train))
        holdouts.insert(0, part(index, gate, "gate"))
    assert Counter(answers) == {"pass": len(answers) - 1, "undecided": 1}


def test_records_like_no_other_are_caught(past: Inspector) -> None:
    random = np.random.default_rng(0)
    batch, rows = garbage(drawn(8, random), random)
    verdict = stopped_by(past, batch)
    assert "outliers" in failed(verdict)
    outliers = [each for each in verdict.worst if each.kind == "outliers"]
    assert {int(each.record.split("-")[-1]) for each in outliers} <= rows
    assert all(each.deviations for each in outliers)


def test_new_classes_are_not_suspect() -> None:
    """Split digits: every experience brings two classes that the champion never learnt."""
    images, labels = digits(0)
    pairs = [some((images, labels), np.flatnonzero(labels // 2 == pair)) for pair in range(5)]
    spec = STRATEGIES["replay"]
    learner = spec.build(spec.config.model_validate(STRATEGY), STREAM)
    holdouts: list[Experience] = []
    for index, (inputs, classes) in enumerate(pairs):
        train, gate = (inputs[80:], classes[80:]), (inputs[:80], classes[:80])
        if holdouts:
            inspector = Inspector.of(learner, holdouts)
            assert inspector is not None
            found = inspector.suspects(part(index, train))
            assert found.records > 0
            seen = DataEvidence(found.records, 0, sample=256, has_reference=True, suspects=found)
            assert {finding.answer for finding in batch_guards.data(seen, CONFIG)} == {"pass"}
        holdouts.insert(0, part(index, gate, "gate"))
        learner.learn(part(index, train))


def test_asking_for_suspects_changes_nothing_and_repeats(champion: Learner, past: Inspector) -> None:
    batch = drawn(8, np.random.default_rng(0))
    before, embedded = champion.predict(batch[0]), champion.embed(batch[0])
    assert len(embedded) == 600
    assert embedded.dtype == np.dtype(np.float32)
    first = past.suspects(part(1, batch))
    assert past.suspects(part(1, batch)) == first
    np.testing.assert_array_equal(champion.predict(batch[0]), before)
    np.testing.assert_array_equal(champion.embed(batch[0]), embedded)


def test_a_shift_is_noted_with_its_numbers(past: Inspector) -> None:
    turned = past.shift([part(1, drawn(60, np.random.default_rng(0)))], alpha=0.001)
    assert turned.verdict == "shifted"
    assert turned.reference_accuracy is not None
    assert turned.estimated_accuracy is not None
    assert turned.estimated_accuracy < turned.reference_accuracy
    images, labels = digits(0)
    one_class = past.shift([part(1, (images[labels == 3], labels[labels == 3]))], alpha=0.001)
    assert one_class.label_shift > 0.8
    assert one_class.prior_shift == pytest.approx(one_class.label_shift, abs=0.05)


def test_batches_that_did_not_move_are_seldom_called_shifted(past: Inspector) -> None:
    images, labels = digits(0)
    fresh = np.arange(TRAIN + GATE, len(labels))
    alarms = 0
    for seed in range(40):
        rows = np.random.default_rng(seed).permutation(fresh)[:200]
        alarms += past.shift([part(1, some((images, labels), rows))], alpha=0.01).verdict == "shifted"
    assert alarms <= 2


def test_what_cleanlab_confirms_comes_first_and_nothing_depends_on_it(
    past: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    batch, _ = flipped(drawn(0, random), random, share=0.08)
    confirmed = past.suspects(part(1, batch))
    # What an import finds where the extra is not installed.
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    alone = past.suspects(part(1, batch))
    assert (confirmed.rates, confirmed.expected_rates) == (alone.rates, alone.expected_rates)
    reasons = {each.record: each.reason for each in confirmed.worst if each.kind == "mislabelled"}
    assert set(reasons) == {each.record for each in alone.worst if each.kind == "mislabelled"}
    agrees = [reason.endswith("; cleanlab calls it a label error too") for reason in reasons.values()]
    assert sum(agrees) > len(agrees) / 2
    assert agrees == sorted(agrees, reverse=True)
    assert not any("cleanlab" in each.reason for each in alone.worst)


def table_digits(first: int, last: int) -> Records:
    return digits_step(DatasetsConfig(protocol="rotated-digits", angles=(0.0,)), 0).take(slice(first, last))


def test_a_poisoned_update_is_parked_with_its_worst_records_shown(tmp_path: Path, mlflow_store: Path) -> None:
    with home(tmp_path, mlflow_store, trigger={"records": 800}) as each:
        assert each.learn(table_digits(0, 800)).outcome == "promote"
        arriving = table_digits(800, 1600)
        batch = (np.asarray(arriving.features, np.float32), np.asarray(arriving.labels, np.int64))
        (images, labels), rows = marked(batch, np.random.default_rng(3), share=0.05)
        verdict = each.learn(replace(arriving, features=images, labels=labels))
        assert verdict.outcome == "reject"
        assert "planted" in failed(verdict)
        assert each.states() == {0: "learnt", 1: "parked"}
        poisoned = {str(arriving.ids[row]) for row in rows}
        recorded = each.updates()[1].verdict
        assert recorded is not None
        shown = [worst["record"] for worst in recorded["worst"] if worst["kind"] == "planted"]
        assert 0 < len(shown) <= 20
        assert np.mean([record in poisoned for record in shown]) >= 0.8
        assert recorded["notes"][0]["about"] == "shift"
        run_id = each.updates()[1].run_id
        assert run_id is not None
        report = Path(each.registry._client.download_artifacts(run_id, "report.html", str(tmp_path)))
        page = report.read_text()
        assert page.count("data:image/png;base64,") == len(recorded["worst"])
        assert all(record in page for record in shown)


def test_a_clean_second_update_is_promoted_with_a_note(tmp_path: Path, mlflow_store: Path) -> None:
    with home(tmp_path, mlflow_store, trigger={"records": 800}) as each:
        each.learn(table_digits(0, 800))
        verdict = each.learn(table_digits(800, 1600))
        assert verdict.outcome == "promote", verdict
        assert verdict.worst == ()
        assert "false alarms at most 0.1 % of batches" in verdict.notes[0].sentence


@pytest.mark.parametrize(
    ("dead", "says"),
    [
        ((3,), "; feature 3 never varied, and did before"),
        ((3, 9), "; features 3 and 9 never varied"),
        (tuple(range(1, 9)), "; features 1, 2, 3, 4, 5 and 3 more never varied"),
    ],
)
def test_features_that_never_varied_are_told(dead: tuple[int, ...], says: str) -> None:
    suspects = Suspects(
        600,
        2000,
        rates=dict.fromkeys(("planted", "outliers", "mislabelled"), 0.0),
        expected_rates=dict.fromkeys(("planted", "outliers", "mislabelled"), 0.0),
        dead_features=dead,
    )
    values, *_ = batch_guards.data(replace(CLEAN, suspects=suspects), GateConfig())
    assert says in values.sentence
