"""What the strategies that ask kept records do in one step, against plain statements of it."""

import copy
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from strategies.base import LearningDivergedError, StreamInfo
from strategies.catalog import STRATEGIES
from strategies.learning.batches import Batch
from strategies.learning.networks import Network
from strategies.naive import NaiveConfig
from strategies.network_choice import CnnChoice
from strategies.plugins.buffers import ReplayBuffer
from strategies.plugins.gradient_rehearsal import InterferedReplay, dual, grouped_by_experience
from strategies.plugins.metric_rehearsal import contrast
from streams.base import Experience


def projection(margin: float, *, seed: int, groups: int = 6) -> tuple[Any, ...]:
    """A step's gradient, those of the groups, and what `dual` makes of them."""
    draw = np.random.default_rng(seed)
    own, of_groups = draw.normal(size=40), draw.normal(size=(groups, 40))
    shares = dual(of_groups @ of_groups.T, of_groups @ own, margin=margin)
    assert shares is not None
    return own, of_groups, shares, own + shares @ of_groups


@pytest.mark.parametrize("seed", range(5))
def test_a_turned_gradient_agrees_with_all_groups_and_is_the_nearest_that_does(seed: int) -> None:
    _, of_groups, shares, turned = projection(0.0, seed=seed)
    along = of_groups @ turned
    assert along.min() > -1e-3
    # What makes a projection the nearest: it gives way only to those that it just agrees with.
    assert shares.min() >= 0
    np.testing.assert_allclose(shares * along, 0, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_margin_is_a_least_share_of_every_group(seed: int) -> None:
    _, of_groups, shares, turned = projection(0.5, seed=seed)
    assert shares.min() >= 0.5
    np.testing.assert_allclose((shares - 0.5) * (of_groups @ turned), 0, atol=1e-3)


def test_groups_that_pull_the_same_way_are_one() -> None:
    once = np.array([1.0, 0.0])
    own = np.array([-1.0, 1.0])
    twice = np.stack((once, once))
    shares = dual(twice @ twice.T, twice @ own, margin=0.0)
    assert shares is not None
    np.testing.assert_allclose(own + shares @ twice, [0, 1], atol=1e-5)


def test_nothing_is_turned_where_all_agree_or_a_product_is_not_finite() -> None:
    assert dual(np.eye(2), np.array([0.0, 3.0]), margin=0.5) is None
    assert dual(np.eye(2), np.array([-np.inf, 3.0]), margin=0.5) is None
    assert dual(np.full((2, 2), np.nan), np.array([-1.0, 3.0]), margin=0.5) is None


def test_experiences_have_a_group_each_and_share_them_evenly_when_there_are_more() -> None:
    few = torch.tensor([7, 3, 3, 9, 7])
    assert [group.tolist() for group in grouped_by_experience(few, 3)] == [[1, 2], [0, 4], [3]]
    assert [group.tolist() for group in grouped_by_experience(few, 1)] == [[0, 1, 2, 3, 4]]
    many = torch.arange(1000) // 43
    groups = grouped_by_experience(many, 10)
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(1000))
    assert {len(torch.unique(many[group])) for group in groups} == {2, 3}
    assert all(many[a].max() < many[b].min() for a, b in pairwise(groups))


def test_a_gem_that_diverges_among_constraints_says_so() -> None:
    """A linear network at such a rate has finite weights after a step, and soon no more."""
    spec = STRATEGIES["gem"]
    settings = {"optimizer": "sgd", "learning_rate": 4e37, "epochs": 1, "hidden": (), "device": "cpu"}
    info = StreamInfo(shape=(3,), classes=("a", "b"))
    learner = spec.build(spec.config.model_validate(settings), info)
    learner.learn(noise(0, records=4))
    with pytest.raises(LearningDivergedError):
        learner.learn(noise(1, records=6400))


def noise(index: int, *, records: int) -> Experience:
    draw = np.random.default_rng(index)
    inputs, labels = draw.normal(size=(records, 3)).astype(np.float32), draw.integers(0, 2, records)
    return Experience(index, inputs, labels, labels.astype(str), {}, "")


def interfered(rate: float) -> tuple[SimpleNamespace, InterferedReplay, Batch]:
    """A step on a network with batch statistics, of 8 new records and 20 candidates."""
    torch.manual_seed(0)
    network = Network(NaiveConfig(network=CnnChoice(channels=(4,), norm="batch")), (1, 8, 8))
    network.head.grow(3, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    batch = Batch(torch.randn(28, 1, 8, 8), torch.arange(28) % 3, torch.arange(8), torch.arange(20) + 40)
    plugin = InterferedReplay(ReplayBuffer(40), replayed=5, candidates=20)
    return SimpleNamespace(model=network, optimizer=optimizer, mbatch=batch), plugin, batch


def test_mir_keeps_the_candidates_whose_loss_a_step_would_raise_most() -> None:
    step, plugin, batch = interfered(0.1)
    tried = copy.deepcopy(step.model).eval()
    loss = cross_entropy(tried.answer(batch.inputs[:8]), batch.rows[:8])
    pulls = torch.autograd.grad(loss, list(tried.parameters()))
    before = cross_entropy(tried.answer(batch.inputs[8:]), batch.rows[8:], reduction="none")
    with torch.no_grad():
        for weight, pull in zip(tried.parameters(), pulls, strict=True):
            weight -= 0.1 * pull
    after = cross_entropy(tried.answer(batch.inputs[8:]), batch.rows[8:], reduction="none")
    expected = (after - before).argsort(descending=True)[:5]

    plugin.before_training_iteration(step)
    left: Batch = step.mbatch
    assert set(left.kept.tolist()) == set((expected + 40).tolist())
    assert torch.equal(left.new, batch.new)
    assert torch.equal(left.inputs[:8], batch.inputs[:8])
    assert torch.equal(left.inputs[8:], batch.inputs[left.kept - 40 + 8])
    assert torch.equal(left.rows[8:], batch.rows[left.kept - 40 + 8])


def test_the_step_that_mir_tries_leaves_no_trace() -> None:
    step, plugin, _ = interfered(0.1)
    before = copy.deepcopy(step.model.state_dict())
    randomness = torch.get_rng_state()
    plugin.before_training_iteration(step)
    for name, tensor in step.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(weight.grad is None for weight in step.model.parameters())
    assert not step.optimizer.state
    assert all(module.training for module in step.model.modules())
    assert torch.equal(torch.get_rng_state(), randomness)


def plain_contrast(features: Tensor, rows: Tensor, fresh: int, temperature: float) -> float:
    """The formula of the paper, record by record."""
    directions = normalize(features)
    losses = []
    for i in range(fresh):
        others = [j for j in range(len(rows)) if j != i and rows[j] in rows[:fresh]]
        likeness = {j: torch.exp(directions[i] @ directions[j] / temperature) for j in others}
        same = [j for j in others if rows[j] == rows[i]]
        if same:
            total = sum(likeness.values())
            losses.append(-torch.stack([(likeness[j] / total).log() for j in same]).mean())
    return float(torch.stack(losses).mean()) if losses else 0.0


@pytest.mark.parametrize(
    "rows", [(0, 1, 0, 1, 0, 2, 1, 3), (0, 0, 0, 0, 1, 2, 1, 3), (0, 1, 2, 3, 4, 5, 4, 5)]
)
def test_the_contrast_is_the_papers(rows: tuple[int, ...]) -> None:
    """Among them a step of one class, and one of records that are all alone in theirs."""
    torch.manual_seed(1)
    features, of = torch.randn(8, 5, requires_grad=True), torch.tensor(rows)
    found = contrast(features, of, fresh=4, temperature=0.2)
    assert found.item() == pytest.approx(plain_contrast(features.detach(), of, 4, 0.2), rel=1e-4)
    (pull,) = torch.autograd.grad(found, features)
    assert pull.isfinite().all()
    foreign = ~torch.isin(of, of[:4])
    assert not pull[foreign].any()


def test_features_that_are_all_zero_have_a_contrast() -> None:
    features = torch.zeros(6, 5, requires_grad=True)
    found = contrast(features, torch.tensor([0, 1, 0, 1, 0, 2]), fresh=4, temperature=0.1)
    (pull,) = torch.autograd.grad(found, features)
    assert pull.isfinite().all()


def test_gradients_that_are_parallel_but_for_rounding_are_no_obstacle() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        pull = draw.normal(size=400_000).astype(np.float32)
        pulls = (pull + 1e-7 * draw.normal(size=(5, 400_000))).astype(np.float32)
        gram = (pulls @ pulls.T).astype(np.float64)
        shares = dual(gram, -gram[0], margin=0.0)
        assert shares is not None
        assert np.isfinite(shares).all()
    assert dual(np.zeros((3, 3)), np.full(3, -1.0), margin=0.0) is None
