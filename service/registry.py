"""Runs, versions and aliases in MLflow: the only file that imports mlflow.

Everything here is idempotent by update id: done twice, it leaves one run and one version. Aliases are a
projection of the champion row, since MLflow's own have neither compare-and-set nor history.
"""

import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Versions are pt2 graphs. A pickle in the store must never be run, whoever put it there.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import mlflow.pyfunc
import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.types import Schema, TensorSpec

from service.errors import ServedDamagedError
from service.exported import read_served
from service.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UPDATE_TAG = "holdfast.update"
ALIASES = ("champion", "challenger")
METRICS_A_CALL = 500
"""MLflow takes at most 1000 metrics a call; a pipeline that has learnt for long has more."""

_GRAPH_FILE = "model.pt2"
"""The name by which `mlflow.pytorch` knows a graph from a pickle."""

_FLUENT = threading.Lock()
"""Reading and exporting a graph is not thread-safe, and MLflow keeps its store and active run in globals."""


@dataclass(frozen=True)
class Publication:
    """Everything that MLflow stores about one update."""

    pipeline: str
    update_id: str
    at: float
    """Seconds since the epoch, the same on every attempt, so that metrics are not logged twice."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    """Tags of the run and of the version."""
    description: str
    """Markdown for the version's page."""
    texts: Mapping[str, str]
    """Artifact name -> text."""
    figures: Mapping[str, "Figure"]
    served: Path | None
    """The exported network; None: nothing was learnt, and there is no version."""
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    served_sha256: str | None = None
    """Digest of the exported network as the trainer stored it; None: an older release's trainer did not."""


class Registry:
    """MLflow, seen from one process. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        _sign_in(settings)
        self._client = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
        self._artifacts = settings.artifacts
        self._own_store = settings.mlflow_tracking_uri is None
        self._experiments: dict[str, str] = {}
        self._uri = settings.tracking_uri

    def publish(self, publication: Publication) -> tuple[str, int | None]:
        """Write the run and, where something was learnt, the version; returns (run id, version)."""
        run_id = self._run(publication)
        version = None
        if publication.served is not None:
            version = self._version(run_id, publication, publication.served)
        self._client.set_terminated(run_id, end_time=int(publication.at * 1000))
        return run_id, version

    def project(self, pipeline: str, aliases: Mapping[str, int | None]) -> bool:
        """Make the aliases follow the champion row; True if any had to change."""
        try:
            present = self._client.get_registered_model(pipeline).aliases
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return False
            raise
        changed = False
        for alias in ALIASES:
            wanted = aliases.get(alias)
            named = present.get(alias)
            if wanted is not None and (named is None or int(named) != wanted):
                self._client.set_registered_model_alias(pipeline, alias, str(wanted))
                changed = True
            elif wanted is None and named is not None:
                self._client.delete_registered_model_alias(pipeline, alias)
                changed = True
        return changed

    def _experiment(self, pipeline: str) -> str:
        if pipeline not in self._experiments:
            found = self._client.get_experiment_by_name(pipeline)
            self._experiments[pipeline] = found.experiment_id if found else self._create_experiment(pipeline)
        return self._experiments[pipeline]

    def _create_experiment(self, pipeline: str) -> str:
        # A server knows where its artifacts go; our own store needs the path, or it takes the current folder.
        location = (self._artifacts / pipeline).as_uri() if self._own_store else None
        try:
            return str(self._client.create_experiment(pipeline, artifact_location=location))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            return str(self._client.get_experiment_by_name(pipeline).experiment_id)

    def _run(self, publication: Publication) -> str:
        experiment = self._experiment(publication.pipeline)
        found = self._client.search_runs(
            [experiment], f"tags.`{UPDATE_TAG}` = '{publication.update_id}'", max_results=1
        )
        moment = int(publication.at * 1000)
        if found:
            run_id = found[0].info.run_id
        else:
            run_id = self._client.create_run(
                experiment,
                start_time=moment,
                run_name=publication.update_id,
                tags={UPDATE_TAG: publication.update_id},
            ).info.run_id
        metrics = [Metric(name, value, moment, 0) for name, value in publication.metrics.items()]
        for start in range(0, len(metrics), METRICS_A_CALL):
            self._client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_CALL])
        self._client.log_batch(
            run_id,
            params=[Param(name, value) for name, value in publication.params.items()],
            tags=[
                *(RunTag(name, value) for name, value in publication.tags.items()),
                RunTag("mlflow.note.content", publication.description),
            ],
        )
        for name, text in publication.texts.items():
            self._client.log_text(run_id, text, name)
        for name, figure in publication.figures.items():
            self._client.log_figure(run_id, figure, name)
        return str(run_id)

    def _version(self, run_id: str, publication: Publication, served: Path) -> int:
        name = publication.pipeline
        self._ensure_model(name)
        found = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if found:
            number = min(int(version.version) for version in found)
        else:
            model_id = self._log_model(run_id, publication, served)
            number = int(
                self._client.create_model_version(
                    name,
                    source=f"models:/{model_id}",
                    run_id=run_id,
                    model_id=model_id,
                    tags={UPDATE_TAG: publication.update_id},
                ).version
            )
        for tag, value in publication.tags.items():
            self._client.set_model_version_tag(name, str(number), tag, value)
        self._client.update_model_version(name, str(number), publication.description)
        return number

    def _ensure_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(
                name, description=f"Trained and gated by Holdfast, pipeline `{name}`."
            )
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise

    def _log_model(self, run_id: str, publication: Publication, served: Path) -> str:
        n_classes = len(publication.classes)
        shape = publication.input_shape
        # Read once: what was checked is what is published.
        graph = read_served(served, publication.served_sha256)
        with _FLUENT, _active_run(run_id, self._uri):
            info = Model.log(
                artifact_path=None,
                flavor=_ExportedNetwork,
                name="model",
                graph=graph,
                # It would load the graph into this process, which needs no torch otherwise.
                validate_serving_input=False,
                # Two rows: an example of one row would freeze the batch size.
                input_example=np.zeros((2, *shape), dtype=np.float32),
                signature=ModelSignature(
                    inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *shape))]),
                    outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, n_classes))]),
                ),
                # Named, because inferring them costs seconds an update.
                pip_requirements=[f"{package}=={installed(package)}" for package in ("torch", "numpy")],
                metadata={"classes": list(publication.classes), "update": publication.update_id},
            )
        return str(info.model_id)


class _ExportedNetwork:
    """MLflow's flavor `pytorch` for a graph that is exported already; loads as any model of that flavor.

    `mlflow.pytorch.save_model` takes a network and exports it: a second time, which took a third of an
    update's seconds, and to other bytes than those that were judged.
    """

    @staticmethod
    def save_model(
        path: str, mlflow_model: Model, *, graph: bytes, validate_serving_input: bool, **kwargs: Any
    ) -> None:
        """Write the model's folder, as `Model.log` asks of a flavor; the flag is for `Model.log` alone."""
        with tempfile.TemporaryDirectory(prefix="holdfast-model-") as scratch:
            folder = Path(scratch) / "network"
            folder.mkdir()
            (folder / _GRAPH_FILE).write_bytes(graph)
            mlflow_model.add_flavor(
                "pytorch",
                model_data=f"data/{folder.name}",
                pytorch_version=_torch_version(),
                code=None,
            )
            mlflow.pyfunc.save_model(
                path,
                loader_module="mlflow.pytorch",
                data_path=str(folder),
                mlflow_model=mlflow_model,
                model_config={"device": None},
                **kwargs,
            )


def _torch_version() -> str:
    """`torch.__version__`, label of the build included, without importing torch.

    `mlflow.pytorch` warns where another one loads the network; a distribution's version has no label.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return installed("torch")
    text = Path(spec.origin).with_name("version.py").read_text()
    found = re.search(r"^__version__ = ['\"](.+)['\"]$", text, flags=re.M)
    return found.group(1) if found else installed("torch")


@contextmanager
def _active_run(run_id: str, uri: str) -> Iterator[None]:
    """`run_id` of this store as MLflow's active run."""
    _use(uri)
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        yield


def _sign_in(settings: Settings) -> None:
    """Hand user and password to MLflow by its own variables: it quotes and stores its URI."""
    if settings.tracking_login is not None:
        user, password = settings.tracking_login
        os.environ["MLFLOW_TRACKING_USERNAME"] = user
        os.environ["MLFLOW_TRACKING_PASSWORD"] = password.get_secret_value()


def _use(uri: str) -> None:
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)


def warm_up(settings: Settings) -> "Registry":
    """A registry whose store has its schema and whose slow imports are paid for."""
    registry = Registry(settings)
    registry._client.search_experiments(max_results=1)
    return registry


def load(pipeline: str, *, settings: Settings, alias: str = "champion") -> Any:
    """The served model of a pipeline, as mlflow.pyfunc loads it.

    Raises:
        ServedDamagedError: the stored model is more than an exported network.
    """
    _sign_in(settings)
    _use(settings.tracking_uri)
    with tempfile.TemporaryDirectory(prefix="holdfast-load-") as scratch:
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{pipeline}@{alias}", dst_path=scratch))
        loader = Model.load(folder).flavors.get("python_function", {})
        # MLflow imports the module that the file names, and the code that lies next to it.
        if loader.get("loader_module") != "mlflow.pytorch" or loader.get("code"):
            raise ServedDamagedError(
                f"The model {pipeline}@{alias} in MLflow is no network that Holdfast published.",
                fix="Nothing of it was run. Find out who changed MLflow's artifacts.",
            )
        read_served(folder / loader["data"] / _GRAPH_FILE, None)
        return mlflow.pyfunc.load_model(str(folder))
