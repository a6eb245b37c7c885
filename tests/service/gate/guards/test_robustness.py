"""Robustness: the guard on bits, and real attacks on a real network."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.gate.base import Disturbed, Evidence, Finding, GateConfig
from service.gate.guards.robustness import robustness
from strategies.learning.networks import FeatureScaling, ServedNetwork
from strategies.learning.robustness import answers_disturbed, corruptions
from strategies.learning.timing import ROUNDS, rounds
from tests.strategies.learning.test_training import SMALL_CNN, build, digits
from tests.support.gate_parts import CLEAN, paired


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


CONFIG = GateConfig(robustness=0.05, robustness_against=("fgsm",))


def asked(*disturbed: Disturbed, config: GateConfig = CONFIG) -> tuple[Finding, ...]:
    return robustness(Evidence(CLEAN, disturbed=disturbed), config)


def tried(n: int, *, lost: int = 0, gained: int = 0, way: str = "fgsm") -> Disturbed:
    bits = paired(n, lost=lost, gained=gained)
    return Disturbed(way, bits.baseline, bits.challenger)


def test_each_way_has_its_answer() -> None:
    kept, lost, unclear = asked(
        tried(400, lost=3, gained=3), tried(400, lost=60, way="blur"), tried(60, way="noise")
    )
    assert kept.answer == "pass"
    assert kept.sentence == (
        "records disturbed by fgsm (one step against the model): 99 % answered right, 99 % by the champion; "
        "at worst 1.4 points lost, 5 allowed (400 records)"
    )
    assert lost.answer == "fail"
    assert lost.sentence.startswith("records disturbed by blur: 85 % answered right, 100 % by the champion")
    assert lost.sentence.endswith("keep the champion, and learn with augmentation of that kind")
    assert unclear.answer == "undecided"
    assert unclear.numbers["n_needed"] >= 70


def test_what_was_not_tried_is_undecided() -> None:
    assert robustness(Evidence(CLEAN), GateConfig()) == ()
    assert [each.answer for each in asked()] == ["undecided"]
    all_ways = GateConfig(robustness=0.05)
    found = asked(tried(400), config=all_ways)
    assert [each.answer for each in found] == ["undecided", "undecided", "pass"]
    assert [each.answer for each in asked(Disturbed("fgsm", None, None))] == ["undecided"]
    assert [each.answer for each in asked(tried(0))] == ["undecided"]


@settings(deadline=None, max_examples=50)
@given(n=st.integers(0, 69), lost=st.integers(0, 69))
def test_few_records_never_pass(n: int, lost: int) -> None:
    assert all(each.answer != "pass" for each in asked(tried(n, lost=min(lost, n))))


def accuracies(
    served: ServedNetwork, images: NDArray[np.generic], labels: NDArray[np.int64], *, epsilon: float
) -> dict[str, float]:
    found = answers_disturbed(
        served,
        images,
        labels,
        ways=("fgsm", "pgd", "corruptions"),
        epsilon=epsilon,
        limits=(0.0, 255.0),
        seed=1,
        device=torch.device("cpu"),
    )
    return {way: float(bits.mean()) for way, bits in found.items()}


@pytest.mark.parametrize("network", ["mlp", SMALL_CNN])
def test_attacks_on_real_digits_follow_real_gradients(network: object) -> None:
    learner = build(network=network, epochs=20, learning_rate=5e-3)
    learner.learn(digits(0))
    served, held = learner.served_network(), digits(1, records=300)
    clean = float((learner.predict(held.inputs).argmax(1) == held.labels).mean())
    weak, strong = (accuracies(served, held.inputs, held.labels, epsilon=each) for each in (0.02, 0.3))
    assert clean > 0.9
    assert clean >= weak["fgsm"] >= strong["fgsm"]
    # Ten steps find what one does not; random signs of the same size hardly hurt.
    assert strong["pgd"] <= strong["fgsm"] < clean - 0.2
    assert weak["pgd"] >= clean - 0.15
    signs = np.random.default_rng(0).choice([-1.0, 1.0], held.inputs.shape)
    scaling = served.network.scaling
    assert isinstance(scaling, FeatureScaling)
    scale = float(1 / scaling.scale)
    moved = np.clip(held.inputs + signs * 0.3 * scale, 0, 255).astype(np.float32)
    assert (learner.predict(moved).argmax(1) == held.labels).mean() > strong["pgd"] + 0.2
    assert set(strong) == {"fgsm", "pgd", "noise", "blur", "brightness", "contrast", "occlusion"}
    assert accuracies(served, held.inputs, held.labels, epsilon=0.3) == strong


def test_a_sure_network_is_attacked_all_the_same() -> None:
    """Where probabilities round to 1, their gradient is 0; that of the logits' difference is not."""
    learner = build(epochs=20)
    learner.learn(digits(0))
    with torch.no_grad():
        learner.network.head.weight.mul_(1000)
        learner.network.head.bias.mul_(1000)
    held = digits(1, records=200)
    assert accuracies(learner.served_network(), held.inputs, held.labels, epsilon=0.3)["pgd"] < 0.7


def test_corruptions_stay_in_range_and_tables_get_noise() -> None:
    images = digits(0, records=50).inputs.astype(np.float32)
    for name, changed in corruptions(images, limits=(0, 255), seed=0).items():
        assert changed.shape == images.shape, name
        assert changed.dtype == np.float32
        assert 0 <= changed.min() <= changed.max() <= 255
        assert not np.array_equal(changed, images), name
    table = np.random.default_rng(0).normal(0, [1, 1000], (200, 2)).astype(np.float32)
    (noisy,) = corruptions(table, limits=None, seed=0).values()
    assert (noisy - table).std(axis=0) == pytest.approx(0.3 * table.std(axis=0), rel=0.2)
    assert corruptions(table[:0], limits=None, seed=0) == {}


def test_a_class_never_learnt_is_wrong_and_breaks_nothing() -> None:
    learner = build(epochs=2)
    shown = digits(0)
    few = shown.labels < 1
    learner.learn(type(shown)(0, shown.inputs[few], shown.labels[few], shown.record_ids[few], {}, ""))
    held = digits(1, records=50)
    found = accuracies(learner.served_network(), held.inputs, held.labels, epsilon=0.1)
    assert found["pgd"] == found["fgsm"] == (held.labels == 0).mean()


def test_rounds_are_timed_in_turns() -> None:
    learner = build(epochs=1)
    learner.learn(digits(0, records=60))
    served = learner.served_network()
    first, second = rounds(served, served, digits(1, records=60).inputs)
    assert len(first) == len(second) == ROUNDS
    assert min(*first, *second) > 0
