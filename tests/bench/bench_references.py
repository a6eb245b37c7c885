"""The field's reference figures on split and permuted MNIST, by our strategies: mean and spread over seeds.

`python -m tests.bench.bench_references NAME [SEED [DEVICE]]` measures one of them. The settings of each are
those of its published figure where known; docs/reference/strategies.md says where they differ.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.bench.measure import Measured
from tests.bench.mnist_streams import accuracy, build, experience, mnist, permuted, split

SEEDS = (0, 1, 2)
SGD: Mapping[str, Any] = {"optimizer": "sgd", "epochs": 1}


@dataclass(frozen=True)
class Reference:
    """A strategy on a protocol, and the accuracy that is published for it."""

    strategy: str
    published: float
    """Least mean accuracy over all classes or permutations after the last experience."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    permutations: int = 0
    """0 is split MNIST: five experiences of two classes, all ten told apart."""


REFERENCES: Mapping[str, Reference] = {
    "split: gdumb(4400)": Reference(
        "gdumb",
        0.97,
        {
            "capacity": 4400,
            "hidden": (400, 400),
            "network": {"name": "mlp", "dropout": 0.3},
            "augment": [{"name": "noise", "deviation": 0.7}],
            "epochs": 60,
            "schedule": "cosine",
        },
    ),
    "split: lwf": Reference(
        "lwf", 0.23, {**SGD, "hidden": (512,), "learning_rate": 0.01, "alpha": 1.0, "batch_size": 200}
    ),
    "split: replay(2000)": Reference("replay", 0.9, {"capacity": 2000, "epochs": 2}),
    "split: er-ace(2000)": Reference("er-ace", 0.9, {"capacity": 2000, "epochs": 2}),
    "split: der++(2000)": Reference("der", 0.9, {"capacity": 2000, "epochs": 2}),
    "permuted: ewc": Reference(
        "ewc",
        0.83,
        {"hidden": (400, 400), "epochs": 2, "batch_size": 256, "fisher": "records", "strength": 30.0},
        permutations=10,
    ),
    "permuted: si": Reference(
        "si", 0.83, {"hidden": (400, 400), "epochs": 2, "batch_size": 256}, permutations=10
    ),
    "permuted: a-gem": Reference(
        "a-gem",
        0.81,
        {**SGD, "hidden": (256, 256), "learning_rate": 0.01, "batch_size": 64, "capacity": 4000},
        permutations=10,
    ),
    "permuted: gem": Reference(
        "gem",
        0.80,
        {**SGD, "hidden": (256, 256), "learning_rate": 0.01, "batch_size": 64, "capacity": 4000},
        permutations=10,
    ),
}


def reached(reference: Reference, seed: int, device: str = "cpu") -> float:
    """Accuracy after the last experience: on all ten classes, or the mean over permutations."""
    learner = build(reference.strategy, seed=seed, device=device, **reference.settings)
    if not reference.permutations:
        for index, data in enumerate(split()):
            learner.learn(experience(index, data))
        return accuracy(learner, mnist("test"))
    for step in range(reference.permutations):
        learner.learn(experience(step, permuted(step, "train", records=60_000)))
    steps = range(reference.permutations)
    return statistics.mean(accuracy(learner, permuted(step, "test", records=10_000)) for step in steps)


def run() -> list[Measured]:
    results = []
    for name, reference in REFERENCES.items():
        command = [sys.executable, "-m", "tests.bench.bench_references", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found: list[float] = json.loads(done.stdout.splitlines()[-1])
        mean, spread = statistics.mean(found), statistics.stdev(found)
        sys.stdout.write(f"{name}: {found}\n")
        sys.stdout.flush()
        results.append(Measured(f"{name} (+-{spread:.3f})", mean, "accuracy", reference.published, ">="))
    return results


if __name__ == "__main__":
    name, *chosen = sys.argv[1:]
    seeds = [int(chosen[0])] if chosen else SEEDS
    figures = [reached(REFERENCES[name], seed, *chosen[1:]) for seed in seeds]
    sys.stdout.write(json.dumps(figures) + "\n")
