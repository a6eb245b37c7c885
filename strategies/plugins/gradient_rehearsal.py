"""Plugins of GEM and MIR: constrain a step, or choose kept records, by gradients."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor
from torch.nn.functional import cross_entropy

from strategies.learning.batches import Batch, Records
from strategies.learning.record_gradients import at_rest, trained
from strategies.plugins.buffers import ReplayBuffer, ReplayPlugin
from strategies.plugins.importance import gradients

RIDGE = 1e-6
"""Least eigenvalue of their products, of their mean squared length: two groups may pull the same way."""


class EpisodicConstraints(ReplayPlugin):
    """GEM: projects each gradient so that the loss on no group of kept records rises.

    The gradients of groups are taken in evaluation mode: what may not rise is the loss of the answers that
    are served, and looking at kept records moves no batch statistics.
    """

    name = "gem"
    known = ReplayPlugin.known | {"groups", "margin", "_kept", "_members"}

    def __init__(self, buffer: ReplayBuffer, replayed: int, *, groups: int, margin: float) -> None:
        """`replayed`: kept records a step, shared evenly between at most `groups`, at least one to each."""
        super().__init__(buffer, replayed)
        self.groups = groups
        self.margin = margin
        self._kept: Records | None = None
        self._members: list[Tensor] = []

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        if self.buffer.inputs is not None:
            self._kept = strategy.records(self.buffer.inputs, self.buffer.rows)
            self._members = grouped_by_experience(self.buffer.came, self.groups)

    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Turn the gradient into the nearest one that agrees with all groups."""
        if self._kept is None:
            return
        weights: list[Tensor] = list(trained(strategy.model).values())
        with at_rest(strategy.model):
            of_groups = torch.stack([self._pull(strategy, members, weights) for members in self._members])
        own = torch.cat([gradient.flatten() for gradient in gradients(weights)])
        products = (torch.cat((of_groups, own.unsqueeze(0))) @ of_groups.T).double().cpu().numpy()
        shares = dual(products[:-1], products[-1], margin=self.margin)
        if shares is None:
            return
        sizes = [weight.numel() for weight in weights]
        added = torch.from_numpy(shares).to(of_groups) @ of_groups
        for weight, part in zip(weights, torch.split(added, sizes), strict=True):
            assert weight.grad is not None
            weight.grad += part.view_as(weight)

    def _pull(self, strategy: Any, members: Tensor, weights: list[Tensor]) -> Tensor:
        """The gradient of a group's loss, flat."""
        assert self._kept is not None
        share = max(1, self.replayed // len(self._members))
        order = torch.randperm(len(members), generator=strategy.generator)
        chosen = members[order[:share]].to(strategy.device)
        loss = cross_entropy(strategy.model.answer(self._kept.take(chosen)), self._kept.rows[chosen])
        found = torch.autograd.grad(loss, weights, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in found])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._kept, self._members = None, []
        super().after_training_exp(strategy, **kwargs)


def grouped_by_experience(came: Tensor, groups: int) -> list[Tensor]:
    """Indices of the records of each group, by the experience (n,) that each record came in.

    Up to `groups` experiences have a group each. Of more, neighbours share one, and group
    sizes differ by one experience at most: experiences close in time are the most similar.
    """
    experiences, rank = torch.unique(came, return_inverse=True)
    count = min(groups, len(experiences))
    group = rank * count // len(experiences)
    return [torch.nonzero(group == number).flatten() for number in range(count)]


def dual(
    gram: NDArray[np.float64], along: NDArray[np.float64], *, margin: float
) -> NDArray[np.float64] | None:
    """Weights of the kept gradients that, added to a step's gradient, make it agree with all of them.

    Solves the dual of the projection exactly: the v >= margin that minimises v'Gv / 2 + v'a. With v = margin
    + w and G = R'R this is the non-negative least squares problem Rw = -(a + G margin) / R', where R is
    made of the eigenvectors of G.

    Args:
        gram: G, (k, k) inner products of the kept gradients.
        along: a, (k,) inner products of each with the step's gradient.

    Returns:
        (k,) shares. None where all agree already, or where a product is not finite: then the loss diverged.
    """
    if not (along < 0).any() or not np.isfinite(gram).all() or not np.isfinite(along).all():
        return None
    sizes, axes = np.linalg.eigh(gram)
    floor = RIDGE * np.trace(gram) / len(gram)
    if floor <= 0:
        return None
    # Products of float32 gradients that are nearly parallel have eigenvalues below zero by rounding.
    sizes = np.maximum(sizes, floor)
    padded = (axes * sizes) @ axes.T
    root = np.sqrt(sizes)[:, None] * axes.T
    target = -(axes.T @ (along + margin * padded.sum(1))) / np.sqrt(sizes)
    beyond, _ = nnls(root, target, maxiter=100 * len(gram))
    shares: NDArray[np.float64] = margin + beyond
    return shares


class InterferedReplay(ReplayPlugin):
    """MIR: replays, of a sample of kept records, those whose loss a step on the new records would raise most.

    The step is tried in evaluation mode and taken back: it moves neither the optimizer's state nor batch
    statistics, and draws no random number.
    """

    name = "mir"
    known = ReplayPlugin.known | {"chosen"}

    def __init__(self, buffer: ReplayBuffer, replayed: int, *, candidates: int) -> None:
        """`candidates`: kept records that a step looks at; `replayed`: how many of them it learns."""
        super().__init__(buffer, candidates)
        self.chosen = replayed

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Keep only the records whose loss would rise most."""
        batch: Batch = strategy.mbatch
        fresh = len(batch.new)
        if len(batch.kept) <= self.chosen:
            return
        with at_rest(strategy.model):
            rises = self._rises(strategy, batch)
        stay = rises.topk(self.chosen).indices
        indices = torch.cat((torch.arange(fresh, device=stay.device), fresh + stay))
        strategy.mbatch = Batch(batch.inputs[indices], batch.rows[indices], batch.new, batch.kept[stay])

    def _rises(self, strategy: Any, batch: Batch) -> Tensor:
        """Rise of each kept record's loss after a plain gradient step on the new records."""
        network, fresh = strategy.model, len(batch.new)
        weights: list[Tensor] = list(trained(network).values())
        (new, kept), rows = batch.parts, batch.rows
        loss = cross_entropy(network.answer(new), rows[:fresh])
        pulls = torch.autograd.grad(loss, weights, materialize_grads=True)
        with torch.no_grad():
            before = cross_entropy(network.answer(kept), rows[fresh:], reduction="none")
            here = [weight.clone() for weight in weights]
            rate = strategy.optimizer.param_groups[0]["lr"]
            torch._foreach_add_(weights, pulls, alpha=-rate)
            after = cross_entropy(network.answer(kept), rows[fresh:], reduction="none")
            torch._foreach_copy_(weights, here)
        return after - before
