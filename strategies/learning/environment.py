"""The machine and libraries that learning depends on: what they are here, and how to go by others."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from strategies.base import LearningEnvironment
from strategies.learning.learner import choose_device

PACKAGES = ("torch", "torchvision", "avalanche-lib", "numpy", "scipy", "scikit-learn", "cleanlab")
"""Libraries that compute something of a challenger or of what the gate is shown."""


def learning_environment(device: str) -> LearningEnvironment:
    """Those of this process, for a learner whose config asks for `device`.

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
    """What `device: auto` would take here: "cpu", or the name of the GPU."""
    return learning_environment("auto").device


def use_threads(threads: int) -> None:
    """Share operations out to so many threads from now on: sums depend on it."""
    torch.set_num_threads(threads)


def _installed() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
