"""What every learner of the catalog promises; a new entry is tested for free."""

import gc
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from strategies.base import (
    ExperienceUnfitError,
    Learner,
    LearningDivergedError,
    StateError,
    StrategyError,
    StreamInfo,
)
from strategies.catalog import STRATEGIES
from strategies.learning.state import LearnerState, SavableLearner, load_any
from streams.base import Experience

INFO = StreamInfo(shape=(3, 4), classes=("a", "b", "c", "d", "e"))
# Sizes that a tiny stream reaches.
SETTINGS: dict[str, dict[str, Any]] = {
    name: {"capacity": 20}
    for name in ("replay", "er-ace", "er-aml", "mir", "der", "a-gem", "gem", "gdumb", "icarl", "scr")
}
SETTINGS["combined"] = {"parts": ({"name": "replay", "capacity": 20}, {"name": "lwf"})}
COMBINATIONS: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"name": "ewc"}, {"name": "replay", "capacity": 20}),
    ({"name": "der", "capacity": 20}, {"name": "lwf"}, {"name": "mas"}),
    ({"name": "a-gem", "capacity": 20}, {"name": "si"}),
    ({"name": "lwf"}, {"name": "averaging"}, {"name": "ema"}),
    ({"name": "er-ace", "capacity": 20}, {"name": "lwf"}, {"name": "si"}, {"name": "ewc"}),
    ({"name": "lwf"}, {"name": "er-aml", "capacity": 20}, {"name": "mas"}),
    ({"name": "mir", "capacity": 20}, {"name": "ewc"}, {"name": "lwf"}),
    ({"name": "si"}, {"name": "gem", "capacity": 20}, {"name": "lwf"}),
)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "weight_decay": 0.01},
    "sgd": {"optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.9},
}
STREAM = ((1, 3), (3, 0), (0, 1), (4, 1))
"""Classes of each experience: ids out of order, classes that come back, and one never seen."""

TAKES_NO_STEP = ("slda",)
"""No step can be too large there; tests/strategies/plugins/test_discriminant.py feeds it NaN."""

every_strategy = pytest.mark.parametrize("name", list(STRATEGIES))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build(name: str, **settings: Any) -> SavableLearner:
    small = {"hidden": (16,), "epochs": 2, "batch_size": 16, "device": "cpu"}
    spec = STRATEGIES[name]
    learner = spec.build(spec.config(**(small | SETTINGS.get(name, {}) | settings)), INFO)
    assert isinstance(learner, SavableLearner)
    return learner


def make_experience(index: int, *, records: int = 40, classes: tuple[int, ...] | None = None) -> Experience:
    draw = np.random.default_rng(index)
    labels = draw.choice(classes or STREAM[index % len(STREAM)], records).astype(np.int64)
    inputs = draw.normal(size=(records, *INFO.shape)).astype(np.float32) + labels[:, None, None]
    inputs.flags.writeable = labels.flags.writeable = False
    ids = np.array([f"{index}-{i}" for i in range(records)])
    return Experience(index, inputs.astype(np.float32), labels, ids, {}, "")


def taught(name: str, experiences: int = 2, **settings: Any) -> SavableLearner:
    learner = build(name, **settings)
    for index in range(experiences):
        learner.learn(make_experience(index))
    return learner


def digest(saved: LearnerState) -> str:
    found = hashlib.sha256(json.dumps([saved.facts, saved.config], sort_keys=True).encode())
    for name in sorted(saved.tensors):
        tensor = saved.tensors[name].detach().contiguous()
        found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def global_randomness() -> tuple[bytes, str, str]:
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())


@every_strategy
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_reloaded_learner_goes_on_bit_for_bit(name: str, optimizer: str, tmp_path: Path) -> None:
    learner = taught(name, **OPTIMIZERS[optimizer])
    learner.save(tmp_path / "saved")
    reloaded = STRATEGIES[name].load(tmp_path / "saved")
    assert isinstance(reloaded, SavableLearner)
    assert digest(reloaded.state()) == digest(learner.state())
    for index in (2, 3):  # the second of them grows the head
        assert reloaded.learn(make_experience(index)).losses == learner.learn(make_experience(index)).losses
        assert digest(reloaded.state()) == digest(learner.state())


@pytest.mark.parametrize("parts", COMBINATIONS, ids=lambda parts: "+".join(part["name"] for part in parts))
def test_a_combination_goes_on_bit_for_bit_and_predicts_purely(
    parts: tuple[dict[str, Any], ...], tmp_path: Path
) -> None:
    learner = taught("combined", parts=parts)
    learner.save(tmp_path / "saved")
    reloaded = load_any(tmp_path / "saved", STRATEGIES)
    assert isinstance(reloaded, SavableLearner)
    assert digest(taught("combined", parts=parts).state()) == digest(learner.state())
    for index in (2, 3):
        learner.learn(make_experience(index))
        reloaded.predict(make_experience(9).inputs)
        reloaded.learn(make_experience(index))
        assert digest(reloaded.state()) == digest(learner.state())


@every_strategy
def test_a_learner_saved_before_it_learnt_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    learner = build(name)
    learner.save(tmp_path / "saved")
    reloaded = load_any(tmp_path / "saved", STRATEGIES)
    assert isinstance(reloaded, SavableLearner)
    for index in (0, 1):
        learner.learn(make_experience(index))
        reloaded.learn(make_experience(index))
    assert digest(reloaded.state()) == digest(learner.state())


@every_strategy
def test_the_same_seed_gives_the_same_learner(name: str) -> None:
    first = taught(name)
    torch.rand(3)
    assert digest(taught(name).state()) == digest(first.state())
    other = taught(name, seed=1)
    inputs = make_experience(0).inputs
    assert not np.array_equal(other.predict(inputs), first.predict(inputs))


@every_strategy
def test_predict_changes_nothing(name: str) -> None:
    learner = taught(name)
    before, randomness = digest(learner.state()), global_randomness()
    inputs = make_experience(7, records=100).inputs
    first = learner.predict(inputs)
    assert np.array_equal(learner.predict(inputs), first)
    assert digest(learner.state()) == before
    assert global_randomness() == randomness


@every_strategy
def test_learning_and_building_leave_global_randomness_alone(name: str) -> None:
    before = global_randomness()
    taught(name)
    assert global_randomness() == before


@every_strategy
def test_the_head_grows_and_unseen_classes_have_exactly_no_probability(name: str) -> None:
    learner = build(name)
    seen: set[int] = set()
    for index in range(len(STREAM)):
        learner.learn(make_experience(index))
        seen |= set(STREAM[index])
        answers = learner.predict(make_experience(9).inputs)
        assert answers.shape == (40, len(INFO.classes))
        assert answers.dtype == np.float32
        assert set(np.flatnonzero(answers.any(0))) == seen
        np.testing.assert_allclose(answers.sum(1), 1, rtol=1e-5)


def _with(**changes: Any) -> Callable[[Experience], Experience]:
    def change(good: Experience) -> Experience:
        fields = {"inputs": good.inputs, "labels": good.labels, **changes}
        return Experience(
            good.index, fields["inputs"], fields["labels"], good.record_ids, good.groups, good.digest
        )

    return change


UNFIT: dict[str, Callable[[Experience], Experience]] = {
    "empty": lambda good: _with(inputs=good.inputs[:0], labels=good.labels[:0])(good),
    "shape": lambda good: _with(inputs=good.inputs[:, :2])(good),
    "flat": lambda good: _with(inputs=good.inputs.reshape(len(good), -1))(good),
    "dtype": lambda good: _with(inputs=good.inputs.astype(np.uint8))(good),
    "fewer labels": lambda good: _with(labels=good.labels[1:])(good),
    "label too large": lambda good: _with(labels=np.full(len(good), 5, np.int64))(good),
    "label negative": lambda good: _with(labels=np.full(len(good), -1, np.int64))(good),
    "nan": lambda good: _with(inputs=np.full_like(good.inputs, np.nan))(good),
}


@every_strategy
@pytest.mark.parametrize("fault", list(UNFIT))
def test_an_unfit_experience_is_refused_and_leaves_no_trace(name: str, fault: str) -> None:
    learner = taught(name, 1)
    before = digest(learner.state())
    with pytest.raises(ExperienceUnfitError):
        learner.learn(UNFIT[fault](make_experience(1)))
    assert digest(learner.state()) == before


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in TAKES_NO_STEP])
def test_a_diverged_learner_says_so_and_refuses_to_go_on(name: str, tmp_path: Path) -> None:
    learner = build(name, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(LearningDivergedError, match="learning_rate"):
        learner.learn(make_experience(0))
    refused: tuple[Callable[[], object], ...] = (
        lambda: learner.learn(make_experience(0)),
        lambda: learner.predict(make_experience(0).inputs),
        lambda: learner.save(tmp_path / "saved"),
        learner.served_network,
    )
    for attempt in refused:
        with pytest.raises(StrategyError, match="last saved state"):
            attempt()


@every_strategy
def test_a_save_folder_holds_json_and_safetensors_only(name: str, tmp_path: Path) -> None:
    learner = taught(name)
    learner.save(tmp_path / "once")
    learner.save(tmp_path / "twice")
    files = sorted(path.name for path in (tmp_path / "once").rglob("*"))
    assert files == ["state.json", "tensors.safetensors"]
    for file in files:
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["once", "twice"]


@every_strategy
@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_damaged_state_is_refused(name: str, file: str, tmp_path: Path) -> None:
    taught(name, 1).save(tmp_path / "saved")
    path = tmp_path / "saved" / file
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(StateError, match="damaged"):
        STRATEGIES[name].load(tmp_path / "saved")
    path.unlink()
    with pytest.raises(StateError, match=r"no saved state|missing"):
        STRATEGIES[name].load(tmp_path / "saved")


@every_strategy
def test_the_state_of_another_strategy_is_refused(name: str, tmp_path: Path) -> None:
    taught(name, 1).save(tmp_path / "saved")
    other = next(spec for spec in STRATEGIES.values() if spec.name != name)
    with pytest.raises(StateError, match=f"load it as '{name}'"):
        other.load(tmp_path / "saved")


def answers_of(network: torch.nn.Module, inputs: NDArray[Any]) -> NDArray[np.float32]:
    with torch.no_grad():
        answers: NDArray[np.float32] = network(torch.from_numpy(inputs)).numpy()
    return answers


@every_strategy
def test_the_served_network_answers_as_the_learner_and_lives_apart(name: str) -> None:
    learner = taught(name)
    inputs = make_experience(5).inputs.copy()
    expected = learner.predict(inputs)
    served = learner.served_network()
    assert not served.training
    np.testing.assert_allclose(answers_of(served, inputs), expected, atol=1e-6)
    learner.learn(make_experience(2))
    np.testing.assert_allclose(answers_of(served, inputs), expected, atol=1e-6)


@every_strategy
def test_the_served_network_exports_with_any_number_of_records(name: str) -> None:
    learner = taught(name)
    inputs = make_experience(5, records=9).inputs.copy()
    program = torch.export.export(
        learner.served_network(),
        (torch.from_numpy(inputs[:2]),),
        dynamic_shapes=({0: torch.export.Dim("records")},),
    )
    for records in (1, 2, 9):
        expected = learner.predict(inputs[:records])
        answers = answers_of(program.module(), inputs[:records])
        np.testing.assert_allclose(answers, expected, atol=1e-6)
        assert not answers[:, 2].any()


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """Objects that are there already are left out of collections: of a late process, there are millions."""
    gc.freeze()
    yield
    gc.unfreeze()


def held_bytes(learner: Learner) -> tuple[int, int]:
    """Bytes of the learner's state, and of all tensors that were made since the heap was frozen and live."""
    assert isinstance(learner, SavableLearner)
    state_bytes = sum(tensor.nbytes for tensor in learner.state().tensors.values())
    gc.collect()
    alive = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    return state_bytes, sum(storages.values())


@every_strategy
@pytest.mark.usefixtures("frozen_heap")
def test_what_a_learner_holds_does_not_grow_with_the_stream(name: str) -> None:
    learner = build(name, epochs=1)
    for index in range(30):
        learner.learn(make_experience(index, records=10))
        if index == 9:
            state_then, alive_then = held_bytes(learner)
    state_now, alive_now = held_bytes(learner)
    if name in ("cumulative", "joint"):
        assert state_now > state_then
        assert alive_now > alive_then
    else:
        assert state_now == state_then
        assert alive_now <= alive_then
