"""kill -9 of random parts at random times, while records go on arriving: nothing is lost or done twice."""

import random
import time
from functools import partial
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from service.commands.demo import spec
from service.state import backlog, champions, jobs, ledger
from service.state.database import connect, migrate
from streams.sources.datasets import DIGITS_SCHEMA, DatasetsConfig, digits_step
from streams.state.manifest import Manifest
from streams.store.experiences import ExperienceStore
from streams.wire.decode import encode_json
from tests.support.running import Service, running, wait_for

PIPELINE = "digits"
EXPERIENCES = 8
RECORDS = 200
KILLS = 12
ROLES = ("dispatch", "ingest", "api", "everything")
SETTINGS = {"HOLDFAST_LEASE_SECONDS": "2", "HOLDFAST_MAX_ATTEMPTS": "50"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_record_is_learnt_or_refused_once_whatever_dies(tmp_path: Path) -> None:
    chance = random.Random(20)
    records = digits_step(DatasetsConfig(protocol="rotated-digits", angles=(0.0,)), 0)
    lines = encode_json(records, DIGITS_SCHEMA)[: EXPERIENCES * RECORDS]
    declared = {
        **spec(PIPELINE, {"name": "replay", "capacity": 500, "epochs": 60}),
        "trigger": {"kind": "records", "records": RECORDS},
        "max_experiences_per_update": 2,
        "gate": {"margin": 0.3, "learning_margin": 0.3},
    }
    with running(tmp_path / "home", SETTINGS) as service:
        with service.client() as client:
            client.post("/v1/pipelines", declared)
        sent = 0
        for kill in range(KILLS):
            sent = push_some(service, lines, sent, until=len(lines) * (kill + 1) // KILLS)
            time.sleep(chance.uniform(0.0, 4.0))
            strike(service, chance.choice(ROLES))
        wait_for(lambda: settled(service), seconds=300, hint="end of all updates")
        assert_nothing_was_lost_or_repeated(service, [line.decode() for line in lines])


def push_some(service: Service, lines: list[bytes], sent: int, *, until: int) -> int:
    """Send the lines up to a place, each request with its own key, again and again until it is accepted."""
    while sent < until:
        stop = min(sent + 50, until)
        wait_for(partial(pushed, service, lines, sent, stop), seconds=90, hint="accepted request")
        sent = stop
    return sent


def pushed(service: Service, lines: list[bytes], start: int, stop: int) -> bool:
    try:
        answer = httpx.post(
            f"http://127.0.0.1:{service.port}/v1/pipelines/{PIPELINE}/records",
            content=b"\n".join(lines[start:stop]),
            headers={"Content-Type": "application/x-ndjson", "Idempotency-Key": f"{start}-{stop}"},
            timeout=10.0,
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 202


def strike(service: Service, role: str) -> None:
    if role == "everything":
        service.kill_everything()
        service.start()
    elif service.role(role) is not None:
        service.kill(role)


def database(service: Service) -> sa.Engine:
    engine = connect(f"sqlite:///{service.home}/holdfast.db")
    migrate(engine)
    return engine


def settled(service: Service) -> bool:
    engine = database(service)
    try:
        cut = len(Manifest(engine).experiences(PIPELINE))
        with engine.begin() as connection:
            return cut == EXPERIENCES and jobs.live(connection, PIPELINE) == 0
    finally:
        engine.dispose()


def assert_nothing_was_lost_or_repeated(service: Service, sent: list[str]) -> None:
    engine = database(service)
    store = ExperienceStore(service.home / "experiences")
    ids: list[str] = []
    for row in Manifest(engine).experiences(PIPELINE):
        for part in (row.train, row.gate, row.audit):
            ids += store.open(part.digest, index=row.index).record_ids.tolist()
    assert len(ids) == len(sent)
    assert len(set(ids)) == len(ids)
    with engine.begin() as connection:
        states = {state for state, _ in backlog.states(connection, PIPELINE).values()}
        chain = ledger.entries(connection, PIPELINE)
        champion = champions.current(connection, PIPELINE)
        assert champion is not None
        version = champions.version(connection, PIPELINE, champion.version)
    engine.dispose()
    assert states <= {"learnt", "carried", "parked"}
    assert ledger.first_break(chain) is None
    assert len({entry.update_id for entry in chain}) == len(chain), "one decision an update"
    assert version is not None
    assert len(set(version.learnt)) == len(version.learnt)
    registered = service.store()
    numbers = registered.search_model_versions(f"name = '{PIPELINE}'")
    tags = [number.tags["holdfast.update"] for number in numbers]
    assert len(set(tags)) == len(tags), "one version an update"
    assert {entry.version for entry in chain if entry.version} == {int(number.version) for number in numbers}
