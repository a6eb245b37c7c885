"""Exactly once, proven by crashes: `python -m tests.chaos.stream_crashes --crashes 25 --every-variant`.

Every source on every database is ingested by processes that are ended at every write boundary and at random
times, while records go on arriving; then what is in the experiences is held against what was produced. A
table of counts is printed, and as the last line one JSON object.

What a process has handed to the kernel outlives it. So this proves the order of writes and transactions, and
says nothing of a loss of power, which the calls of fsync are for.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from service.state.database import connect, migrate
from streams.base import RawBatch
from streams.store.experiences import ExperienceStore
from streams.wire.decode import decode
from tests.chaos.crashes.plan import DATABASES, Database, Plan, exits_of
from tests.chaos.crashes.points import STATEMENT
from tests.chaos.crashes.processes import Child, fork
from tests.chaos.crashes.records import VARIANTS, Variant, chunk, schema_of
from tests.chaos.crashes.run import run
from tests.chaos.crashes.streams import KINDS, Kind
from tests.support import postgres, s3

ONE_VARIANT: Mapping[tuple[Kind, Database], Variant] = {
    ("files", "sqlite"): "window",
    ("files", "postgresql"): "s3",
    ("pushed", "sqlite"): "late",
    ("pushed", "postgresql"): "plain",
    ("redis", "sqlite"): "plain",
    ("redis", "postgresql"): "window",
    ("kafka", "sqlite"): "s3",
    ("kafka", "postgresql"): "late",
}
"""Where each combination is run once: every variant comes at least once."""

COLUMNS = {
    "exits": "exits",
    "kills": "kills",
    "producer_kills": "producer",
    "server_kills": "server",
    "fenced": "fenced",
    "experiences": "cut",
    "records_produced": "produced",
    "records_in_experiences": "found",
    "duplicates": "twice",
    "lost": "lost",
    "foreign": "foreign",
    "dead_letters_expected": "poison",
    "dead_letters_found": "letters",
    "copies_sent": "copies",
    "copies_dropped": "dropped",
    "halves_waiting": "halves",
    "orphans_collected": "orphans",
    "seconds": "seconds",
}
"""A count of a run, and the head of its column."""

_RUN_SECONDS = 1500
_NAME_WIDTH = 28
_LATE_IMPORTS = (
    "redis",
    "confluent_kafka",
    "obstore",
    "psycopg",
    "streams.sources.kafka.source",
    "streams.sources.files.source",
    "pyarrow.csv",
)


def plans(crashes: int, *, every_variant: bool, seed: int, only: str = "") -> list[Plan]:
    """The runs. `crashes` is for each combination of a source and a database, `only` part of a run's name."""
    found: list[Plan] = []
    dealt: Counter[str] = Counter()
    for kind in KINDS:
        for database in DATABASES:
            variants = VARIANTS if every_variant else (ONE_VARIANT[kind, database],)
            share = -(-crashes // len(variants))
            for variant in variants:
                plan = Plan(kind, database, variant, share, seed, bombs=())
                found.append(replace(plan, bombs=_deal(plan.boundaries, exits_of(share), dealt)))
    return [plan for plan in found if only in plan.name]


def _deal(known: Iterable[str], count: int, dealt: Counter[str]) -> list[str]:
    """So many boundaries: those that were dealt to the fewest bombs so far.

    Every third one is inside of the transaction, where many places are.
    """
    hand: list[str] = []
    for turn in range(count):
        others = [name for name in known if name != STATEMENT]
        hand.append(min(others, key=dealt.__getitem__) if turn % 3 else STATEMENT)
        dealt[hand[-1]] += 1
    return hand


def execute(chosen: Sequence[Plan], *, at_once: int, show: Callable[[str], object]) -> dict[str, Any]:
    """Run them, some at a time, and answer the totals and the counts of each."""
    began = time.monotonic()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="holdfast-crashes-") as home, ExitStack() as stack:
        place = _Servers(Path(home), chosen, stack)
        warm_up(Path(home))
        waiting = list(chosen)
        running: list[tuple[Plan, Child]] = []
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    plan = waiting.pop(0)
                    running.append((plan, place.start(plan)))
                for plan, child in [pair for pair in running if pair[1].ended()]:
                    running.remove((plan, child))
                    results.append(_result(plan, child))
                    show(_line(results[-1]))
                time.sleep(0.02)
        finally:
            for _, child in running:
                # Not SIGKILL: it has servers of its own to stop.
                os.kill(child.pid, signal.SIGALRM)
            for _, child in running:
                os.waitpid(child.pid, 0)
    return _totals(results) | {"seconds": round(time.monotonic() - began, 1), "runs": results}


def warm_up(folder: Path) -> None:
    """Import and use what every life uses: once here instead of once a life.

    Nothing that starts a thread: reading a mapped file would, and parsing CSV. Those that OpenBLAS and
    jemalloc have by now are prepared for forks by these libraries themselves.
    """
    for name in _LATE_IMPORTS:
        import_module(name)
    store = ExperienceStore(folder / "warm")
    for variant in VARIANTS:
        schema, items = schema_of(variant), chunk(variant, 0, 0)
        positions = [str(place) for place in range(len(items))]
        found = decode(RawBatch("warm", "", [one.json for one in items], positions), schema).records
        store.write(found, schema)
    shutil.rmtree(folder / "warm")


class _Servers:
    """The servers that runs share, and a database of its own for each run."""

    def __init__(self, home: Path, chosen: Sequence[Plan], stack: ExitStack) -> None:
        self._home = home
        self._template = home / "template.db"
        self._postgres: postgres.Server | None = None
        self._s3: s3.Server | None = None
        engine = connect(f"sqlite:///{self._template}")
        migrate(engine)
        engine.dispose()
        if any(plan.database == "postgresql" for plan in chosen):
            self._postgres = stack.enter_context(postgres.server())
        if any(plan.variant == "s3" for plan in chosen):
            self._s3 = stack.enter_context(s3.server(home / "s3.log"))
            os.environ.update(self._s3.environment())

    def start(self, plan: Plan) -> Child:
        folder = self._home / plan.name.replace(" ", "-")
        folder.mkdir()
        if plan.database == "postgresql":
            assert self._postgres is not None, "started for such a plan"
            database = self._postgres.migrated_database()
        else:
            shutil.copy(self._template, folder / "holdfast.db")
            database = f"sqlite:///{folder / 'holdfast.db'}"
        remote = f"s3://{self._s3.bucket()}/experiences" if self._s3 and plan.variant == "s3" else ""

        def action(pipe: int) -> int:
            with _limited(_RUN_SECONDS):
                counts = run(plan, folder, database=database, remote=remote)
            os.write(pipe, json.dumps(counts.as_json()).encode())
            return 0

        return fork(action, seconds=_RUN_SECONDS)


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """After so long, or at SIGALRM, an error instead of a sudden end: what was started is stopped."""

    def too_long(_signal: int, _frame: object) -> NoReturn:
        raise TimeoutError("the run took too long, or was told to end")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    yield
    signal.alarm(0)


def _result(plan: Plan, child: Child) -> dict[str, Any]:
    said = child.said()
    if child.status or not said:
        return {"run": plan.name, "problems": [f"the run itself ended with {child.status}; see stderr"]}
    return {"run": plan.name, **json.loads(said[0])}


def _totals(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = [result for result in results if "exits" in result]
    boundaries: Counter[str] = Counter()
    for result in whole:
        boundaries.update(result["boundaries"])
    sums = {name: sum(result[name] for result in whole) for name in COLUMNS if name != "seconds"}
    return {
        "crashes": sums["exits"] + sums["kills"],
        **sums,
        "by_boundary": dict(sorted(boundaries.items())),
        "problems": [f"{result['run']}: {problem}" for result in results for problem in result["problems"]],
    }


def _head() -> str:
    return "run".ljust(_NAME_WIDTH) + "".join(f"{head:>9}" for head in COLUMNS.values())


def _line(result: Mapping[str, Any], name: str = "") -> str:
    cells = "".join(f"{result.get(column, '-'):>9}" for column in COLUMNS)
    problems = "".join(f"\n    {problem}" for problem in result["problems"])
    return f"{name or result['run']:<{_NAME_WIDTH}}{cells}{problems}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Crash the ingest, and count what is left.")
    parser.add_argument("--crashes", type=int, default=10, help="of every source on every database, at least")
    parser.add_argument("--every-variant", action="store_true", help="each of them in all variants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", default="", help='a part of the name of a run, such as "kafka sqlite"')
    asked = parser.parse_args()
    # What was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    chosen = plans(asked.crashes, every_variant=asked.every_variant, seed=asked.seed, only=asked.only)
    show(_head())
    found = execute(chosen, at_once=asked.at_once, show=show)
    show(_line({**found, "problems": []}, "all"))
    for boundary, count in found["by_boundary"].items():
        show(f"    {boundary:<40}{count:>6}")
    show(json.dumps(found))
    sys.exit(1 if found["problems"] else 0)


def show(line: str) -> None:
    """A line for a person, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
