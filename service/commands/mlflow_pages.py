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
        settings.mlflow_host,
        "--port",
        str(settings.mlflow_port),
        "--workers",
        "1",
    ]


def environment(settings: Settings) -> dict[str, str]:
    """What MLflow's server must be told by variables of its own."""
    return {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # Its job workers serve features that nothing here uses, at a gigabyte of memory.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(_hosts(settings)),
    }


def _hosts(settings: Settings) -> list[str]:
    """The hosts that requests may name; MLflow's own list has 10.*, which is the start of names as well."""
    port, own = settings.mlflow_port, settings.mlflow_host
    named = ["localhost", "127.0.0.1", "[::1]", f"[{own}]" if ":" in own else own, *settings.listed_hosts]
    return [each for host in dict.fromkeys(named) for each in (host, f"{host}:{port}")]


def serve(settings: Settings, stop: threading.Event) -> None:
    """Run MLflow's server until `stop` is set, or until it ends by itself."""
    # A group of its own: the server starts workers, and all of them must go with it.
    process = subprocess.Popen(
        [sys.executable, "-m", *command(settings)],
        env={**os.environ, **environment(settings)},
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
