"""MLflow's own pages on the embedded store, as a role of `holdfast up`."""

import os
import signal
import subprocess
import sys
import threading

import structlog

from service.settings import Settings

log = structlog.get_logger(__name__)


def command(settings: Settings) -> list[str]:
    """What a person types to see MLflow's pages."""
    return [
        "mlflow",
        "server",
        "--backend-store-uri",
        settings.tracking_uri,
        "--default-artifact-root",
        settings.artifacts.as_uri(),
        "--host",
        settings.host,
        "--port",
        str(settings.mlflow_port),
        "--workers",
        "1",
    ]


def serve(settings: Settings, stop: threading.Event) -> None:
    """Run MLflow's server until `stop` is set, or until it ends by itself."""
    quiet = {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # Its job workers serve features that nothing here uses, at a gigabyte of memory.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    # A group of its own: the server starts workers, and all of them must go with it.
    process = subprocess.Popen(
        [sys.executable, "-m", *command(settings)],
        env={**os.environ, **quiet},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        while not stop.wait(0.5):
            if process.poll() is not None:
                log.error("MLflow's pages ended", status=process.returncode)
                return
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:
        log.info("MLflow's pages had ended already")
