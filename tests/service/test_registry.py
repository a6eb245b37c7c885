"""MLflow as the registry: one run and one version an update, no pickle, aliases that follow."""

import base64
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pytorch
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException

from service import registry
from service.errors import ServedDamagedError
from service.registry import UPDATE_TAG, Publication, Registry
from service.settings import Settings
from service.training.checkpoint import digest
from service.training.served import export
from service.training.tasks import SERVED_FILE
from strategies.base import Learner, StreamInfo
from strategies.catalog import STRATEGIES
from streams.base import Experience
from tests.support import traps
from tests.support.served_archives import tamper
from tests.support.threads import together

NAME = "weather"
INFO = StreamInfo(shape=(2, 3), classes=("rain", "sun", "snow"))


@pytest.fixture(scope="module")
def learner() -> Learner:
    """Taught to tell three classes apart by their mean."""
    strategy = STRATEGIES["naive"]
    config = strategy.config.model_validate({"name": "naive", "hidden": [8], "device": "cpu", "epochs": 20})
    built = strategy.build(config, INFO)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    inputs = (labels[:, None, None] + 0.1 * rng.standard_normal((300, 2, 3))).astype(np.float32)
    ids = np.array([str(row) for row in range(300)])
    built.learn(Experience(0, inputs, labels, ids, {}, ""))
    return built


@pytest.fixture(scope="module")
def served(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / SERVED_FILE
    export(learner, INFO, path)
    return path


@pytest.fixture
def settings(tmp_path: Path, mlflow_store: Path) -> Settings:
    return settings_in(tmp_path / "home", mlflow_store)


def settings_in(folder: Path, mlflow_store: Path) -> Settings:
    folder.mkdir()
    shutil.copy(mlflow_store, folder / "mlflow.db")
    return Settings(home=folder)


def publication(served: Path | None, **changes: Any) -> Publication:
    figure = Figure()
    figure.subplots().plot([0, 1])
    whole = Publication(
        pipeline=NAME,
        update_id="u-1",
        at=1_800_000_000.5,
        params={"strategy.name": "naive", "gate.margin": "0.02"},
        metrics={"ACC": 0.75, "challenger.accuracy.0": 0.5},
        tags={"holdfast.verdict": "promote", "holdfast.reason": "it kept 'all' | of it"},
        description="**promote**: it kept all",
        texts={"verdict.json": '{"outcome": "promote"}', "report.html": "<p>fine</p>"},
        figures={"retention.png": figure},
        served=served,
        input_shape=INFO.shape,
        classes=INFO.classes,
    )
    return replace(whole, **changes)


def client(settings: Settings) -> Any:
    return mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)


def runs(settings: Settings, name: str = NAME) -> list[Any]:
    experiment = client(settings).get_experiment_by_name(name)
    return list(client(settings).search_runs([experiment.experiment_id])) if experiment else []


def versions(settings: Settings) -> list[int]:
    found = client(settings).search_model_versions(f"name = '{NAME}'")
    return sorted(int(version.version) for version in found)


def aliases(settings: Settings) -> dict[str, int]:
    found = client(settings).get_registered_model(NAME).aliases
    return {alias: int(version) for alias, version in found.items()}


def test_an_update_is_one_run_with_all_that_was_told(settings: Settings, served: Path) -> None:
    published = publication(served)
    run_id, version = Registry(settings).publish(published)
    (run,) = runs(settings)
    assert (run.info.run_id, run.info.status, version) == (run_id, "FINISHED", 1)
    assert (run.info.start_time, run.info.end_time) == (1_800_000_000_500, 1_800_000_000_500)
    assert run.data.params == published.params
    assert run.data.metrics == published.metrics
    assert run.data.tags[UPDATE_TAG] == "u-1"
    assert run.data.tags["mlflow.note.content"] == published.description
    assert all(run.data.tags[name] == value for name, value in published.tags.items())
    listed = {item.path for item in client(settings).list_artifacts(run_id)}
    assert listed == {"verdict.json", "report.html", "retention.png"}
    folder = settings.artifacts / NAME / run_id / "artifacts"
    assert (folder / "report.html").read_text() == "<p>fine</p>"
    assert (folder / "retention.png").read_bytes().startswith(b"\x89PNG")


def test_a_version_names_its_update_and_says_why(settings: Settings, served: Path) -> None:
    run_id, version = Registry(settings).publish(publication(served))
    found = client(settings).get_model_version(NAME, str(version))
    assert (found.run_id, found.description) == (run_id, "**promote**: it kept all")
    assert found.tags == {
        UPDATE_TAG: "u-1",
        "holdfast.verdict": "promote",
        "holdfast.reason": "it kept 'all' | of it",
    }


def test_publishing_twice_leaves_one_run_and_one_version(settings: Settings, served: Path) -> None:
    first = Registry(settings).publish(publication(served))
    assert Registry(settings).publish(publication(served)) == first
    assert (len(runs(settings)), versions(settings)) == (1, [1])
    history = client(settings).get_metric_history(first[0], "ACC")
    assert [metric.value for metric in history] == [0.75]


def test_two_updates_are_two_runs_and_two_versions(settings: Settings, served: Path) -> None:
    each = Registry(settings)
    first = each.publish(publication(served))
    second = each.publish(publication(served, update_id="u-2"))
    assert first[0] != second[0]
    assert versions(settings) == [first[1], second[1]] == [1, 2]


def test_what_was_not_learnt_has_a_run_and_no_version(settings: Settings) -> None:
    run_id, version = Registry(settings).publish(publication(None))
    assert version is None
    assert [run.info.run_id for run in runs(settings)] == [run_id]
    with pytest.raises(MlflowException):
        client(settings).get_registered_model(NAME)


def fail_once(work: Callable[..., Any]) -> Callable[..., Any]:
    left = [ConnectionError("MLflow is away")]

    def failing(*arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return work(*arguments, **named)

    return failing


@pytest.mark.parametrize("part", ["_version", "_log_model", "create_model_version", "set_terminated"])
def test_a_crash_between_run_and_version_is_made_good_by_publishing_again(
    settings: Settings, served: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    each = Registry(settings)
    owner = each if hasattr(each, part) else each._client
    monkeypatch.setattr(owner, part, fail_once(getattr(owner, part)))
    with pytest.raises(ConnectionError):
        each.publish(publication(served))
    run_id, version = each.publish(publication(served))
    assert ([run.info.run_id for run in runs(settings)], versions(settings)) == ([run_id], [1])
    assert version == 1
    assert runs(settings)[0].info.status == "FINISHED"


def test_the_loaded_champion_gives_the_learners_probabilities(
    settings: Settings, served: Path, learner: Learner
) -> None:
    each = Registry(settings)
    _, version = each.publish(publication(served))
    each.project(NAME, {"champion": version})
    model = registry.load(NAME, settings=settings)
    for rows in (1, 2, 7):
        inputs = np.random.default_rng(rows).standard_normal((rows, *INFO.shape)).astype(np.float32)
        probabilities = model.predict(inputs)
        np.testing.assert_allclose(probabilities, learner.predict(inputs), atol=1e-6)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert model.metadata.metadata == {"classes": list(INFO.classes), "update": "u-1"}


def test_a_version_is_a_graph_without_any_pickle(settings: Settings, served: Path) -> None:
    _, version = Registry(settings).publish(publication(served))
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    source = client(settings).get_model_version_download_uri(NAME, str(version))
    folder = Path(mlflow.artifacts.download_artifacts(source))
    files = [path for path in folder.rglob("*") if path.is_file()]
    (graph,) = (path for path in files if path.suffix == ".pt2")
    assert graph.read_bytes() == served.read_bytes(), "what is served is what was judged"
    flavors = mlflow.models.Model.load(folder).flavors
    assert flavors["pytorch"]["pytorch_version"] == torch.__version__, "else loading it warns"
    network = mlflow.pytorch.load_model(source)
    assert network(torch.zeros((4, *INFO.shape))).shape == (4, len(INFO.classes))
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pth")]
    requirements = (folder / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in requirements} >= {"torch", "numpy"}


def test_a_changed_network_is_not_published_and_runs_nothing(
    settings: Settings, served: Path, tmp_path: Path
) -> None:
    copy, made = tmp_path / SERVED_FILE, tmp_path / "made"
    copy.write_bytes(served.read_bytes())
    stored = digest(copy)
    tamper(copy, made)
    for sha256 in (stored, None):
        with pytest.raises(ServedDamagedError):
            Registry(settings).publish(publication(copy, served_sha256=sha256))
    assert versions(settings) == []
    assert not made.exists()


@pytest.mark.parametrize("file", ["model.pt2", "MLmodel"])
def test_a_model_that_was_changed_in_mlflow_is_not_loaded(
    settings: Settings, served: Path, tmp_path: Path, file: str
) -> None:
    each = Registry(settings)
    _, version = each.publish(publication(served))
    each.project(NAME, {"champion": version})
    (found,) = settings.artifacts.rglob(file)
    if file == "MLmodel":
        found.write_text(found.read_text().replace("loader_module: mlflow.pytorch", "loader_module: this"))
    else:
        tamper(found, tmp_path / "made")
    with pytest.raises(ServedDamagedError):
        registry.load(NAME, settings=settings)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("metrics", [499, 1001, 2500])
def test_a_pipeline_that_has_learnt_for_long_may_have_any_number_of_metrics(
    settings: Settings, metrics: int
) -> None:
    published = {f"challenger.accuracy.{index}": 0.5 for index in range(metrics)}
    Registry(settings).publish(publication(None, metrics=published))
    assert len(runs(settings)[0].data.metrics) == metrics


def test_aliases_follow_the_champion_row_and_are_mended(settings: Settings, served: Path) -> None:
    each = Registry(settings)
    assert not each.project(NAME, {"champion": None, "challenger": None})
    for number in (1, 2):
        each.publish(publication(served, update_id=f"u-{number}"))
    assert each.project(NAME, {"champion": 1, "challenger": 2})
    assert aliases(settings) == {"champion": 1, "challenger": 2}
    assert not each.project(NAME, {"champion": 1, "challenger": 2})
    client(settings).set_registered_model_alias(NAME, "champion", "2")
    client(settings).set_registered_model_alias(NAME, "mine", "2")
    assert each.project(NAME, {"champion": 1, "challenger": None})
    assert aliases(settings) == {"champion": 1, "mine": 2}
    client(settings).delete_registered_model_alias(NAME, "champion")
    assert each.project(NAME, {"champion": 1, "challenger": None})
    assert aliases(settings) == {"champion": 1, "mine": 2}


def test_updates_of_several_pipelines_are_published_at_once(settings: Settings, served: Path) -> None:
    each = Registry(settings)
    answers = together(
        3, lambda number: each.publish(publication(served, pipeline=f"p{number}", update_id=f"u-{number}"))
    )
    assert [version for _, version in answers] == [1, 1, 1]
    for number, (run_id, _) in enumerate(answers):
        (run,) = runs(settings, f"p{number}")
        assert (run.info.run_id, run.data.tags[UPDATE_TAG]) == (run_id, f"u-{number}")


def test_two_installations_in_one_process_do_not_mix(
    tmp_path: Path, mlflow_store: Path, served: Path
) -> None:
    here, there = (settings_in(tmp_path / name, mlflow_store) for name in ("here", "there"))
    first, second = Registry(here), Registry(there)
    first.publish(publication(served))
    assert (versions(here), versions(there)) == ([1], [])
    second.publish(publication(served, update_id="u-2"))
    second.project(NAME, {"champion": 1})
    first.project(NAME, {"champion": 1})
    loaded = [registry.load(NAME, settings=each).metadata.metadata["update"] for each in (here, there, here)]
    assert loaded == ["u-1", "u-2", "u-1"]


def test_mlflow_gets_the_password_by_a_header_and_no_error_quotes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MLFLOW_TRACKING_USERNAME": "",
        "MLFLOW_TRACKING_PASSWORD": "",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with traps.listener(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.port}"
        asked = Registry(Settings(home=tmp_path, mlflow_tracking_uri=f"http://holdfast:S3KRET@{address}"))
        with pytest.raises(MlflowException) as caught:
            asked.project("weather", {})
    login = base64.b64encode(b"holdfast:S3KRET")
    assert any(b"Authorization: Basic " + login in request for request in server.came)
    assert "S3KRET" not in str(caught.value)
    assert "S3KRET" not in repr(asked.__dict__)
