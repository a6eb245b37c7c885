"""A service in one process: real SQLite, real MLflow store, real trainer, records through the front door."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from pydantic import SecretStr

from service.gate.base import Verdict
from service.ingest.pipeline import PipelineIngest
from service.ingest.push import push
from service.pipelines import PipelineSpec, parse
from service.registry import Registry
from service.settings import Settings
from service.state import backlog, champions, claims, jobs, ledger, pipelines
from service.state.database import connect, migrate
from service.state.jobs import Update
from service.storage import store_location
from service.training import trainer
from service.training.tasks import OnProgress, Task
from service.updates.requests import request_update
from service.updates.update import Updater
from streams.records import Records
from streams.sources.datasets import DIGITS_SCHEMA, DatasetsConfig, digits_step
from streams.state.manifest import Manifest
from streams.wire.decode import encode_json

NAME = "digits"
BATCH = 300
"""Records of one experience."""
EXPIRED = -1.0


def declared(**changes: Any) -> PipelineSpec:
    """A pipeline of digits whose margins a hundred holdout records can settle."""
    document: dict[str, Any] = {
        "name": NAME,
        "schema": DIGITS_SCHEMA.model_dump(mode="json"),
        "trigger": {"records": BATCH},
        "split": {"gate": 0.334, "audit": 0.05},
        "strategy": {"name": "naive", "hidden": [32], "epochs": 8, "learning_rate": 5e-3, "device": "cpu"},
        "gate": {"margin": 0.2, "learning_margin": 0.2},
    }
    for name, value in changes.items():
        document[name] = {**document[name], **value} if isinstance(document.get(name), dict) else value
    return parse(document)


def digits(batch: int, *, angle: float = 0.0, records: int = BATCH) -> Records:
    """The images of one batch, all under one angle; batches 0 to 4 share no image."""
    step = digits_step(DatasetsConfig(protocol="rotated-digits", angles=(angle,)), 0)
    return step.take(slice(batch * BATCH, batch * BATCH + records))


def with_shuffled_labels(records: Records) -> Records:
    return replace(records, labels=np.random.default_rng(7).permutation(records.labels))


def silent(progress: Mapping[str, Any]) -> None:
    """The progress callback that tells nobody."""


_ALONE = threading.Lock()


@dataclass
class Home:
    """One installation under a folder."""

    settings: Settings
    engine: sa.Engine
    registry: Registry
    spec: PipelineSpec
    ingest: PipelineIngest
    trained: list[str] = field(default_factory=list)
    """Update ids, one a call of the trainer."""
    before_training: Callable[[], object] = lambda: None

    def train(self, task: Task, on_progress: OnProgress) -> None:
        self.trained.append(task.update_id)
        self.before_training()
        # Random states are the process's: elsewhere each trainer has one of its own.
        with _ALONE:
            trainer.run(task, on_progress)

    @property
    def updater(self) -> Updater:
        return Updater(self.engine, self.settings, train=self.train, registry=self.registry)

    def arrive(self, records: Records) -> None:
        """Push records as a caller does, and let the ingest side cut what is due."""
        push(
            self.engine,
            NAME,
            body=b"\n".join(encode_json(records, self.spec.record_schema)),
            content_type="application/x-ndjson",
            request_key=None,
            max_backlog_records=100_000,
        )
        deadline = time.monotonic() + 30
        while self.ingest.turn() == 0.0 or self._pending() >= BATCH:
            assert time.monotonic() < deadline

    def ask(self, experiences: list[int] | None = None) -> str:
        """Ask for an update as a caller does, and let the ingest side cut for it."""
        update_id = request_update(self.engine, NAME, by="Ada", request_key=None, experiences=experiences)
        self.ingest.turn()
        return update_id

    def claim(self, *, lease_seconds: float = 60.0) -> Update:
        update = claims.claim(self.engine, "test", lease_seconds=lease_seconds, max_attempts=3)
        assert update is not None
        return update

    def run(self) -> Verdict:
        """Run the next update, which must have something to learn."""
        verdict = self.updater.run(self.claim(), silent)
        assert verdict is not None
        return verdict

    def learn(self, records: Records) -> Verdict:
        self.arrive(records)
        return self.run()

    def read(self, update_id: str) -> Update:
        with self.engine.begin() as connection:
            return jobs.get(connection, update_id)

    def updates(self) -> list[Update]:
        """Oldest first."""
        with self.engine.begin() as connection:
            return jobs.of_pipeline(connection, NAME)[::-1]

    def states(self) -> dict[int, str]:
        with self.engine.begin() as connection:
            return {index: state for index, (state, _) in backlog.states(connection, NAME).items()}

    def champion(self) -> int | None:
        with self.engine.begin() as connection:
            found = champions.current(connection, NAME)
        return found.version if found else None

    def ledger(self) -> list[ledger.Entry]:
        with self.engine.begin() as connection:
            return ledger.entries(connection, NAME)

    def _pending(self) -> int:
        return Manifest(self.engine).pending_records(NAME)


@contextmanager
def home(
    folder: Path,
    mlflow_store: Path,
    *,
    database_url: str | None = None,
    spec: PipelineSpec | None = None,
    **changes: Any,
) -> Iterator[Home]:
    """An installation with one pipeline, the declared one with changes or another, until the block ends."""
    settings = Settings(home=folder, database_url=SecretStr(database_url) if database_url else None)
    settings.root.mkdir(parents=True, exist_ok=True)
    shutil.copy(mlflow_store, settings.root / "mlflow.db")
    engine = connect(settings.database)
    migrate(engine)
    spec = spec or declared(**changes)
    with engine.begin() as connection:
        pipelines.create(connection, spec)
    ingest = PipelineIngest(engine, settings, spec, store=store_location(settings).open())
    try:
        yield Home(settings, engine, Registry(settings), spec, ingest)
    finally:
        ingest.close()
        engine.dispose()
