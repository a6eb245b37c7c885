"""How long a warm update takes: `python -m tests.bench.bench_strategies`, one CPU thread.

1,200 records of 8x8, 10 epochs, batch 64, hidden (128, 128); replay holds 1,200 records; cumulative has
learnt two experiences before. Budgets: naive about 0.4 s, replay well under 1.5 s.
"""

import statistics

import numpy as np
import torch

from strategies.base import StreamInfo
from strategies.catalog import STRATEGIES
from streams.base import Experience

RECORDS = 1200
SETTINGS = {"replay": {"capacity": RECORDS}, "cumulative": {"max_records": 100_000}}


def make_experience(index: int) -> Experience:
    draw = np.random.default_rng(index)
    labels = draw.integers(10, size=RECORDS)
    inputs = draw.normal(size=(RECORDS, 8, 8)).astype(np.float32) + labels[:, None, None]
    return Experience(index, inputs.astype(np.float32), labels, labels.astype(np.str_), {}, "")


def main() -> None:
    """Print the median seconds of an update of each strategy."""
    torch.set_num_threads(1)
    info = StreamInfo(shape=(8, 8), classes=tuple("0123456789"))
    for name, spec in STRATEGIES.items():
        learner = spec.build(spec.config.model_validate(SETTINGS.get(name, {}) | {"device": "cpu"}), info)
        seconds = [learner.learn(make_experience(index)).seconds for index in range(6)]
        measured = seconds[2:3] if name == "cumulative" else seconds[1:]
        print(f"{name:12} {statistics.median(measured):.3f} s")


if __name__ == "__main__":
    main()
