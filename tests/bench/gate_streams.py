"""Verdicts on twenty experiences of real streams, and what was truly lost of every experience.

`python -m tests.bench.gate_streams` prints a line a stream, a few minutes in all. A person approves every
review and lifts every freeze at once. The truth is measured on records of each experience that the service
never sees. Streams, sizes and seeds were fixed before the first run; `darkening` was looked at only then.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import structlog
from numpy.typing import NDArray
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from service.pipelines import PipelineSpec, parse
from service.registry import warm_up
from service.settings import Settings
from service.state import champions
from service.state.ledger import By
from service.training.trainer import load_learner
from service.updates import decisions
from streams.records import Records
from tests.support import homes
from tests.support.real_data import elec2, mnist_test

Inputs = NDArray[np.float32]
Labels = NDArray[np.int64]
Part = tuple[Inputs, Labels]

EXPERIENCES = 20
ADA = By("Ada", "a simulated person approves")


@dataclass(frozen=True)
class Stream:
    classes: tuple[str, ...]
    records: int
    """Of each experience that the service sees."""
    parts: Callable[[int], tuple[Part, Part]]
    """Of an experience: what is pushed, and what only the truth is measured on."""
    strategy: Mapping[str, Any] = field(default_factory=dict)


def run_stream(folder: Path, store: Path, stream: Stream) -> tuple[Counter[str], list[str], list[float]]:
    """Outcomes, reasons of what was not promoted, and each experience's true loss since it was learnt."""
    homes.BATCH = stream.records
    outcomes: Counter[str] = Counter()
    reasons: list[str] = []
    truths: list[Part] = []
    anchors: dict[int, float] = {}
    champion: Path | None = None
    with homes.home(folder, store, spec=_spec(stream)) as each:
        for index in range(EXPERIENCES):
            (inputs, labels), truth = stream.parts(index)
            truths.append(truth)
            verdict = each.learn(_records(inputs, labels, index))
            outcomes[verdict.outcome] += 1
            if verdict.outcome != "promote":
                reasons.append(f"{index} {verdict.outcome}: {verdict.reason}")
            update = each.updates()[-1]
            if verdict.outcome == "review":
                decisions.decide_review(each.engine, update.id, choice="approve", by=ADA)
            if verdict.freezes:
                decisions.unfreeze(each.engine, homes.NAME, by=ADA)
            if verdict.outcome != "reject":
                champion = each.settings.checkpoints / update.id
                for learnt in _learnt(each):
                    anchors.setdefault(learnt, _accuracy(champion, truths[learnt]))
        if champion is None:
            raise RuntimeError("nothing was promoted")
        lost = [100 * (anchors[index] - _accuracy(champion, truths[index])) for index in sorted(anchors)]
    return outcomes, reasons, lost


def _learnt(each: homes.Home) -> list[int]:
    with each.engine.begin() as connection:
        found = champions.current(connection, homes.NAME)
        lineage = champions.lineage(connection, homes.NAME, found.version if found else None)
    return list(lineage[-1].learnt) if lineage else []


def _spec(stream: Stream) -> PipelineSpec:
    inputs, _ = stream.parts(0)[0]
    return parse(
        {
            "name": homes.NAME,
            "schema": {"shape": list(inputs.shape[1:]), "classes": list(stream.classes)},
            "trigger": {"records": stream.records},
            "strategy": {
                "name": "replay",
                "capacity": 2000,
                "hidden": [128],
                "epochs": 10,
                "device": "cpu",
                **stream.strategy,
            },
        }
    )


def _records(inputs: Inputs, labels: Labels, index: int) -> Records:
    ids = pa.array([f"{index}-{row}" for row in range(len(labels))])
    times = 1e9 + len(labels) * index + np.arange(len(labels), dtype=np.float64)
    return Records(ids, inputs, labels, times, ids, {})


def _accuracy(update: Path, truth: Part) -> float:
    inputs, labels = truth
    return float((load_learner(update).predict(inputs).argmax(axis=1) == labels).mean())


def _cut(inputs: Inputs, labels: Labels, records: int) -> tuple[Part, Part]:
    return (inputs[:records], labels[:records]), (inputs[records:], labels[records:])


def _elec2(index: int) -> tuple[Part, Part]:
    inputs, labels = elec2()
    rows = np.array_split(np.arange(len(labels)), EXPERIENCES)[index]
    rows = np.random.default_rng(index).permutation(rows)
    return _cut(inputs[rows], labels[rows], 1700)


def _digits(index: int, change: Callable[[Inputs], Inputs]) -> tuple[Part, Part]:
    data = load_digits()
    order = np.random.default_rng(index).permutation(len(data.target))
    images = (data.images[order] / 16).astype(np.float32)
    return _cut(change(images), data.target[order].astype(np.int64), 1200)


def _rotated(index: int) -> tuple[Part, Part]:
    def change(images: Inputs) -> Inputs:
        return np.asarray(rotate(images, 4.0 * index, axes=(1, 2), reshape=False, order=1), dtype=np.float32)

    return _digits(index, change)


def _permuted(index: int) -> tuple[Part, Part]:
    pixels = np.random.default_rng(1000 + index).permutation(64) if index else np.arange(64)
    return _digits(index, lambda images: images.reshape(len(images), 64)[:, pixels].reshape(images.shape))


def _mnist(index: int) -> tuple[Inputs, Labels]:
    """2,000 of MNIST's 10,000 test images at half their width, in an order of their own."""
    images, labels = mnist_test()
    rows = np.random.default_rng(index).permutation(len(labels))
    return (images[rows][:, ::2, ::2] / 255).astype(np.float32), labels[rows]


def _rare(index: int) -> tuple[Part, Part]:
    """Sevens and nines are one record in a hundred each."""
    inputs, labels = _mnist(index)
    keep = (labels != 7) & (labels != 9) | (np.random.default_rng((7, index)).random(len(labels)) < 0.08)
    return _cut(inputs[keep][:3000], labels[keep][:3000], 2000)


def _darkening(index: int) -> tuple[Part, Part]:
    inputs, labels = _mnist(index)
    return _cut(inputs[:2000] * np.float32(1 - 0.04 * index), labels[:2000], 1000)


DIGITS = tuple("0123456789")
STREAMS: Mapping[str, Stream] = {
    "elec2": Stream(("down", "up"), 1700, _elec2),
    "rotated digits": Stream(DIGITS, 1200, _rotated, {"capacity": 4000}),
    "permuted digits": Stream(DIGITS, 1200, _permuted, {"capacity": 8000, "hidden": [256], "epochs": 15}),
    "mnist, rare classes": Stream(DIGITS, 2000, _rare),
    "mnist, darkening": Stream(DIGITS, 1000, _darkening),
}


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="holdfast-streams-") as place:
        store = Path(place) / "store"
        warm_up(Settings(home=store))
        for name, stream in STREAMS.items():
            folder = Path(place) / name.replace(", ", "-").replace(" ", "-")
            outcomes, reasons, lost = run_stream(folder, store / "mlflow.db", stream)
            told = ", ".join(f"{outcomes[kind]} {kind}" for kind in ("promote", "review", "reject"))
            losses = " ".join(f"{each:.1f}" for each in lost)
            sys.stdout.write(f"{name}: {told}; true loss of each, points: {losses} (most {max(lost):.1f})\n")
            for reason in reasons:
                sys.stdout.write(f"  {reason}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
