"""How steps are computed: variations, schedules, early stops, precision. On real digits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits

from strategies.base import StrategyConfig, StrategyError, StreamInfo
from strategies.catalog import STRATEGIES
from strategies.learning import bridge
from strategies.learning.learner import AvalancheLearner
from strategies.learning.state import load_any
from strategies.learning.training_plugins import Schedule
from streams.base import Experience

INFO = StreamInfo(shape=(1, 8, 8), classes=tuple("0123456789"), dtype="uint8")
SMALL_CNN = {"name": "cnn", "channels": [8, 16]}
IMAGES = ("flip", "crop", "rotate", "erase")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def digits(index: int = 0, *, records: int = 600) -> Experience:
    """Real digits as images in 0 to 255."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(index).permutation(len(labels))[:records]
    inputs = np.minimum(images[order] * 16, 255).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Experience(index, inputs, labels[order].astype(np.int64), order.astype(str), {}, "")


def build(name: str = "naive", info: StreamInfo = INFO, **settings: Any) -> AvalancheLearner:
    spec = STRATEGIES[name]
    learner = spec.build(spec.config(**({"device": "cpu", "hidden": (64,)} | settings)), info)
    assert isinstance(learner, AvalancheLearner)
    return learner


def accuracy(learner: AvalancheLearner, experience: Experience) -> float:
    return float((learner.predict(experience.inputs).argmax(1) == experience.labels).mean())


def weights(learner: AvalancheLearner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in learner.network.parameters()])


def rates(learner: AvalancheLearner) -> list[object]:
    return [group["lr"] for group in learner.state().facts["optimizer"]]  # type: ignore[index, union-attr, call-overload]


@pytest.mark.parametrize("way", [*IMAGES, "noise"])
def test_varied_records_are_learnt_and_the_variation_is_reproducible(way: str) -> None:
    built, again, plain = (
        build(augment=augment, epochs=14, learning_rate=3e-3) for augment in ((way,), (way,), ())
    )
    for learner in (built, again, plain):
        learner.learn(digits())
    assert torch.equal(weights(built), weights(again))
    assert not torch.equal(weights(built), weights(plain))
    # Mirrored and strongly moved digits are harder; chance is 0.1.
    assert accuracy(built, digits(1)) > 0.6


def test_colors_vary() -> None:
    info = StreamInfo((3, 8, 8), INFO.classes, "uint8")
    shown = digits()
    learner = build(info=info, augment=("color",), epochs=5)
    inputs = np.repeat(shown.inputs, 3, axis=1).astype(np.uint8)
    colored = Experience(0, inputs, shown.labels, shown.record_ids, {}, "")
    learner.learn(colored)
    assert accuracy(learner, colored) > 0.8


def test_images_without_channels_vary_too() -> None:
    shown = digits()
    flat = Experience(0, shown.inputs[:, 0], shown.labels, shown.record_ids, {}, "")
    learner = build(info=StreamInfo((8, 8), INFO.classes, "uint8"), augment=("crop", "rotate", "noise"))
    learner.learn(flat)
    assert accuracy(learner, flat) > 0.5


@pytest.mark.parametrize(
    ("augment", "info", "message"),
    [
        ("flip", StreamInfo((4,), INFO.classes), "augment flip takes images"),
        ("color", StreamInfo((1, 8, 8), INFO.classes, "uint8"), "augment color takes images of uint8"),
        ("color", StreamInfo((3, 8, 8), INFO.classes, "float32"), "augment color takes images of uint8"),
    ],
)
def test_a_variation_that_does_not_fit_the_records_is_refused(
    augment: str, info: StreamInfo, message: str
) -> None:
    with pytest.raises(StrategyError, match=message):
        build(info=info, augment=(augment,))


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": ("dream",)},
        {"augment": ({"name": "crop", "padding": 0},)},
        {"warmup": 1.0},
        {"clip_gradient": 0},
        {"early_stop": 0},
        {"precision": "float16"},
        {"schedule": "square"},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        STRATEGIES["naive"].config.model_validate(settings)


@pytest.mark.parametrize("name", ["gdumb", "cumulative"])
def test_no_early_stop_where_everything_is_learnt_again(name: str) -> None:
    with pytest.raises(ValidationError, match="early_stop"):
        STRATEGIES[name].config.model_validate({"early_stop": 2})


def test_a_config_is_stored_and_read_again_as_it_was() -> None:
    config = STRATEGIES["replay"].config.model_validate(
        {"augment": ["flip", {"name": "crop", "padding": 2}], "schedule": "cosine", "warmup": 0.1}
    )
    document = config.model_dump(mode="json")
    assert isinstance(config, StrategyConfig)
    assert STRATEGIES["replay"].config.model_validate(document) == config


def test_a_schedule_rises_and_falls_within_an_experience() -> None:
    schedule = Schedule("cosine", warmup=0.2)
    schedule._total = 100
    shares = [schedule.share(step) for step in range(100)]
    assert shares[:2] == [1 / 20, 2 / 20]
    assert max(shares) == shares[20] == 1
    assert shares[60] == pytest.approx(0.5)
    assert 0 < shares[99] < 0.01
    linear = Schedule("linear", warmup=0.0)
    linear._total = 4
    assert [linear.share(step) for step in range(4)] == [1, 0.75, 0.5, 0.25]


def test_every_experience_begins_with_the_rate_of_the_config() -> None:
    built, constant = build(schedule="cosine", warmup=0.1, epochs=20), build(epochs=20)
    for learner in (built, constant):
        learner.learn(digits())
    assert rates(built) == [1e-3]
    assert not torch.equal(weights(built), weights(constant))
    assert accuracy(built, digits(1)) > 0.9


def test_no_step_is_longer_than_the_clipped_gradient() -> None:
    built = build(optimizer="sgd", learning_rate=1.0, clip_gradient=0.01, epochs=1, batch_size=100)
    built.learn(digits())
    # Seven steps of at most 0.01 from where it was drawn.
    first = build(optimizer="sgd", learning_rate=1e-12, epochs=1, batch_size=100)
    first.learn(digits())
    moved = float((weights(built) - weights(first)).norm())
    assert 0.01 < moved <= 0.0701


def test_an_early_stop_leaves_the_weights_of_the_best_epoch() -> None:
    shown = digits()
    labels = np.random.default_rng(5).permutation(shown.labels)
    nonsense = Experience(0, shown.inputs, labels, shown.record_ids, {}, "")
    learner = build(epochs=60, early_stop=3, learning_rate=1e-2)
    first = learner.learn(nonsense)
    assert 4 <= len(first.losses) < 60
    # Nothing can be learnt of shuffled labels: the best epoch still doubts, where the last one no longer did.
    assert learner.predict(shown.inputs).max(1).mean() < 0.6
    unstopped = build(epochs=60, learning_rate=1e-2)
    unstopped.learn(nonsense)
    assert unstopped.predict(shown.inputs).max(1).mean() > learner.predict(shown.inputs).max(1).mean() + 0.1
    second = learner.learn(digits(1))
    assert len(second.losses) > 4
    assert accuracy(learner, digits(2)) > 0.85


def test_an_experience_too_small_to_put_records_aside_is_learnt_whole() -> None:
    report = build(early_stop=1, epochs=3).learn(digits(records=2))
    assert len(report.losses) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bfloat16"},
        {"channels_last": True, "network": SMALL_CNN, "learning_rate": 1e-2},
        {"optimizer": "adam"},
    ],
    ids=str,
)
def test_other_arithmetic_learns_as_well(settings: dict[str, Any]) -> None:
    learner = build(**({"epochs": 12} | settings))
    learner.learn(digits())
    assert accuracy(learner, digits(1)) > 0.9
    assert all(parameter.dtype == torch.float32 for parameter in learner.network.parameters())


def test_channels_last_is_the_same_learner_up_to_rounding() -> None:
    settings: dict[str, Any] = {"network": {"name": "cnn", "channels": [8]}, "epochs": 1, "optimizer": "sgd"}
    first, last = build("replay", **settings), build("replay", **settings, channels_last=True)
    for index in (0, 1):
        for learner in (first, last):
            learner.learn(digits(index, records=200))
    torch.testing.assert_close(weights(last), weights(first), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("compile", [True, "graphs"])
def test_a_compiled_network_is_the_same_learner_up_to_rounding(compile: Any) -> None:
    plain, compiled = build(epochs=1, optimizer="sgd"), build(epochs=1, optimizer="sgd", compile=compile)
    for index in (0, 1):
        for learner in (plain, compiled):
            learner.learn(digits(index, records=200))
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(compiled.predict(digits(2).inputs), plain.predict(digits(2).inputs), atol=1e-4)


@pytest.mark.parametrize("name", ["replay", "der", "lwf", "a-gem"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_prepared_batch_by_batch_is_learnt_alike(
    name: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "epochs": 1,
        "network": {"name": "cnn", "channels": [8]} if channels_last else "mlp",
        "channels_last": channels_last,
    }
    ahead, batchwise = build(name, **settings), build(name, **settings)
    for index in (0, 1):
        ahead.learn(digits(index, records=200))
    monkeypatch.setattr(bridge, "RESIDENT_BYTES", 0)
    for index in (0, 1):
        batchwise.learn(digits(index, records=200))
    torch.testing.assert_close(weights(batchwise), weights(ahead), rtol=1e-5, atol=1e-6)


EVERYTHING: dict[str, Any] = {
    "augment": ("rotate", "noise"),
    "schedule": "cosine",
    "warmup": 0.1,
    "clip_gradient": 1.0,
    "early_stop": 2,
    "precision": "bfloat16",
    "network": {"name": "mlp", "dropout": 0.2, "norm": "layer"},
    "epochs": 4,
}


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        *((name, {"early_stop": 2}) for name in ("er-ace", "er-aml", "icarl", "scr", "slda", "ema")),
        ("combined", {"early_stop": 2, "parts": ["replay", "ema"]}),
        ("combined", {"early_stop": 2, "parts": ["er-ace", "lwf"]}),
        ("slda", {"schedule": "cosine"}),
        ("slda", {"augment": ["flip"]}),
        ("scr", {"precision": "bfloat16"}),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(name: str, refused: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(refused))} cannot be set with {name}"):
        STRATEGIES[name].config.model_validate(refused)


def test_records_may_lie_in_memory_in_any_order() -> None:
    info = StreamInfo((64,), INFO.classes)
    shown = digits()
    rows = shown.inputs.reshape(len(shown), 64).astype(np.float32)
    first, other = build(info=info), build(info=info)
    first.learn(Experience(0, rows, shown.labels, shown.record_ids, {}, ""))
    other.learn(Experience(0, np.asfortranarray(rows), shown.labels, shown.record_ids, {}, ""))
    assert np.array_equal(other.predict(np.asfortranarray(rows)), first.predict(rows))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_channels_last_goes_on_bit_for_bit_from_its_checkpoint(optimizer: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"network": SMALL_CNN, "channels_last": True, "epochs": 2}
    first = build("replay", **settings, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0)
    for index in (0, 1):
        first.learn(digits(index, records=200))
    first.save(tmp_path / "saved")
    second = load_any(tmp_path / "saved", STRATEGIES)
    assert isinstance(second, AvalancheLearner)
    assert second.learn(digits(2)).losses == first.learn(digits(2)).losses
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("name", ["si", "ewc"])
def test_what_matters_is_measured_alike_in_every_experience(name: str) -> None:
    learner = build(name, clip_gradient=1e-3, strength=1e-12)
    sizes = []
    for index in (0, 1):
        learner.learn(digits(index))
        state = learner.state().tensors
        sizes.append(float(state[f"plugin/{name}/importance.head.weight"].sum()))
    # The second adds about as much as the first.
    assert 0.2 < (sizes[1] - sizes[0]) / sizes[0] < 5


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_with_everything_on_a_reloaded_learner_goes_on_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    first = build("replay", **EVERYTHING, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0)
    for index in (0, 1):
        first.learn(digits(index, records=200))
    first.save(tmp_path / "saved")
    second = load_any(tmp_path / "saved", STRATEGIES)
    assert isinstance(second, AvalancheLearner)
    assert second.learn(digits(2)).losses == first.learn(digits(2)).losses
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_head_that_grows_keeps_the_moments_of_its_old_rows(optimizer: str) -> None:
    learner = build(optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0, learning_rate=1e-9)
    shown = digits()
    few = shown.labels < 4
    learner.learn(Experience(0, shown.inputs[few], shown.labels[few], shown.record_ids[few], {}, ""))
    key = "optimizer/head.weight/" + ("exp_avg_sq" if optimizer == "adamw" else "momentum_buffer")
    before = learner.state().tensors[key].clone()
    assert before.shape == (4, 64)
    one = Experience(1, shown.inputs[~few][:1], shown.labels[~few][:1], shown.record_ids[~few][:1], {}, "")
    learner._template.train_epochs = 1
    learner.learn(one)
    after = learner.state().tensors[key]
    assert after.shape == (5, 64)
    # One step later they are still mostly what they were.
    similarity = torch.nn.functional.cosine_similarity(after[:4].flatten(), before.flatten(), dim=0)
    assert similarity > 0.5
