"""What triggers ask the service: which records the champion gets wrong, and what updates cost."""

import json
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import torch

from service.ingest.champion_answers import PipelineContext
from service.settings import Settings
from service.state import holdouts, inputs
from service.training.checkpoint import digest
from service.training.tasks import SERVED_FILE
from streams.base import StreamError
from streams.state.manifest import Commit, CutExperience, Manifest, Part, Span
from streams.triggers.catalog import Judge
from tests.support.served_archives import tamper
from tests.support.service_parts import NAME, add_version, claim, declare, enqueue, promote, write


class Second(torch.nn.Module):
    """Answers class 1 where the second feature is the larger one."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.softmax(inputs, dim=1)


def serve(settings: Settings, update: str) -> None:
    folder = settings.checkpoints / update
    folder.mkdir(parents=True)
    rows = torch.export.Dim("rows")
    program = torch.export.export(Second(), (torch.zeros(2, 2),), dynamic_shapes={"inputs": {0: rows}})
    torch.export.save(program, folder / SERVED_FILE)


def cut(engine: sa.Engine, sizes: list[int]) -> None:
    manifest = Manifest(engine)
    for index, rows in enumerate(sizes):
        train, gate, audit = Part(f"train {index}", rows), Part("none", 0), Part("none", 0)
        experience = CutExperience(train, gate, audit, "schema", "as the test says")
        span = Span(f"{index}:1" if index else "", f"{index + 1}:1")
        manifest.commit(NAME, Commit(index, {"p": span}, experience=experience))


def test_without_a_champion_there_is_nobody_to_ask(database: sa.Engine, tmp_path: Path) -> None:
    declare(database)
    context = PipelineContext(database, Settings(home=tmp_path), NAME).trigger_context()
    assert context.judge() is None
    assert list(context.costs()) == []


def test_the_champion_says_which_records_it_gets_wrong(database: sa.Engine, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    declare(database)
    serve(settings, add_version(database, 1, parent=None, learnt=[0, 1]))
    promote(database, 1, base_revision=None)
    bits = {0: np.zeros(500, dtype=bool), 1: np.arange(400) >= 100}
    with database.begin() as connection:
        holdouts.save(connection, NAME, version=1, answered=bits)
    asked = PipelineContext(database, settings, NAME)
    judge = asked.judge()
    assert judge is not None
    # The newest holdout alone has records enough; the older, where all is wrong, does not count.
    assert (judge.version, judge.error_rate) == (1, 0.25)
    features = np.tile(np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32), (300, 1))
    labels = np.zeros(600, dtype=np.int64)
    assert judge.wrong(features, labels).tolist() == [False, True] * 300
    assert asked.judge() is judge, "it is loaded once"
    add_version(database, 2, parent=1, learnt=[0, 1, 2])
    promote(database, 2, base_revision=1)
    newer = asked.judge()
    assert newer is not None
    assert (newer.version, newer.error_rate) == (2, 0.5), "nothing is known of it yet"


@pytest.mark.parametrize("digest_stored", [True, False])
def test_a_changed_network_answers_nothing_and_runs_nothing(
    database: sa.Engine, tmp_path: Path, digest_stored: bool
) -> None:
    """Also where an older release stored no digest: its archive is checked all the same."""
    settings = Settings(home=tmp_path)
    declare(database)
    update = enqueue(database)
    serve(settings, add_version(database, 1, parent=None, learnt=[0], update_id=update))
    promote(database, 1, base_revision=None)
    served, made = settings.checkpoints / update / SERVED_FILE, tmp_path / "made"
    if digest_stored:
        document = {"origin": {"made": {SERVED_FILE: digest(served)}}}
        with database.begin() as connection:
            inputs.save(connection, update, {"result": json.dumps(document)})
    question = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32), np.zeros(2, dtype=np.int64)

    def judge() -> Judge:
        found = PipelineContext(database, settings, NAME).judge()
        assert found is not None
        return found

    assert judge().wrong(*question).tolist() == [False, True]
    tamper(served, made)
    with pytest.raises(StreamError, match="sha256" if digest_stored else "is a pickle that names"):
        judge().wrong(*question)
    assert not made.exists()


def test_a_digest_that_was_changed_in_the_database_is_not_believed(
    database: sa.Engine, tmp_path: Path
) -> None:
    declare(database)
    update = enqueue(database)
    add_version(database, 1, parent=None, learnt=[0], update_id=update)
    promote(database, 1, base_revision=None)
    with database.begin() as connection:
        inputs.save(connection, update, {"result": '{"origin": {"made": {}}}'})
        connection.execute(sa.text("UPDATE update_inputs SET document = '{}'"))
    with pytest.raises(StreamError, match="was changed after it was stored"):
        PipelineContext(database, Settings(home=tmp_path), NAME).judge()


def test_costs_are_records_and_seconds_of_updates_that_reached_a_verdict(
    database: sa.Engine, tmp_path: Path
) -> None:
    declare(database)
    cut(database, [30, 50, 70])
    ended: tuple[tuple[str, str | None, list[int], float], ...] = (
        ("done", "promote", [0, 1], 110.0),
        ("done", None, [], 120.0),
        ("failed", None, [2], 130.0),
    )
    for state, outcome, experiences, finished_at in ended:
        enqueue(database)
        values = {"state": state, "outcome": outcome, "started_at": 100.0, "finished_at": finished_at}
        write(database, claim(database), experiences=experiences, **values)
    enqueue(database)
    write(database, claim(database), state="review", outcome="review", experiences=[2], started_at=100.0)
    asked = PipelineContext(database, Settings(home=tmp_path), NAME)
    assert list(asked.costs()) == [(80, 10.0)], "one in review has ended only when it is stamped so"
