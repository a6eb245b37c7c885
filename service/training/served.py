"""The served network of a learner: its export, its size, and its comparison with the champion's."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.errors import ServedDamagedError
from service.exported import read_served
from service.gate.base import Disturbed
from service.training.answers import sample
from service.training.tasks import SERVED_FILE, Task
from strategies.base import Learner, StrategyError, StreamInfo
from streams.base import Experience

log = logging.getLogger(__name__)

Rounds = tuple[tuple[float, ...], tuple[float, ...]]
"""Seconds of each round, of the champion and of the challenger."""


def compare_served(
    task: Task, champion: Any, challenger: Learner, holdouts: Sequence[Experience]
) -> tuple[tuple[Disturbed, ...], Rounds]:
    """Answers of both served networks on disturbed records, and the time each takes; where a guard asks.

    `champion` is its served network, copied before it learnt; None: there is no champion, or no guard asks.
    """
    if champion is None:
        return (), ((), ())
    from strategies.learning import robustness, timing
    from strategies.learning.learner import choose_device
    from strategies.learning.networks import ServedNetwork

    gate, seed = task.gate, int(task.strategy.get("seed", 0))
    served = challenger.served_network()
    inputs, labels = sample(holdouts, limit=gate.robustness_records, seed=seed)
    timed: Rounds = ((), ())
    if gate.latency_ratio is not None and len(inputs):
        timed = timing.rounds(champion, served, inputs[:_TIMED])
    if gate.robustness is None or not len(inputs):
        return (), timed
    if not (isinstance(champion, ServedNetwork) and isinstance(served, ServedNetwork)):
        return (), timed
    by_champion, by_challenger = (
        robustness.answers_disturbed(
            network,
            inputs,
            labels,
            ways=gate.robustness_against,
            epsilon=gate.robustness_epsilon,
            limits=(0.0, 255.0) if task.stream.dtype == "uint8" else None,
            seed=seed,
            device=choose_device(task.strategy.get("device", "auto")),
        )
        for network in (champion, served)
    )
    return tuple(Disturbed(way, by_champion[way], by_challenger[way]) for way in by_challenger), timed


_TIMED = 64
"""Records of the batch on which both served networks are timed."""


def export(learner: Learner, stream: StreamInfo, path: Path) -> None:
    """Write the served network as a pt2 archive with a free batch size."""
    import torch

    # Two rows: the exporter would freeze a batch size of one.
    example = torch.zeros(2, *stream.shape, dtype=torch.float32)
    batch = {0: torch.export.Dim("batch")}
    try:
        program = torch.export.export(learner.served_network().cpu(), (example,), dynamic_shapes=(batch,))
    except Exception as error:  # an installation's own network may do what no graph can hold
        # The exporter's own traceback is thousands of lines that say no more than its first one.
        log.warning("network not exported: %s", str(error).partition("\n")[0])
        raise StrategyError(
            f"the network cannot be exported to serve any number of records ({type(error).__name__}): see "
            "the log of its trainer"
        ) from None
    torch.export.save(program, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    try:
        read_served(path, None)
    except ServedDamagedError as error:
        # What no reader will take must not become a version.
        raise StrategyError(f"the network cannot be exported as a plain graph: {error.detail}") from error


def served_bytes(folder: Path | None) -> int | None:
    """Size of the served network in an update's folder; None where there is none."""
    if folder is None or not (folder / SERVED_FILE).exists():
        return None
    return (folder / SERVED_FILE).stat().st_size
