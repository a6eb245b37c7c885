"""Records a result's origin: environment, own networks and weights, digests of checkpoint files."""

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from service.training.checkpoint import digest, digests
from service.training.tasks import Origin, Task
from strategies.base import StrategyError
from strategies.network_choice import Installation


def origin_of(task: Task) -> Origin:
    """The origin of a result that this process is about to make; `made` is still empty.

    Raises:
        StrategyError: a file of the champion's checkpoint cannot be read.
    """
    from strategies.learning.environment import learning_environment

    try:
        base = digests(task.champion)
    except OSError as error:
        raise StrategyError(f"the champion's checkpoint cannot be read: {error}") from error
    return Origin(
        inputs=task.inputs,
        environment=learning_environment(str(task.strategy.get("device", "auto"))),
        installed=installed(task.strategy, task.installation),
        base=base,
    )


def installed(strategy: Mapping[str, Any], installation: Installation) -> dict[str, str]:
    """Digests of the own network and the weight file that a strategy's config names.

    For an own network: its function, and the sha256 of its module's file but not of what that imports. For
    weights: the sha256 of their file. A name that the installation lacks is left out; learning reports it.
    """
    network = strategy.get("network")
    if not isinstance(network, Mapping):
        return {}
    if network.get("name") == "own" and network["of"] in installation.networks:
        function = installation.networks[network["of"]]
        return {f"network {network['of']}": f"{function} sha256 {_source(function.partition(':')[0])}"}
    weights = network.get("weights")
    if weights is None:
        return {}
    try:
        return {f"weights {weights}": f"sha256 {digest(installation.weights_file(weights))}"}
    except ValueError:
        return {}


def _source(module: str) -> str:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return "unknown"
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return "unknown"
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
