"""What the gate says to ten experiences of real digits, turned or permuted, under three strategies, and why.

`python -m tests.bench.gate_verdicts` prints every verdict with its reason, a few minutes in all.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from service.registry import warm_up
from service.settings import Settings
from streams.sources.datasets import DatasetsConfig, digits_step
from tests.support.homes import declared, home

STREAMS: Mapping[str, DatasetsConfig] = {
    "rotated": DatasetsConfig(protocol="rotated-digits", angles=tuple(10.0 * step for step in range(10))),
    "permuted": DatasetsConfig(protocol="permuted-digits", permutations=10),
}
STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "naive": {"name": "naive"},
    "ewc": {"name": "ewc"},
    "replay": {"name": "replay", "capacity": 4000},
}
GATE: Mapping[str, Any] = {"margin": 0.05, "learning_margin": 0.05}
"""What 540 holdout records of 1,797 settle."""


def verdicts(folder: Path, store: Path, *, stream: DatasetsConfig, strategy: Mapping[str, Any]) -> list[str]:
    """One line an update: outcome, accuracies on the past in short, and the reason."""
    spec = declared(
        trigger={"records": 1797},
        split={"gate": 0.3, "audit": 0.05},
        strategy={"hidden": [128, 128], "epochs": 20, "learning_rate": 1e-3, **strategy},
        gate=dict(GATE),
    )
    lines = []
    with home(folder, store, spec=spec) as each:
        for step in range(stream.steps):
            began = time.perf_counter()
            verdict = each.learn(digits_step(stream, step))
            past = [
                f"{finding.numbers['challenger_accuracy']:.2f}"
                for finding in verdict.findings
                if finding.guard == "retention" and "challenger_accuracy" in finding.numbers
            ]
            took = time.perf_counter() - began
            lines.append(f"{step}: {verdict.outcome} ({took:.1f} s; past {' '.join(past)}): {verdict.reason}")
    return lines


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="holdfast-verdicts-") as place:
        store = Path(place) / "store"
        warm_up(Settings(home=store))
        for protocol, stream in STREAMS.items():
            for name, strategy in STRATEGIES.items():
                folder = Path(place) / f"{protocol}-{name}"
                sys.stdout.write(f"{protocol} digits, {name}\n")
                for line in verdicts(folder, store / "mlflow.db", stream=stream, strategy=strategy):
                    sys.stdout.write(f"  {line}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
