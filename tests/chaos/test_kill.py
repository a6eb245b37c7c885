"""kill -9 anywhere: an update finishes once, with one version and one ledger entry."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.client import Client
from service.commands.demo import spec
from service.state import jobs
from service.state.database import connect
from streams.sources.datasets import DIGITS_SCHEMA, DatasetsConfig, digits_step
from streams.wire.decode import encode_json
from tests.support.running import SLOWED, Service, ended, running, wait_for

PIPELINE = "digits"
STREAM = DatasetsConfig(protocol="rotated-digits", angles=(0.0, 25.0, 50.0, 75.0, 100.0))
SETTINGS = {"HOLDFAST_LEASE_SECONDS": "3"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("home"), SETTINGS, mlflow_store=mlflow_store) as started:
        with started.client() as client:
            client.post("/v1/pipelines", spec(PIPELINE, SLOWED))
        yield started


def begin(client: Client, step: int) -> dict[str, Any]:
    """One more experience is pushed; the update that learns it, once it is in the middle of that."""
    before = len(client.get(f"/v1/pipelines/{PIPELINE}/experiences"))
    client.push(PIPELINE, encode_json(digits_step(STREAM, step), DIGITS_SCHEMA))

    def learning() -> dict[str, Any] | None:
        for update in client.get(f"/v1/pipelines/{PIPELINE}/updates"):
            if before in update["experiences"] and (update["progress"] or {}).get("stage") == "learning":
                return dict(update)
        return None

    return wait_for(learning, seconds=60, hint=f"learning of experience {before}")


def end_of(client: Client, update: dict[str, Any], *, seconds: float = 120.0) -> dict[str, Any]:
    return ended(client, PIPELINE, experience=update["experiences"][-1], seconds=seconds)


def assert_happened_once(service: Service, client: Client, update: dict[str, Any]) -> None:
    """One run, one version and one ledger entry of this update; one version each of all updates."""
    assert update["state"] == "done"
    assert update["outcome"] == "promote", update["reason"]
    entries = client.get(f"/v1/pipelines/{PIPELINE}/ledger")
    assert entries["intact"]
    assert [entry["update"] for entry in entries["entries"]].count(update["id"]) == 1
    store = service.store()
    versions = store.search_model_versions(f"name = '{PIPELINE}'")
    assert [version.tags["holdfast.update"] for version in versions].count(update["id"]) == 1
    experiment = store.get_experiment_by_name(PIPELINE)
    assert experiment is not None
    runs = store.search_runs([experiment.experiment_id], f"tags.`holdfast.update` = '{update['id']}'")
    assert len(runs) == 1
    assert len(versions) == len(entries["entries"])


@pytest.mark.slow
def test_a_killed_dispatcher_comes_back_and_finishes_the_update_once(service: Service) -> None:
    with service.client() as client:
        with service.learning_slowly():
            begun = begin(client, 0)
            killed = service.kill("dispatch")
        update = end_of(client, begun)
        assert_happened_once(service, client, update)
        assert update["attempt"] == 2
    revived = service.role("dispatch")
    assert revived is not None
    assert revived.pid != killed


def test_a_killed_trainer_costs_an_attempt_and_nothing_else(service: Service) -> None:
    with service.client() as client:
        with service.learning_slowly():
            begun = begin(client, 1)
            trainer = next(each for each in service.processes() if "ray::Trainer" in each.name())
            trainer.kill()
        update = end_of(client, begun)
        assert_happened_once(service, client, update)
        assert update["attempt"] == 2


def test_after_kill_9_of_everything_up_goes_on_where_it_was(service: Service) -> None:
    with service.client() as client:
        with service.learning_slowly():
            begun = begin(client, 2)
            service.kill_everything()
        service.start()
        update = end_of(client, begun)
        assert_happened_once(service, client, update)
        learnt = client.get(f"/v1/pipelines/{PIPELINE}/champion")["learnt"]
        assert learnt == list(range(update["experiences"][-1] + 1))


def test_a_second_service_in_the_same_home_is_refused(service: Service) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "up"],
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "A service is already up in" in done.stderr
    assert "HOLDFAST_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_told_at_once(service: Service, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "up"],
        env={**service.environment, "HOLDFAST_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{service.port}" in done.stderr
    assert "HOLDFAST_PORT" in done.stderr


@pytest.mark.slow
def test_sigterm_gives_the_update_back_and_the_next_start_ends_it(service: Service) -> None:
    begun = stopped_while_learning(service, step=3)
    service.start()
    with service.client() as client:
        assert_happened_once(service, client, end_of(client, begun))


def test_sigterm_gives_the_update_back(service: Service) -> None:
    stopped_while_learning(service, step=4)


def stopped_while_learning(service: Service, *, step: int) -> dict[str, Any]:
    """SIGTERM in the middle of an update; the update, which is queued again and counts no failure."""
    with service.learning_slowly():
        with service.client() as client:
            begun = begin(client, step)
        before = len(service.log.read_text())
        assert service.stop() == 0
    assert service.processes() == []
    assert "SIGTERM received" not in service.log.read_text(), "Ray's stack trace reads like a crash"
    assert "Traceback" not in service.log.read_text()[before:]
    engine = connect(f"sqlite:///{service.home}/holdfast.db")
    with engine.begin() as connection:
        given_back = jobs.get(connection, begun["id"])
    engine.dispose()
    assert (given_back.state, given_back.failures) == ("queued", 0)
    return begun


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_dead_raylet_ends_the_dispatcher_and_another_one_goes_on(tmp_path: Path) -> None:
    with running(tmp_path / "home", SETTINGS) as service, service.client() as client:
        client.post("/v1/pipelines", spec(PIPELINE, SLOWED))
        before = service.role("dispatch")
        next(process for process in service.processes() if process.name() == "raylet").kill()
        client.push(PIPELINE, encode_json(digits_step(STREAM, 0), DIGITS_SCHEMA))
        wait_for(lambda: another(service, before), seconds=200, hint="other dispatcher")
        update = ended(client, PIPELINE, experience=0, seconds=200)
        assert_happened_once(service, client, update)


def another(service: Service, before: psutil.Process | None) -> bool:
    now = service.role("dispatch")
    return now is not None and before is not None and now.pid != before.pid
