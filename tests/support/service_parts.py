"""Parts that tests of the service share: a pipeline, its experiences, and updates in any state."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from service.pipelines import PipelineSpec
from service.state import backlog, champions, claims, jobs, pipelines
from service.state.jobs import Update
from service.state.ledger import GATE, By

NAME = "p"


def spec(name: str = NAME, **changes: Any) -> PipelineSpec:
    """A small pipeline of pushed records."""
    declared: dict[str, Any] = {
        "name": name,
        "schema": {"shape": [2], "classes": ["down", "up"], "groups": ["site"], "minimum": 0, "maximum": 9},
        "trigger": {"records": 100},
        "strategy": {"name": "naive", "epochs": 1, "device": "cpu"},
    }
    return PipelineSpec.model_validate(declared | changes)


def declare(engine: sa.Engine, *, name: str = NAME, experiences: int = 0, **changes: Any) -> PipelineSpec:
    """Store the pipeline, with experiences that wait to be learnt."""
    declared = spec(name, **changes)
    with engine.begin() as connection:
        pipelines.create(connection, declared)
        for experience in range(experiences):
            backlog.add(connection, name, experience)
    return declared


def enqueue(engine: sa.Engine, *, name: str = NAME, wants_cut: bool = False, key: str | None = None) -> str:
    with engine.begin() as connection:
        return jobs.enqueue(connection, name, requested_by="test", wants_cut=wants_cut, request_key=key)


def claim(engine: sa.Engine, owner: str = "w", *, lease_seconds: float = 60, max_attempts: int = 3) -> Update:
    """A claim that must succeed."""
    update = claims.claim(engine, owner, lease_seconds=lease_seconds, max_attempts=max_attempts)
    assert update is not None
    return update


def claim_none(engine: sa.Engine) -> bool:
    return claims.claim(engine, "w", lease_seconds=60, max_attempts=3) is None


def read(engine: sa.Engine, update_id: str) -> Update:
    with engine.begin() as connection:
        return jobs.get(connection, update_id)


def write(engine: sa.Engine, update: Update, **values: Any) -> None:
    with engine.begin() as connection:
        jobs.write(connection, update, values)


def states(engine: sa.Engine, name: str = NAME) -> dict[int, str]:
    with engine.begin() as connection:
        return {index: state for index, (state, _) in backlog.states(connection, name).items()}


def notes(engine: sa.Engine, name: str = NAME) -> dict[int, str]:
    with engine.begin() as connection:
        return {index: note for index, (_, note) in backlog.states(connection, name).items()}


def queued(engine: sa.Engine, name: str = NAME) -> list[Update]:
    with engine.begin() as connection:
        return [update for update in jobs.of_pipeline(connection, name) if update.state == "queued"]


def add_version(
    engine: sa.Engine, number: int, *, parent: int | None, learnt: Sequence[int], update_id: str | None = None
) -> str:
    """A registered version; answers the id of the update that made it."""
    made_by = update_id or f"u-{number}"
    with engine.begin() as connection:
        champions.add_version(
            connection, NAME, number=number, update_id=made_by, parent=parent, learnt=learnt, run_id="r"
        )
    return made_by


def promote(engine: sa.Engine, number: int, *, base_revision: int | None) -> None:
    with engine.begin() as connection:
        champions.promote(
            connection,
            NAME,
            number=number,
            expected_revision=base_revision,
            experiences=(),
            by=By(GATE, "better", f"u-{number}"),
        )


def three_champions(engine: sa.Engine) -> None:
    """Versions 1, 2 and 3, each learnt one experience more and was promoted in turn."""
    for number in (1, 2, 3):
        parent = number - 1 or None
        add_version(engine, number, parent=parent, learnt=list(range(number)))
        promote(engine, number, base_revision=parent)


def review(engine: sa.Engine, *, experiences: Sequence[int], version: int | None) -> str:
    """An update that awaits a person, made from the champion of now; answers its id."""
    update_id = enqueue(engine)
    update = claim(engine)
    assert update.id == update_id
    with engine.begin() as connection:
        champion = champions.current(connection, NAME)
        values: dict[str, Any] = {
            "state": "review",
            "outcome": "review",
            "experiences": list(experiences),
            "version": version,
            "base_version": champion.version if champion else None,
            "base_revision": champion.revision if champion else None,
        }
        jobs.write(connection, update, values)
        backlog.mark(connection, NAME, experiences=experiences, state="review", note="awaits a decision")
        if version is not None:
            champions.add_version(
                connection,
                NAME,
                number=version,
                update_id=update_id,
                parent=champion.version if champion else None,
                learnt=list(experiences),
                run_id="r",
            )
    return update_id
