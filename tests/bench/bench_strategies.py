"""How long each strategy takes to learn one experience, one CPU thread.

1,200 records of 8x8, 10 epochs, batch 64, hidden (128, 128); replay holds 1,200 records; cumulative has
learnt two experiences before. The goal leaves room in the five seconds of a warm update.
"""

import statistics

import numpy as np
import torch

from strategies.base import StreamInfo
from strategies.catalog import STRATEGIES
from streams.base import Experience
from tests.bench.measure import Measured

RECORDS = 1200
SETTINGS = {"replay": {"capacity": RECORDS}, "cumulative": {"max_records": 100_000}}


def make_experience(index: int) -> Experience:
    draw = np.random.default_rng(index)
    labels = draw.integers(10, size=RECORDS)
    inputs = draw.normal(size=(RECORDS, 8, 8)).astype(np.float32) + labels[:, None, None]
    return Experience(index, inputs.astype(np.float32), labels, labels.astype(np.str_), {}, "")


def run() -> list[Measured]:
    torch.set_num_threads(1)
    info = StreamInfo(shape=(8, 8), classes=tuple("0123456789"))
    results = []
    for name, spec in STRATEGIES.items():
        learner = spec.build(spec.config.model_validate(SETTINGS.get(name, {}) | {"device": "cpu"}), info)
        seconds = [learner.learn(make_experience(index)).seconds for index in range(6)]
        measured = seconds[2:3] if name == "cumulative" else seconds[1:]
        results.append(Measured(f"{name}, 1,200 records", statistics.median(measured), "s", 2.5, "<="))
    return results
