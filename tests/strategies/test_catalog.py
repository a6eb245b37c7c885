"""The catalog is light, and the strategies do on real data what they are for."""

import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from strategies import catalog
from strategies.base import (
    Learner,
    StrategyConfig,
    StrategyError,
    StrategySpec,
    StrategyUnknownError,
    StreamInfo,
)
from strategies.catalog import STRATEGIES
from streams.base import Experience

INFO = StreamInfo(shape=(8, 8), classes=tuple("0123456789"))
DEGREES = (0, 25, 50, 75, 100)
TRAIN = 1197
"""The other 600 images are the holdout: by image, so no rotation of a holdout image is ever trained on."""
REHEARSING = ("replay", "er-ace", "er-aml", "mir", "der", "a-gem", "gem", "gdumb", "icarl", "scr")

READ_THE_CATALOG = """
import sys
from strategies.catalog import STRATEGIES
for spec in STRATEGIES.values():
    config = spec.config.model_validate({"name": spec.name, "epochs": 3})
    spec.config.model_validate_json(config.model_dump_json())
    spec.config.model_json_schema()
print([name for name in ("torch", "avalanche", "ray", "mlflow") if name in sys.modules])
"""


def test_the_catalog_is_read_and_configs_are_validated_without_torch() -> None:
    found = subprocess.run(
        [sys.executable, "-c", READ_THE_CATALOG], capture_output=True, text=True, check=True
    )
    assert (found.stdout, found.stderr) == ("[]\n", "")


def test_each_entry_is_named_as_its_config_and_describes_its_own_knobs() -> None:
    common = set(StrategyConfig.model_fields)
    for name, spec in STRATEGIES.items():
        assert spec.name == name == spec.config.model_fields["name"].default
        assert spec.summary
        for knob, field in spec.config.model_fields.items():
            assert knob in common or field.description


def test_the_catalog_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        STRATEGIES["mine"] = STRATEGIES["naive"]  # type: ignore[index]  # that is the point


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    assert catalog.find("replay") is STRATEGIES["replay"]
    with pytest.raises(StrategyUnknownError, match="naive, replay"):
        catalog.find("dreaming")


def test_the_config_of_another_strategy_is_refused() -> None:
    with pytest.raises(StrategyError, match="takes a ReplayConfig"):
        STRATEGIES["replay"].build(STRATEGIES["naive"].config(name="naive"), INFO)


@pytest.mark.parametrize("spec", STRATEGIES.values(), ids=list(STRATEGIES))
def test_every_strategy_works_with_its_defaults(spec: StrategySpec) -> None:
    config = spec.config.model_validate({})
    assert config.name == spec.name
    assert spec.build(config, INFO).predict(np.zeros((1, 8, 8), np.float32)).shape == (1, 10)


@cache
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """1,797 images of 8x8 pixels, 0 to 16, shuffled once."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order].reshape(-1, 8, 8).astype(np.float32), labels[order].astype(np.int64)


@cache
def rotated(degrees: int) -> NDArray[np.float32]:
    turned: NDArray[np.float32] = rotate(digits()[0], degrees, axes=(1, 2), reshape=False, order=1)
    return turned


def experience(index: int, inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> Experience:
    ids = np.array([str(number) for number in range(len(labels))])
    return Experience(index, inputs, labels, ids, {}, "")


def build(name: str, **settings: Any) -> Learner:
    torch.set_num_threads(1)
    spec = STRATEGIES[name]
    return spec.build(spec.config(device="cpu", **settings), INFO)


@cache
def accuracy_on_rotations(name: str) -> tuple[float, NDArray[np.float64]]:
    """Holdout accuracy on experience 0 right after it, and on each experience after all five."""
    labels = digits()[1]
    learner = build(name, **({"capacity": 1200} if name in REHEARSING else {}))
    at_first = 0.0
    for index, degrees in enumerate(DEGREES):
        learner.learn(experience(index, rotated(degrees)[:TRAIN], labels[:TRAIN]))
        if index == 0:
            at_first = _accuracy(learner, rotated(0))
    return at_first, np.array([_accuracy(learner, rotated(degrees)) for degrees in DEGREES])


def _accuracy(learner: Learner, inputs: NDArray[np.float32]) -> float:
    return float((learner.predict(inputs[TRAIN:]).argmax(1) == digits()[1][TRAIN:]).mean())


def test_naive_training_forgets_rotated_digits() -> None:
    at_first, at_last = accuracy_on_rotations("naive")
    assert at_first > 0.95
    assert at_last[-1] > 0.95
    assert at_first - at_last[0] > 0.39


@pytest.mark.parametrize("name", ["replay", "er-ace", "er-aml", "der", "icarl", "scr", "slda"])
def test_replay_keeps_rotated_digits(name: str) -> None:
    _, at_last = accuracy_on_rotations(name)
    assert at_last[0] >= 0.90
    assert at_last.min() >= 0.90


@pytest.mark.parametrize(
    ("name", "margin"),
    [("ewc", 0.15), ("lwf", 0.05), ("si", 0.2), ("mas", 0.2), ("a-gem", 0.25), ("gem", 0.6)],
)
def test_regularising_keeps_more_of_the_first_experience_than_naive(name: str, margin: float) -> None:
    _, naive = accuracy_on_rotations("naive")
    _, at_last = accuracy_on_rotations(name)
    assert at_last[0] > naive[0] + margin
    assert at_last[-1] > 0.80  # and still learns the new one


@pytest.mark.parametrize(("name", "margin", "newest"), [("averaging", 0.12, 0.65), ("ema", 0.03, 0.8)])
def test_averages_of_weights_keep_more_of_the_first_experience_than_naive(
    name: str, margin: float, newest: float
) -> None:
    _, naive = accuracy_on_rotations("naive")
    _, at_last = accuracy_on_rotations(name)
    assert at_last[0] > naive[0] + margin
    assert at_last.mean() > naive.mean() + margin / 2
    assert at_last[-1] > newest


def test_a_combination_keeps_more_than_either_part() -> None:
    """Few kept records, and a teacher beside them."""
    parts = ({"name": "replay", "capacity": 60}, {"name": "lwf"})
    both, replay, lwf = (
        _mean_on_rotations(name, **settings)
        for name, settings in (("combined", {"parts": parts}), ("replay", {"capacity": 60}), ("lwf", {}))
    )
    assert both > max(replay, lwf)


def _mean_on_rotations(name: str, **settings: Any) -> float:
    labels = digits()[1]
    learner = build(name, **settings)
    for index, degrees in enumerate(DEGREES):
        learner.learn(experience(index, rotated(degrees)[:TRAIN], labels[:TRAIN]))
    return float(np.mean([_accuracy(learner, rotated(degrees)) for degrees in DEGREES]))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["replay"], "at least 2"),
        (["replay", "replay"], "twice"),
        (["replay", "der"], "replay and der cannot be combined"),
        (["a-gem", "er-ace"], "a-gem and er-ace cannot be combined"),
        (["mir", "er-aml"], "mir and er-aml cannot be combined"),
        (["replay", "gem"], "replay and gem cannot be combined"),
        (["gdumb", "ewc"], "learns a fresh network"),
        (["cumulative", "lwf"], "learns from everything"),
        (["icarl", "ewc"], "a teacher and a loss of its own"),
        (["scr", "lwf"], "trains no head"),
        (["slda", "replay"], "takes no step"),
        (["naive", "lwf"], "adds nothing"),
        (["combined", "lwf"], "name its parts instead"),
        (["dreaming", "lwf"], "dreaming"),
        ([{"name": "replay", "epochs": 3}, "lwf"], "epochs of replay belong to the whole combination"),
        ([{"name": "replay", "alpha": 3}, "lwf"], "alpha"),
        ("replay", "valid tuple"),
        ([7, "lwf"], "parts"),
    ],
)
def test_a_combination_that_cannot_work_is_refused(parts: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        STRATEGIES["combined"].config.model_validate({"parts": parts})


def test_a_combination_is_stored_and_read_again_as_it_was() -> None:
    config = STRATEGIES["combined"].config.model_validate(
        {"parts": [{"name": "replay", "capacity": 7}, "lwf"], "epochs": 3}
    )
    for document in (config.model_dump(mode="json"), config.model_dump()):
        assert STRATEGIES["combined"].config.model_validate(document) == config


@pytest.mark.parametrize("name", ["naive", "replay", "der", "ewc"])
def test_cumulative_is_an_upper_bound(name: str) -> None:
    assert accuracy_on_rotations("cumulative")[1].mean() >= accuracy_on_rotations(name)[1].mean()


@pytest.mark.slow
def test_cumulative_and_joint_are_the_upper_bounds() -> None:
    bound = max(accuracy_on_rotations(name)[1].mean() for name in ("cumulative", "joint"))
    # The network of slda is another one, and is not trained: this is no bound for it.
    for name in (name for name in STRATEGIES if name != "slda"):
        assert bound >= accuracy_on_rotations(name)[1].mean()
    assert accuracy_on_rotations("joint")[1].mean() > bound - 0.02


@cache
def accuracy_on_split_digits(name: str, **settings: Any) -> float:
    """Holdout accuracy on all ten classes after five experiences of two classes each."""
    images, labels = digits()
    learner = build(name, **settings)
    for index in range(5):
        chosen = np.flatnonzero(np.isin(labels[:TRAIN], (2 * index, 2 * index + 1)))
        learner.learn(experience(index, images[chosen], labels[chosen]))
    return _accuracy(learner, images)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("replay", {}),
        ("replay", {"capacity": 200}),
        ("replay", {"capacity": 200, "balance": "classes"}),
        ("replay", {"capacity": 200, "balance": "experiences"}),
        ("er-ace", {"capacity": 200}),
        ("er-aml", {"capacity": 200}),
        ("er-aml", {"capacity": 200, "epochs": 3}),
        ("mir", {"capacity": 200}),
        ("der", {"capacity": 200}),
        ("gdumb", {"capacity": 200}),
        ("icarl", {"capacity": 200}),
        ("scr", {"capacity": 200}),
        ("slda", {}),
        ("cumulative", {}),
        ("joint", {}),
    ],
)
def test_with_a_growing_head_the_past_must_be_seen_again(name: str, settings: dict[str, Any]) -> None:
    naive = accuracy_on_split_digits("naive")
    assert naive < 0.30  # it answers with the last two classes only
    assert accuracy_on_split_digits(name, **settings) > naive + 0.50
