"""Describes the machine and the libraries that learning depends on, and sets the number of threads."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from strategies.base import LearningEnvironment
from strategies.learning.learner import choose_device

PACKAGES = ("torch", "torchvision", "avalanche-lib", "numpy", "scipy", "scikit-learn", "cleanlab")
"""Libraries that compute part of a challenger or of the gate's evidence."""


def learning_environment(device: str) -> LearningEnvironment:
    """The environment of this process, for a learner whose config asks for `device`.

    Raises:
        StrategyError: a GPU is asked for by name and there is none.
    """
    chosen = choose_device(device)
    return LearningEnvironment(
        device="cpu" if chosen.type == "cpu" else torch.cuda.get_device_name(chosen),
        threads=torch.get_num_threads(),
        machine=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        packages={"python": platform.python_version(), **_installed()},
    )


def device_here() -> str:
    """The device that `auto` selects here: "cpu", or the name of the GPU."""
    return learning_environment("auto").device


def use_threads(threads: int) -> None:
    """Run torch operations on this many threads; the order of sums depends on it."""
    torch.set_num_threads(threads)


def _installed() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
