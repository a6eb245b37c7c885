"""ResNet-18 on 32x32 images, replay, batches of 256 new and 256 kept: ours, plain Avalanche, a loop by hand.

Needs a CUDA device. The images are drawn, as only time is measured. The loop by hand is compiled, with CUDA
graphs, in bfloat16 with channels last, as ours is. Kernels are compiled before the clock runs.

Plain Avalanche is timed in two ways: over float tensors that stand ready, the fastest it can be given, and
over pictures that are cropped and mirrored, as in its own SplitCIFAR10; ours crops and mirrors there too.

`python -m tests.bench.bench_gpu RIVAL ...` times only those that are named.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision import transforms

from strategies.base import StreamInfo
from strategies.catalog import STRATEGIES
from streams.base import Experience
from tests.bench.measure import Measured

Drawn = tuple[Any, Any]
"""(n, 3, 32, 32) uint8 and (n,) labels."""
Rival = Callable[[int, Any, Any], None]
"""Learns the images of an experience, given its number."""

CLASSES = 10
BATCH = 256
RECORDS = 10_240
CAPACITY = 2_560
ROUNDS = 3


def images(index: int) -> Drawn:
    draw = np.random.default_rng(index)
    labels = draw.integers(CLASSES, size=RECORDS)
    labels[:CLASSES] = np.arange(CLASSES)
    return draw.integers(256, size=(RECORDS, 3, 32, 32), dtype=np.uint8), labels


def ours(**settings: Any) -> Rival:
    spec = STRATEGIES["replay"]
    settings |= {
        "network": "resnet18",
        "capacity": CAPACITY,
        "batch_size": BATCH,
        "epochs": 1,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "device": "cuda",
        "channels_last": True,
        "precision": "bfloat16",
        "compile": "graphs",
    }
    info = StreamInfo((3, 32, 32), tuple(str(c) for c in range(CLASSES)), "uint8")
    learner = spec.build(spec.config.model_validate(settings), info)

    def learn(index: int, inputs: Any, labels: Any) -> None:
        learner.learn(Experience(index, inputs, labels, np.zeros(RECORDS, np.str_), {}, ""))

    return learn


class Pictures(Dataset[Any]):
    """What torchvision's CIFAR10 is: pictures one by one, each transformed as it is asked for."""

    varied = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )

    def __init__(self, inputs: Any, labels: Any) -> None:
        self.pixels = inputs.transpose(0, 2, 3, 1).copy()
        self.targets = labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        return self.varied(Image.fromarray(self.pixels[place])), self.targets[place]


def plain(*, varied: bool) -> Rival:
    from avalanche.benchmarks.scenarios import DatasetExperience
    from avalanche.benchmarks.utils.classification_dataset import (
        _make_taskaware_classification_dataset,
        _make_taskaware_tensor_classification_dataset,
    )
    from avalanche.training import plugins, supervised
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    network = resnet()
    strategy = supervised.Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=1,
        device="cuda",
        evaluator=plugins.EvaluationPlugin(),
        plugins=[
            plugins.ReplayPlugin(
                CAPACITY,
                batch_size=BATCH,
                batch_size_mem=BATCH,
                storage_policy=ReservoirSamplingBuffer(CAPACITY),
            )
        ],
    )

    def learn(index: int, inputs: Any, labels: Any) -> None:
        if varied:
            data = _make_taskaware_classification_dataset(Pictures(inputs, labels), task_labels=0)
        else:
            data = _make_taskaware_tensor_classification_dataset(
                torch.from_numpy(inputs).float() / 255, torch.from_numpy(labels), task_labels=0
            )
        shown = DatasetExperience(dataset=data, current_experience=index)
        shown.classes_in_this_experience = list(range(CLASSES))
        strategy.train(shown, eval_streams=[])

    return learn


def resnet() -> nn.Module:
    from strategies.learning.bodies import resnet18

    return nn.Sequential(resnet18(3), nn.Linear(512, CLASSES))


def by_hand() -> Rival:
    network: Any = resnet().to("cuda").to(memory_format=torch.channels_last)
    compiled: Any = torch.compile(network, mode="reduce-overhead", dynamic=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, fused=True)
    kept: list[torch.Tensor] = []

    def learn(index: int, inputs: Any, labels: Any) -> None:
        pixels = torch.from_numpy(inputs).to("cuda").float().div_(255)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        rows = torch.from_numpy(labels).to("cuda")
        for chosen in torch.split(torch.randperm(RECORDS, device="cuda"), BATCH):
            batch, wanted = pixels[chosen], rows[chosen]
            if kept:
                again = torch.randint(CAPACITY, (BATCH,), device="cuda")
                batch, wanted = torch.cat((batch, kept[0][again])), torch.cat((wanted, kept[1][again]))
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                logits = compiled(batch)
            loss: Any = nn.functional.cross_entropy(logits.float(), wanted)
            loss.backward()
            optimizer.step()
        stays = torch.randperm(RECORDS, device="cuda")[:CAPACITY]
        kept[:] = [pixels[stays].clone(), rows[stays].clone()]

    return learn


RIVALS: Mapping[str, Callable[[], Rival]] = {
    "ours": ours,
    "plain": partial(plain, varied=False),
    "hand": by_hand,
    "ours varied": partial(ours, augment=["crop", "flip"]),
    "plain varied": partial(plain, varied=True),
}


def medians(names: Iterable[str]) -> dict[str, float]:
    """Seconds an experience, of rivals that learn in turn."""
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; this area needs one.")
    warnings.filterwarnings("ignore", module="avalanche")
    rivals = {name: RIVALS[name]() for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(2 + ROUNDS):
        drawn = images(number)
        for name, learn in rivals.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            learn(number, *drawn)
            torch.cuda.synchronize()
            took = time.perf_counter() - began
            sys.stdout.write(f"experience {number}, {name}: {took:.3f} s\n")
            sys.stdout.flush()
            # The first has nothing to replay, and both compile.
            if number >= 2:
                seconds[name].append(took)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    sys.stdout.write(f"{torch.cuda.get_device_name()}: seconds {median}\n")
    return median


def run() -> list[Measured]:
    median = medians(RIVALS)
    tensors, pictures = median["plain"] / median["ours"], median["plain varied"] / median["ours varied"]
    by_hand_seconds = median["hand"] / median["ours"]
    return [
        Measured("speed, of plain Avalanche over varied pictures", pictures, "ratio", 10, ">="),
        Measured("speed, of plain Avalanche over ready tensors", tensors, "ratio", 10, ">="),
        Measured("speed, of a compiled loop by hand", by_hand_seconds, "ratio", 0.7, ">="),
    ]


if __name__ == "__main__":
    medians(sys.argv[1:])
