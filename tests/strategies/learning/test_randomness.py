"""Seeding: the same (seed, turn) draws the same numbers, and leaves global random states as they were."""

import random

import numpy as np
import torch

from strategies.learning.randomness import seeded

CPU = torch.device("cpu")


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_the_same_seed_and_turn_draw_the_same_numbers() -> None:
    found = []
    for seed, turn in ((3, 1), (3, 1), (3, 2), (4, 1)):
        with seeded(seed, turn, device=CPU) as generator:
            found.append((*draws(), float(torch.rand((), generator=generator))))
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert all(len(set(numbers)) == 4 for numbers in found)


def test_global_states_go_on_as_if_nothing_was_drawn_even_after_an_error() -> None:
    random.seed(0)
    np.random.seed(0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        expected = draws()
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            with seeded(1, 1, device=CPU):
                draws()
                raise RuntimeError
        except RuntimeError:
            pass
        assert draws() == expected
