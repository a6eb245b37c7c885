"""Seeding of all global random states from (seed, turn), so that resuming needs no saved state."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, turn: int, *, device: torch.device) -> Iterator[torch.Generator]:
    """Context manager: inside, global random states follow (seed, turn); afterwards, each is restored.

    Gives a CPU generator of its own, for draws that must not depend on who else draws: the global states
    are the process's, so another thread that draws meanwhile would disturb them.
    """
    words = [int(word) for word in np.random.SeedSequence((seed, turn)).generate_state(4, np.uint64)]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            random.seed(words[0])
            np.random.seed(words[1] % 2**32)
            torch.default_generator.manual_seed(words[2])
            if devices:
                torch.cuda.manual_seed(words[2])
            yield torch.Generator().manual_seed(words[3])
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
