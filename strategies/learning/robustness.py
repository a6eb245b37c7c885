"""Disturbed records, and which of them a network still answers right: attacks by its gradients, corruptions.

Everything is determined by the seed, and both of two networks under comparison see the same corrupted records
and the same random starts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strategies.learning.networks import FeatureScaling, ImageScaling, ServedNetwork

STEPS = 10
"""Steps of projected gradient descent."""
STEP_SHARE = 2.5
"""Length of all its steps together, in epsilons: enough to reach the edge from anywhere."""
RECORDS = 256
"""Answered to at a time, at most."""

NOISE = 0.1
"""Standard deviation of the noise on images, in ranges of their values."""
BRIGHTER = 0.2
"""Added to every pixel, in ranges."""
CONTRAST = 0.5
"""Share of every pixel's distance from the image's mean that remains."""
OCCLUDED = 3
"""The covered square has a side of the image's shorter one divided by this."""
TABLE_NOISE = 0.3
"""Standard deviation of the noise on tables, in standard deviations of each column of the records."""


def answers_disturbed(
    served: ServedNetwork,
    inputs: NDArray[np.generic],
    labels: NDArray[np.int64],
    *,
    ways: Sequence[str],
    epsilon: float,
    limits: tuple[float, float] | None,
    seed: int,
    device: torch.device,
) -> dict[str, NDArray[np.bool_]]:
    """Way -> (n,) whether a record is still answered right when it is disturbed so.

    Args:
        served: its parameters are left as they are.
        inputs: (n, *shape) raw features.
        labels: (n,) class ids.
        ways: of "fgsm", "pgd" and "corruptions".
        epsilon: how far an attack moves a feature, in units of the network's scaled input.
        limits: smallest and largest value that a feature can have; None: there are none.
    """
    raw = np.array(inputs, dtype=np.float32, order="C")
    network = served.to(device).eval()
    found: dict[str, NDArray[np.bool_]] = {}
    for way in ways:
        if way == "corruptions":
            for name, corrupted in corruptions(raw, limits=limits, seed=seed).items():
                found[name] = _right(network, corrupted, labels, device=device)
        else:
            steps = 1 if way == "fgsm" else STEPS
            found[way] = _attacked(
                network, raw, labels, steps=steps, epsilon=epsilon, limits=limits, seed=seed, device=device
            )
    return found


@torch.no_grad()
def _right(
    served: ServedNetwork, raw: NDArray[np.float32], labels: NDArray[np.int64], *, device: torch.device
) -> NDArray[np.bool_]:
    said = [np.zeros(0, dtype=np.int64)]
    size = _at_once(served)
    for start in range(0, len(raw), size):
        batch = torch.from_numpy(raw[start : start + size]).to(device)
        said.append(served(batch).argmax(dim=1).cpu().numpy())
    right: NDArray[np.bool_] = np.concatenate(said) == labels
    return right


def _attacked(
    served: ServedNetwork,
    raw: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    steps: int,
    epsilon: float,
    limits: tuple[float, float] | None,
    seed: int,
    device: torch.device,
) -> NDArray[np.bool_]:
    """Right before, and after every step; each step is along the sign of the gradient and within epsilon.

    One step from the record itself is FGSM (Goodfellow, Shlens and Szegedy 2015, arXiv 1412.6572), several
    from a random start PGD (Madry et al. 2018, arXiv 1706.06083).
    """
    standing = _right(served, raw, labels, device=device)
    reach = _raw_unit(served, device) * epsilon
    step = reach * (1.0 if steps == 1 else STEP_SHARE / steps)
    random = np.random.default_rng((seed, steps))
    size = _at_once(served)
    for start in range(0, len(raw), size):
        chosen = slice(start, start + size)
        given = torch.from_numpy(raw[chosen]).to(device)
        rows = served.columns[torch.from_numpy(labels[chosen]).to(device)]
        moved = given
        if steps > 1:
            noise = random.uniform(-1, 1, given.shape).astype(np.float32)
            moved = _within(given, given + torch.from_numpy(noise).to(device) * reach, reach, limits)
        for _ in range(steps):
            uphill = _gradient(served.network, moved, rows).sign()
            moved = _within(given, moved + step * uphill, reach, limits)
            still = _right(served, moved.cpu().numpy(), labels[chosen], device=device)
            standing[chosen] &= still
    return standing


def _gradient(network: nn.Module, inputs: Tensor, rows: Tensor) -> Tensor:
    """Of how much the best other class is preferred; unlike that of the probability it never vanishes only
    because the network is sure. Zero where the true class was never learnt, or is the only one."""
    inputs = inputs.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = network(inputs)
        known = rows < logits.shape[1]
        if logits.shape[1] < 2 or not known.any():
            return torch.zeros_like(inputs)
        logits, rows = logits[known], rows[known]
        own = logits.gather(1, rows[:, None]).squeeze(1)
        others = logits.scatter(1, rows[:, None], -torch.inf).logsumexp(dim=1)
        (gradient,) = torch.autograd.grad((others - own).sum(), inputs)
    return gradient


def _within(given: Tensor, moved: Tensor, reach: Tensor, limits: tuple[float, float] | None) -> Tensor:
    near = torch.minimum(torch.maximum(moved, given - reach), given + reach)
    return near if limits is None else near.clamp(*limits)


def _raw_unit(served: ServedNetwork, device: torch.device) -> Tensor:
    """One unit of the scaled input as a raw feature counts it; of (*shape), or a single number."""
    scaling = served.network.scaling
    if isinstance(scaling, FeatureScaling):
        return (1 / scaling.scale).to(device)
    if isinstance(scaling, ImageScaling):
        return torch.tensor(scaling.largest, device=device)
    return torch.tensor(1.0, device=device)


def _at_once(served: ServedNetwork) -> int:
    return max(1, min(RECORDS, int(getattr(served.network, "records_at_once", RECORDS))))


def corruptions(
    raw: NDArray[np.float32], *, limits: tuple[float, float] | None, seed: int
) -> Mapping[str, NDArray[np.float32]]:
    """Name -> the records (n, *shape) corrupted so: images in five ways, tables by noise on every feature."""
    random = np.random.default_rng((seed, 0))
    if not len(raw):
        return {}
    if raw.ndim < 3:
        spread = raw.std(axis=0, dtype=np.float64)
        return {"noise": _clipped(raw + TABLE_NOISE * spread * random.standard_normal(raw.shape), limits)}
    low, high = limits or (float(raw.min()), float(raw.max()))
    span = high - low
    within = tuple(range(1, raw.ndim))
    mean = raw.mean(axis=within, keepdims=True)
    changed = {
        "noise": raw + NOISE * span * random.standard_normal(raw.shape),
        "blur": _blurred(raw),
        "brightness": raw + BRIGHTER * span,
        "contrast": mean + CONTRAST * (raw - mean),
        "occlusion": _occluded(raw, low, random),
    }
    return {name: _clipped(images, (low, high)) for name, images in changed.items()}


def _clipped(values: NDArray[np.floating], limits: tuple[float, float] | None) -> NDArray[np.float32]:
    inside = values if limits is None else np.clip(values, *limits)
    return np.ascontiguousarray(inside, dtype=np.float32)


def _blurred(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of every pixel and its eight neighbours; the edge is repeated."""
    high, wide = raw.shape[-2:]
    padded = np.pad(raw, [(0, 0)] * (raw.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    shifted = [padded[..., i : i + high, j : j + wide] for i in range(3) for j in range(3)]
    return np.asarray(np.mean(shifted, axis=0), dtype=np.float32)


def _occluded(raw: NDArray[np.float32], low: float, random: np.random.Generator) -> NDArray[np.float32]:
    """A square somewhere in every image is covered."""
    high, wide = raw.shape[-2:]
    side = max(1, min(high, wide) // OCCLUDED)
    covered = raw.copy()
    tops, lefts = random.integers(0, high - side + 1, len(raw)), random.integers(0, wide - side + 1, len(raw))
    for image, top, left in zip(covered, tops, lefts, strict=True):
        image[..., top : top + side, left : left + side] = low
    return covered
