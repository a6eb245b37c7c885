"""Latency of two networks on the same batch, measured in turns so that other load affects both."""

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

ROUNDS = 31
WARM_UPS = 3


@torch.no_grad()
def rounds(
    first: nn.Module, second: nn.Module, batch: NDArray[np.generic]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of each network in each round, on the CPU; the networks take turns at going first."""
    inputs = torch.from_numpy(np.array(batch, dtype=np.float32, order="C"))
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(WARM_UPS + ROUNDS):
        turns = [(first, taken[0]), (second, taken[1])]
        for network, seconds in turns if number % 2 else reversed(turns):
            started = time.perf_counter()
            network(inputs)
            seconds.append(time.perf_counter() - started)
    return tuple(taken[0][WARM_UPS:]), tuple(taken[1][WARM_UPS:])
