"""Exemplars by herding, the loss of the teacher, and the contrastive loss."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from strategies.base import ExperienceUnfitError, StreamInfo
from strategies.catalog import STRATEGIES
from strategies.learning.learner import AvalancheLearner
from strategies.plugins.prototypes import contrast, herd
from streams.base import Experience

INFO = StreamInfo(shape=(4,), classes=tuple("abcde"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def experience(index: int, classes: tuple[int, ...], *, each: int = 20, shift: float = 0.0) -> Experience:
    labels = np.repeat(np.array(classes, np.int64), each)
    inputs = np.random.default_rng(index).normal(size=(len(labels), 4)) + labels[:, None] + shift
    ids = np.array([f"{index}-{place}" for place in range(len(labels))])
    return Experience(index, inputs.astype(np.float32), labels, ids, {}, "")


def build(name: str, **settings: Any) -> AvalancheLearner:
    spec = STRATEGIES[name]
    learner = spec.build(spec.config(hidden=(8,), epochs=2, device="cpu", **settings), INFO)
    assert isinstance(learner, AvalancheLearner)
    return learner


def exemplars(learner: AvalancheLearner) -> dict[int, torch.Tensor]:
    """Class id -> its exemplars in their order."""
    tensors = learner.state().tensors
    rows = tensors["plugin/icarl/rows"]
    return {
        label: tensors["plugin/icarl/inputs"][rows == row] for row, label in enumerate(learner.classes_learnt)
    }


def test_the_first_of_a_herd_have_the_mean_of_all() -> None:
    features = normalize(torch.randn(200, 6, generator=generator()) + 1, dim=1)
    order = herd(features, torch.ones(200), 30)
    assert len(set(order.tolist())) == 30
    for first in (1, 5, 30):
        drawn = [torch.randperm(200, generator=generator(seed))[:first] for seed in range(20)]
        off = [(features[some].mean(0) - features.mean(0)).norm() for some in (order[:first], *drawn)]
        assert off[0] == min(off)


def test_a_herd_is_near_the_mean_of_what_each_stands_for() -> None:
    features = normalize(torch.randn(100, 6, generator=generator()), dim=1)
    counts = torch.ones(100)
    counts[:10] = 50.0
    chosen = features[herd(features, counts, 20)].mean(0)
    weighted = (features * counts.unsqueeze(1)).sum(0) / counts.sum()
    assert (chosen - weighted).norm() < (chosen - features.mean(0)).norm()


def test_a_herd_is_all_where_there_are_few() -> None:
    features = normalize(torch.randn(3, 6, generator=generator()), dim=1)
    assert sorted(herd(features, torch.ones(3), 9).tolist()) == [0, 1, 2]


def test_classes_share_the_capacity_and_keep_the_first_of_their_order() -> None:
    learner = build("icarl", capacity=20)
    learner.learn(experience(0, (3, 1)))
    before = exemplars(learner)
    assert [len(kept) for kept in before.values()] == [10, 10]
    learner.learn(experience(1, (0,)))
    after = exemplars(learner)
    assert [len(after[label]) for label in (3, 1, 0)] == [7, 7, 6]
    for label in (3, 1):
        assert torch.equal(after[label], before[label][:7])


def test_a_class_that_comes_back_is_kept_of_its_old_and_its_new_records() -> None:
    learner = build("icarl", capacity=20)
    learner.learn(experience(0, (3, 1)))
    old = exemplars(learner)
    learner.learn(experience(1, (3,), shift=0.5))
    now = exemplars(learner)
    assert torch.equal(now[1], old[1])
    came = {tuple(record.tolist()) for record in old[3]}
    stayed = sum(tuple(record.tolist()) in came for record in now[3])
    assert 0 < stayed < len(now[3]) == 10
    assert learner.state().tensors["plugin/icarl/seen"].tolist() == [40, 20]


def test_the_classes_of_the_experience_are_learnt_from_labels_and_the_others_from_the_teacher() -> None:
    learner = build("icarl", capacity=20)
    learner.learn(experience(0, (3, 1)))
    taken: list[torch.Tensor] = []

    def seen(logits: torch.Tensor, targets: torch.Tensor, **_: Any) -> torch.Tensor:
        taken.append(targets)
        return (logits - targets).square().sum()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("strategies.plugins.distillation.binary_cross_entropy_with_logits", seen)
        learner.learn(experience(1, (1, 0)))
    assert taken
    for targets in taken:  # rows: class 3 is away, 1 came back, 0 is new
        assert not torch.isin(targets[:, 0], torch.tensor([0.0, 1.0])).any()
        assert torch.isin(targets[:, 1:], torch.tensor([0.0, 1.0])).all()


@pytest.mark.parametrize("name", ["icarl", "scr"])
def test_more_classes_than_places_are_refused(name: str) -> None:
    learner = build(name, capacity=2)
    learner.learn(experience(0, (3, 1)))
    with pytest.raises(ExperienceUnfitError, match="3 classes do not fit in capacity=2"):
        learner.learn(experience(1, (0,)))


@pytest.mark.parametrize("name", ["icarl", "scr"])
def test_answers_are_the_softmax_of_cosines_to_the_means_of_kept_records(name: str) -> None:
    learner = build(name, capacity=20, temperature=0.5)
    learner.learn(experience(0, (3, 1)))
    learner.learn(experience(1, (0,)))
    tensors = learner.state().tensors
    kept, rows = (tensors[f"plugin/{name}/{part}"] for part in ("inputs", "rows"))
    network = learner.network

    def features(inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return normalize(network.features(network.prepare(inputs)), dim=1)

    means = normalize(torch.stack([features(kept[rows == row]).mean(0) for row in range(3)]), dim=1)
    inputs = torch.from_numpy(experience(2, (0, 1, 3)).inputs)
    expected = torch.softmax(features(inputs) @ means.T / 0.5, dim=1)
    answers = learner.predict(inputs.numpy())[:, list(learner.classes_learnt)]
    np.testing.assert_allclose(answers, expected.numpy(), atol=1e-5)


def test_the_projection_is_trained_and_part_of_the_state() -> None:
    learner = build("scr", capacity=20, projection=5)
    first = {name: t.clone() for name, t in learner.state().tensors.items() if "projection" in name}
    learner.learn(experience(0, (3, 1)))
    moved = learner.state().tensors
    assert first["network/projection.2.weight"].shape == (5, 8)
    assert all(not torch.equal(moved[name], before) for name, before in first.items())


def test_the_contrastive_loss_is_that_of_the_paper() -> None:
    projected = normalize(torch.randn(8, 3, generator=generator()), dim=1)
    rows = torch.tensor([0, 1, 0, 2, 0, 1, 0, 2])
    total = 0.0
    for anchor in range(8):
        others = [place for place in range(8) if place != anchor]
        alike = {place: float(projected[anchor] @ projected[place]) / 0.2 for place in others}
        whole = np.log(sum(np.exp(value) for value in alike.values()))
        positives = [place for place in others if rows[place] == rows[anchor]]
        total -= sum(alike[place] - whole for place in positives) / len(positives)
    assert float(contrast(projected, rows, temperature=0.2)) == pytest.approx(total / 8, rel=1e-5)


def test_the_contrastive_loss_of_one_record_has_a_gradient() -> None:
    projected = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    contrast(projected, torch.tensor([4, 4]), temperature=0.1).backward()  # type: ignore[no-untyped-call]  # torch's
    assert projected.grad is not None
    assert projected.grad.isfinite().all()


def test_exemplars_are_copies() -> None:
    learner = build("icarl", capacity=20)
    learner.learn(experience(0, (3, 1)))
    kept = learner.state().tensors["plugin/icarl/inputs"]
    assert kept.untyped_storage().nbytes() == 20 * 4 * 4
