"""An update at the 300th experience against one at the 10th: seconds, memory and checkpoint size.

Each strategy is measured in a process of its own: `python -m tests.bench.strategies_endurance <strategy>`.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.bench.mnist_streams import build, experience, mnist

CAPACITY = 2000
RECORDS = 500
"""Of an experience: the buffer is full after four."""
EARLY, LATE = range(5, 20), range(290, 305)
"""Numbers of the experiences around the 10th and the 300th; the medians are compared. An update takes some
hundredths of a second, so the median of a few would tell of the machine."""
STRATEGIES: Mapping[str, dict[str, Any]] = {
    "replay": {"capacity": CAPACITY},
    "ewc": {"strength": 100.0},
    "lwf": {},
    "der": {"capacity": CAPACITY, "alpha": 0.1, "beta": 0.5},
    "er-ace": {"capacity": CAPACITY},
    "a-gem": {"capacity": CAPACITY},
}


def ratios(name: str) -> dict[str, float]:
    """Late over early: seconds of an update, resident memory, bytes of a checkpoint."""
    common = {"hidden": (400,), "optimizer": "sgd", "learning_rate": 0.05, "epochs": 1, "batch_size": 64}
    learner = build(name, **common, **STRATEGIES[name])
    images, labels = mnist("train")
    seconds: dict[int, float] = {}
    memory: dict[int, float] = {}
    size: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(LATE.stop):
            chosen = np.arange(number * RECORDS, (number + 1) * RECORDS) % len(labels)
            seconds[number] = learner.learn(experience(number, (images[chosen], labels[chosen]))).seconds
            if number in (*EARLY, *LATE):
                memory[number] = float(psutil.Process().memory_info().rss)
                size[number] = _checkpoint_bytes(learner, Path(folder) / str(number))
    return {
        what: _median(values, LATE) / _median(values, EARLY)
        for what, values in (("seconds", seconds), ("memory", memory), ("checkpoint", size))
    }


def _checkpoint_bytes(learner: Any, folder: Path) -> float:
    learner.save(folder)
    return float(sum(path.stat().st_size for path in folder.iterdir()))


def _median(values: Mapping[int, float], numbers: Sequence[int]) -> float:
    return statistics.median(values[number] for number in numbers)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(ratios(sys.argv[1])) + "\n")
