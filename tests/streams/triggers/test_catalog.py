"""What every trigger keeps: chunks change nothing, a saved state goes on, and a cut can be forced."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from streams.records import Records
from streams.triggers.catalog import (
    TRIGGERS,
    AnyOfTrigger,
    CostTrigger,
    PerformanceTrigger,
    RecordsTrigger,
    SecondsTrigger,
    ShiftTrigger,
    TriggerChoice,
    TriggerConfig,
    TriggerContext,
)
from tests.support.trigger_parts import Parrot, cuts_of, made, saved

ADAPTER: TypeAdapter[TriggerConfig] = TypeAdapter(TriggerChoice)
SHIFT = ShiftTrigger(window=100, every=60, first=150)
COST = CostTrigger(record_seconds_per_training_second=50, at_least=5)
EXAMPLES: list[TriggerConfig] = [
    RecordsTrigger(records=70),
    SecondsTrigger(seconds=300, lateness_seconds=20),
    SHIFT,
    ShiftTrigger(window=100, every=60, confirm=True),
    PerformanceTrigger(at_least=50, at_most=400),
    PerformanceTrigger(detector="e-detector", at_least=1, at_most=400),
    COST,
    AnyOfTrigger(any=(SHIFT, COST, SecondsTrigger(seconds=500))),
    AnyOfTrigger(any=(RecordsTrigger(records=40), SecondsTrigger(seconds=100)), min_records=90),
    AnyOfTrigger(any=(RecordsTrigger(records=40), COST), min_seconds=700, max_seconds=5000),
    AnyOfTrigger(any=(SecondsTrigger(seconds=100), PerformanceTrigger(at_least=1)), min_seconds=150),
]
EVERY = pytest.mark.parametrize("config", EXAMPLES, ids=lambda config: config.kind)

REFERENCE = np.random.default_rng(99).normal(size=(500, 2)).astype(np.float32)
AROUND = TriggerContext(
    reference=lambda: REFERENCE,
    judge=lambda: Parrot(0.1),
    costs=lambda: [(100, 9.0), (200, 12.0), (150, 11.0), (400, 20.0)],
)


def stream(seed: int, count: int = 900) -> Records:
    """Records that drift in every way: gaps and lies in time, moving features, a champion that gets worse."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(10.0, count)) + random.normal(0.0, 15.0, count)
    times[random.random(count) < 0.1] = np.nan
    times[random.random(count) < 0.02] += 4e9
    times[count // 2 :] += 200_000
    features = random.normal(size=(count, 2)).astype(np.float32)
    features[count // 3 :, 1] += 1.0
    wrong = random.random(count) < np.where(np.arange(count) < count // 2, 0.1, 0.4)
    features[:, 0] = wrong
    return made(count, times=times, features=features)


@EVERY
@pytest.mark.parametrize(("seed", "chunk"), [(0, 1), (1, 7), (2, 60), (3, 60), (4, 333), (5, 333)])
def test_chunks_and_restarts_change_no_cut(config: TriggerConfig, seed: int, chunk: int) -> None:
    records = stream(seed)
    whole = cuts_of(config, records, around=AROUND)
    assert len(whole) > 1
    assert cuts_of(config, records, chunk=chunk, around=AROUND) == whole


@EVERY
def test_a_cut_can_be_forced_at_any_time(config: TriggerConfig) -> None:
    watch = config.watch({}, AROUND)
    assert watch.forced("Now.", 0.0).records == 0
    assert watch.see(stream(0).take(slice(3)), 0.0, 0.0) is None
    cut = watch.forced("Now.", 0.0)
    assert (cut.reason, cut.records) == ("Now.", 3)
    assert cut.decision == {"trigger": config.kind, "forced": True, "records": 3}
    assert config.watch(saved(cut.state), AROUND).see(stream(0).take(slice(3, 5)), 0.0, 0.0) is None


@EVERY
def test_nothing_is_due_of_nothing(config: TriggerConfig) -> None:
    watch = config.watch({}, AROUND)
    assert watch.due(1e9) is None
    assert watch.see(made(0), 1e9, 1e9) is None
    watch.see_features(np.empty((0, 2), dtype=np.float32))
    assert watch.due(1e10) is None


@EVERY
def test_a_config_survives_being_written_and_read(config: TriggerConfig) -> None:
    assert ADAPTER.validate_json(config.model_dump_json()) == config


@EVERY
def test_reasons_are_one_sentence_or_say_what_held_it(config: TriggerConfig) -> None:
    for cut in cuts_of(config, stream(1), around=AROUND):
        assert cut.reason[0].isupper() or cut.reason[0].isdigit()
        assert cut.reason.endswith(".")
        assert cut.decision["trigger"] == config.kind
        assert cut.decision["records"] == cut.records


def test_every_kind_is_in_the_catalog_and_among_the_examples() -> None:
    assert list(TRIGGERS) == ["records", "seconds", "shift", "performance", "cost", "any-of"]
    assert {config.kind for config in EXAMPLES} == set(TRIGGERS)


@pytest.mark.parametrize("kind", TRIGGERS)
def test_every_kind_describes_its_fields(kind: str) -> None:
    for name, field in TRIGGERS[kind].model_fields.items():
        assert name == "kind" or field.description, name


def test_a_trigger_without_a_kind_counts_records() -> None:
    assert ADAPTER.validate_python({"records": 100}) == RecordsTrigger(records=100)
    assert ADAPTER.validate_python({"kind": "any-of", "any": [{"records": 5}]}) == AnyOfTrigger(
        any=(RecordsTrigger(records=5),)
    )


@pytest.mark.parametrize("kind", ["shift", "performance", "cost"])
def test_what_can_have_defaults_needs_nothing_but_its_kind(kind: str) -> None:
    assert ADAPTER.validate_python({"kind": kind}) == TRIGGERS[kind]()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"records": 0},
        {"records": 5, "x": 1},
        {"kind": "full-moon"},
        {"kind": "seconds", "seconds": 0},
        {"kind": "seconds", "seconds": float("inf")},
        {"kind": "shift", "alpha": 0.5},
        {"kind": "performance", "detector": "oracle"},
        {"kind": "cost", "record_seconds_per_training_second": 0},
        "records",
        None,
        7,
    ],
)
def test_wrong_configs_are_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)


def test_configs_are_read_without_scipy() -> None:
    script = "import sys, streams.triggers.catalog; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
