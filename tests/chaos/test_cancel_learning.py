"""A person cancels an update in the middle of its learning, then the supervisor is killed."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.client import ApiError
from service.commands.demo import spec
from service.registry import UPDATE_TAG
from streams.sources.datasets import DIGITS_SCHEMA, DatasetsConfig, digits_step
from streams.wire.decode import encode_json
from tests.support.running import SLOWED, Service, ended, running, wait_for

PIPELINE = "digits"
STREAM = DatasetsConfig(protocol="rotated-digits", angles=(0.0, 25.0))
# A lease so long that nothing here is noticed by its end.
SETTINGS = {"HOLDFAST_LEASE_SECONDS": "60"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("home"), SETTINGS, mlflow_store=mlflow_store) as started:
        yield started


def trainers(service: Service) -> list[int]:
    return [process.pid for process in service.processes() if "ray::Trainer" in process.name()]


def test_a_trainer_whose_update_is_cancelled_learns_the_next_one(service: Service) -> None:
    with service.client() as client, ExitStack() as slowly:
        client.post("/v1/pipelines", spec(PIPELINE, SLOWED))
        client.push(PIPELINE, encode_json(digits_step(STREAM, 0), DIGITS_SCHEMA))
        first = ended(client, PIPELINE, experience=0)
        assert first["outcome"] == "promote", first["reason"]
        dispatch = service.role("dispatch")
        assert dispatch is not None
        maps = Path(f"/proc/{dispatch.pid}/maps").read_text()
        assert "libtorch" not in maps, "only trainers need torch, and its gigabyte of memory"
        before, champion = trainers(service), client.get(f"/v1/pipelines/{PIPELINE}/champion")

        slowly.enter_context(service.learning_slowly())
        client.push(PIPELINE, encode_json(digits_step(STREAM, 1), DIGITS_SCHEMA))

        def learning() -> dict[str, Any] | None:
            (newest, *_) = client.get(f"/v1/pipelines/{PIPELINE}/updates")
            stage = (newest["progress"] or {}).get("stage")
            return dict(newest) if stage == "learning" else None

        update = wait_for(learning, seconds=60, hint="learning of experience 1")["id"]
        view = client.post(f"/v1/updates/{update}/cancel", {"reason": "wrong records", "by": "Ada"})
        assert (view["state"], view["error"]) == ("failed", "Cancelled by Ada: wrong records")
        wait_for(
            lambda: "update cancelled" in service.log.read_text(), seconds=30, hint="end of the learning"
        )
        slowly.close()
        with pytest.raises(ApiError, match="cancelled already, by Ada"):
            client.post(f"/v1/updates/{update}/cancel", {"reason": "again"})

        assert client.get(f"/v1/pipelines/{PIPELINE}/champion") == champion
        assert [path.name for path in (service.home / "checkpoints").iterdir()] == [first["id"]]
        parked = client.get(f"/v1/pipelines/{PIPELINE}/experiences")[1]
        assert (parked["state"], parked["note"]) == (
            "parked",
            f"Update {update} was cancelled by Ada: wrong records",
        )

        accepted = client.post(f"/v1/pipelines/{PIPELINE}/updates", {"experiences": [1]})
        *_, again = client.follow(accepted["update"], timeout_seconds=120)
        assert (again["state"], again["outcome"], again["attempt"]) == ("done", "promote", 1), again
        assert trainers(service) == before, "the trainer was not killed"
        entries = client.get(f"/v1/pipelines/{PIPELINE}/ledger")["entries"]
        assert [entry["update"] for entry in entries] == [first["id"], again["id"]]
        versions = service.store().search_model_versions(f"name = '{PIPELINE}'")
        assert {version.tags[UPDATE_TAG] for version in versions} == {first["id"], again["id"]}
        assert "Traceback" not in service.log.read_text()


def test_roles_end_when_their_supervisor_is_killed(service: Service) -> None:
    assert service.process is not None
    os.kill(service.process.pid, 9)
    service.process.wait()
    wait_for(lambda: not service.processes(), seconds=40, hint="end of all roles")
