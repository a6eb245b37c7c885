"""A rare class whose labels are not in yet: twenty seeds of a stream of two months, judged by the service.

`python -m tests.bench.gate_rare FOLDER` reads `2025-01.csv.gz` and `2025-02.csv.gz` (columns a, b, c and
label, genuine or fraud). A record is a fraud where a + b exceeds 3; the second month's file has few of them
labelled so. Each seed learns the first month, then the second one twice: as labelled, and with true labels.
"""

import csv
import gzip
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import structlog

from service.pipelines import PipelineSpec, parse
from service.registry import warm_up
from service.settings import Settings
from service.state.ledger import By
from service.updates import decisions
from streams.records import Records
from tests.bench.measure import Measured, report
from tests.support import homes

SEEDS = 20
CLASSES = ("genuine", "fraud")
ADA = By("Ada", "a first version may go out")


def run(folder: Path) -> list[Measured]:
    """How often the second month is promoted: with true labels, and with the class mostly lost."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    first, second = (_records(folder / f"2025-0{month}.csv.gz", month) for month in (1, 2))
    found = []
    with tempfile.TemporaryDirectory(prefix="holdfast-rare-") as place:
        store = Path(place) / "store"
        warm_up(Settings(home=store))
        months = {"true labels": _with_true_labels(second), "the class lost": second}
        for name, month in months.items():
            said: Counter[str] = Counter()
            for seed in range(SEEDS):
                home = Path(place) / f"{name.replace(' ', '-')}-{seed}"
                outcome = _learnt_after(first, month, home, store / "mlflow.db", seed)
                said[outcome] += 1
                sys.stdout.write(f"{name}, seed {seed}: {outcome}\n")
                sys.stdout.flush()
            asked = f"asked {said['review']}, rejected {said['reject']}"
            told, promoted, unit = f"{name}: promoted ({asked})", float(said["promote"]), f"of {SEEDS}"
            if month is second:
                found.append(Measured(told, promoted, unit, 0.0, "<="))
            else:
                found.append(Measured(told, promoted, unit, 18.0, ">="))
    return found


def _learnt_after(first: Records, second: Records, folder: Path, store: Path, seed: int) -> str:
    homes.BATCH = len(first)
    with homes.home(folder, store, spec=_spec(len(first), seed)) as each:
        if each.learn(first).outcome == "review":
            decisions.decide_review(each.engine, each.updates()[-1].id, choice="approve", by=ADA)
        return each.learn(second).outcome


def _spec(records: int, seed: int) -> PipelineSpec:
    strategy = {"name": "naive", "epochs": 20, "hidden": [64], "learning_rate": 0.01, "seed": seed}
    return parse(
        {
            "name": homes.NAME,
            "schema": {"columns": ["a", "b", "c"], "classes": list(CLASSES)},
            "trigger": {"records": records},
            "strategy": strategy | {"device": "cpu"},
        }
    )


def _records(path: Path, month: int) -> Records:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    inputs = np.array([[row["a"], row["b"], row["c"]] for row in rows], dtype=np.float32)
    labels = np.array([CLASSES.index(row["label"]) for row in rows], dtype=np.int64)
    ids = pa.array([f"{month}-{row}" for row in range(len(rows))])
    return Records(ids, inputs, labels, 1e9 + 1e6 * month + np.arange(len(rows), dtype=np.float64), ids, {})


def _with_true_labels(records: Records) -> Records:
    frauds = np.round(records.features[:, 0] + records.features[:, 1], 2) > 3
    return replace(records, labels=frauds.astype(np.int64))


if __name__ == "__main__":
    report("gate rare", run(Path(sys.argv[1])))
