"""Ours against plain Avalanche and a torch loop by hand: split MNIST, one CPU thread, one process a method.

60,000 images in five experiences of two classes, a perceptron of 784-400-10, SGD of 0.05, batches of 64, one
epoch. Each method is run in turn with its rivals, over three seeds; ratios are of the medians of seconds, and
accuracies are means over the seeds, on all ten classes. The images are those that HOLDFAST_TEST_DATA holds.
"""

import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.bench.measure import Measured
from tests.bench.mnist_streams import build, experience, mnist, split
from tests.bench.strategies_endurance import STRATEGIES as endured

SEEDS = (0, 1, 2)
BATCH = 64
RATE = 0.05
HIDDEN = 400
CAPACITY = 2000
REHEARSAL = {"capacity": CAPACITY, "balance": "classes"}
OURS: Mapping[str, dict[str, Any]] = {
    "naive": {},
    "replay": {"capacity": CAPACITY},
    "er-ace": REHEARSAL,
    "der": REHEARSAL | {"alpha": 0.1, "beta": 0.5},
    "lwf": {"alpha": 1.0, "temperature": 2.0},
    "ewc": {"strength": 1.0},
    "si": {"strength": 1.0},
    "mas": {"strength": 0.01},
}
OF_PLAIN = {
    "naive": 0.8,
    "replay": 0.7,
    "er-ace": 0.7,
    "der": 0.7,
    "lwf": 0.75,
    "ewc": 0.5,
    "si": 0.6,
    "mas": 0.6,
}
"""Most of plain Avalanche's seconds."""
OF_HAND = {"naive": 1.15, "replay": 1.15}
"""Most of the hand-written loop's seconds, which does the same arithmetic."""

Run = Callable[[str, int], tuple[float, Callable[[Tensor], Tensor]]]


def ours(name: str, seed: int) -> tuple[float, Callable[[Tensor], Tensor]]:
    """Seconds of learning the stream, and what answers then."""
    common = {"hidden": (HIDDEN,), "optimizer": "sgd", "learning_rate": RATE, "epochs": 1}
    learner = build(name, **common, batch_size=BATCH, seed=seed, **OURS[name])
    seconds = sum(learner.learn(experience(index, data)).seconds for index, data in enumerate(split()))
    return seconds, lambda inputs: torch.from_numpy(learner.predict(inputs.numpy())).argmax(1)


def by_hand(name: str, seed: int) -> tuple[float, Callable[[Tensor], Tensor]]:
    """A loop that a person would write: whole tensors, scaled once, one permutation an epoch, a reservoir."""
    from strategies.learning.networks import Network
    from strategies.naive import NaiveConfig

    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    network = Network(NaiveConfig(hidden=(HIDDEN,)), (784,))
    network.head.grow(10, draw)
    network.scaling.fit(torch.from_numpy(split()[0][0]))
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    kept_inputs, kept_rows, kept_keys = torch.empty(0, 784), torch.empty(0).long(), torch.empty(0)
    seconds = 0.0
    for images, labels in split():
        rows = torch.from_numpy(labels)
        began = time.perf_counter()
        inputs = network.prepare(torch.from_numpy(images))
        for chosen in torch.split(torch.randperm(len(rows), generator=draw), BATCH):
            batch, wanted = inputs[chosen], rows[chosen]
            if name == "replay" and len(kept_rows):
                again = torch.randint(len(kept_rows), (BATCH,), generator=draw)
                batch = torch.cat((batch, kept_inputs[again]))
                wanted = torch.cat((wanted, kept_rows[again]))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network.answer(batch), wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if name == "replay":
            keys = torch.cat((kept_keys, torch.rand(len(rows), generator=draw)))
            stays = keys.topk(min(CAPACITY, len(keys))).indices
            kept_inputs, kept_rows = (
                torch.cat((kept_inputs, inputs))[stays],
                torch.cat((kept_rows, rows))[stays],
            )
            kept_keys = keys[stays]
        seconds += time.perf_counter() - began
    return seconds, lambda given: network(given).detach().argmax(1)


def plain(name: str, seed: int) -> tuple[float, Callable[[Tensor], Tensor]]:
    """Avalanche as it comes, fed as its documentation feeds it, with nothing measured or logged meanwhile."""
    from avalanche.benchmarks.scenarios import DatasetExperience
    from avalanche.benchmarks.utils.classification_dataset import (
        _make_taskaware_tensor_classification_dataset,
    )
    from avalanche.models import SimpleMLP
    from avalanche.training import plugins, supervised
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    import strategies.learning.avalanche  # noqa: F401  # imports Avalanche quietly

    torch.manual_seed(seed)
    np.random.seed(seed)
    network = SimpleMLP(num_classes=10, input_size=784, hidden_size=HIDDEN, drop_rate=0.0)
    common: dict[str, Any] = {
        "model": network,
        "optimizer": torch.optim.SGD(network.parameters(), lr=RATE),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": BATCH,
        "train_epochs": 1,
        "device": "cpu",
        "evaluator": plugins.EvaluationPlugin(),
    }
    memory = {"mem_size": CAPACITY, "batch_size_mem": BATCH}
    strategy = {
        "naive": lambda: supervised.Naive(**common),
        "replay": lambda: supervised.Naive(
            **common,
            plugins=[
                plugins.ReplayPlugin(
                    CAPACITY,
                    batch_size=BATCH,
                    batch_size_mem=BATCH,
                    storage_policy=ReservoirSamplingBuffer(CAPACITY),
                )
            ],
        ),
        "er-ace": lambda: supervised.ER_ACE(**common, **memory),
        "der": lambda: supervised.DER(**common, **memory, alpha=0.1, beta=0.5),
        "lwf": lambda: supervised.LwF(**common, alpha=1.0, temperature=2.0),
        "ewc": lambda: supervised.EWC(**common, ewc_lambda=1.0, mode="online", decay_factor=1.0),
        "si": lambda: supervised.SynapticIntelligence(**common, si_lambda=1.0),
        "mas": lambda: supervised.MAS(**common, lambda_reg=1.0),
    }[name]()
    seconds = 0.0
    for index, (images, labels) in enumerate(split()):
        data = _make_taskaware_tensor_classification_dataset(
            torch.from_numpy(images), torch.from_numpy(labels), task_labels=0
        )
        shown = DatasetExperience(dataset=data, current_experience=index)
        shown.classes_in_this_experience = sorted(set(labels.tolist()))
        began = time.perf_counter()
        strategy.train(shown, eval_streams=[])
        seconds += time.perf_counter() - began
    network.eval()
    return seconds, lambda given: network(given).detach().argmax(1)


RIVALS: Mapping[str, Run] = {"ours": ours, "plain": plain, "hand": by_hand}


def figures(name: str) -> dict[str, float]:
    """Seconds and accuracy of ours and its rivals at one method, in turn over the seeds."""
    torch.set_num_threads(1)
    # Avalanche warns of its own deprecated calls, and that it logs nothing.
    warnings.filterwarnings("ignore", module="avalanche")
    images, labels = mnist("test")
    given, wanted = torch.from_numpy(images), torch.from_numpy(labels)
    runs = [rival for rival in RIVALS if rival != "hand" or name in OF_HAND]
    seconds: dict[str, list[float]] = {rival: [] for rival in runs}
    accuracy: dict[str, list[float]] = {rival: [] for rival in runs}
    for seed in SEEDS:
        for rival in runs:
            took, answer = RIVALS[rival](name, seed)
            seconds[rival].append(took)
            accuracy[rival].append(float((answer(given) == wanted).float().mean()))
    found = {f"{rival} seconds": statistics.median(values) for rival, values in seconds.items()}
    return found | {f"{rival} accuracy": statistics.mean(values) for rival, values in accuracy.items()}


def run() -> list[Measured]:
    return [*_against_rivals(), *_over_300_experiences(), *_over_20_permutations()]


def _json_of(module: str, *arguments: str) -> dict[str, float]:
    """What a module prints last, run in a process of its own."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _over_300_experiences() -> list[Measured]:
    return [
        Measured(f"{name}: {what}, 300th of 10th experience", ratio, "ratio", 1.1, "<=")
        for name in endured
        for what, ratio in _json_of("strategies_endurance", name).items()
    ]


def _over_20_permutations() -> list[Measured]:
    found = _json_of("strategies_permuted")
    return [
        Measured(
            "replay on 20 permutations: accuracy, of cumulative", found["accuracy"], "ratio", 0.97, ">="
        ),
        Measured("replay on 20 permutations: seconds, of cumulative", found["seconds"], "ratio", 0.2, "<="),
    ]


def _against_rivals() -> list[Measured]:
    results = []
    for name, most in OF_PLAIN.items():
        found = _json_of("bench_strategies", name)
        ratio = found["ours seconds"] / found["plain seconds"]
        results.append(Measured(f"{name}: seconds, of plain Avalanche", ratio, "ratio", most, "<="))
        if name in OF_HAND:
            of_hand = found["ours seconds"] / found["hand seconds"]
            results.append(
                Measured(f"{name}: seconds, of a loop by hand", of_hand, "ratio", OF_HAND[name], "<=")
            )
        behind = found["plain accuracy"] - found["ours accuracy"]
        results.append(Measured(f"{name}: accuracy behind plain Avalanche", behind, "share", 0.01, "<="))
    return results


if __name__ == "__main__":
    sys.stdout.write(json.dumps(figures(sys.argv[1])) + "\n")
