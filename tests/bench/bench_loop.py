"""The whole loop: the demo, the test command, a warm update, the start of the API."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.client import Client
from service.commands.demo import spec
from streams.sources.datasets import DIGITS_SCHEMA, DatasetsConfig, digits_step
from streams.wire.decode import encode_json
from tests.bench.measure import Measured
from tests.support.repository import ROOT
from tests.support.running import Service, ended, running, wait_for

STREAM = DatasetsConfig(protocol="rotated-digits", angles=(0.0, 10.0, 20.0, 30.0, 40.0, 50.0))
HEAVY = ("torch", "ray", "mlflow", "avalanche")


def run() -> list[Measured]:
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        return [
            Measured("API ready", _api_ready_seconds(Path(folder) / "api"), "s", 4.0, "<="),
            Measured("CPU of holdfast --help", _help_cpu_seconds(), "s", 0.5, "<="),
            Measured("heavy libraries in the API process", _heavy_imports(), "libraries", 0, "<="),
            Measured("warm update", _warm_update_seconds(Path(folder) / "up"), "s", 5.0, "<="),
            Measured("make demo", _make_seconds("demo"), "s", 120.0, "<="),
            Measured("make test", _make_seconds("test"), "s", 600.0, "<="),
        ]


def _api_ready_seconds(home: Path) -> float:
    """From the start of the process to the first answer of /readyz, the database made on the way."""
    started = time.monotonic()
    with started_api(home):
        return time.monotonic() - started


@contextmanager
def started_api(home: Path) -> Iterator[str]:
    """The URL of an API process of its own, once it answers."""
    service = Service(home)
    command = [sys.executable, "-m", "service.cli", "serve", "api"]
    with subprocess.Popen(command, env=service.environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: _is_ready(service.port), seconds=60, hint="answer of the API")
            yield f"http://127.0.0.1:{service.port}"
        finally:
            process.terminate()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=1.0).is_success
    except httpx.HTTPError:
        return False


def _help_cpu_seconds() -> float:
    """The least of eight: a busy machine says nothing of the command."""
    used = []
    for _ in range(8):
        before = sum(os.times()[2:4])
        subprocess.run([sys.executable, "-m", "service.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        used.append(sum(os.times()[2:4]) - before)
    return min(used)


def _heavy_imports() -> float:
    script = f"import sys, service.api.app; print(sum(name in sys.modules for name in {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _warm_update_seconds(home: Path) -> float:
    """Median, from the answer to the last record of an experience to its recorded decision."""
    with running(home) as service, service.client() as client:
        declared = {
            **spec("bench", {"name": "replay", "capacity": 1200}),
            "split": {"gate": 0.3, "audit": 0.03},
        }
        client.post("/v1/pipelines", declared)
        seconds = [_update_seconds(client, step) for step in range(STREAM.steps)]
    return statistics.median(seconds[1:])


def _update_seconds(client: Client, step: int) -> float:
    lines = encode_json(digits_step(STREAM, step), DIGITS_SCHEMA)
    client.push("bench", lines)
    accepted = time.monotonic()
    update = ended(client, "bench", experience=step)
    if update["state"] == "failed":
        raise RuntimeError(update["error"])
    return time.monotonic() - accepted


def _make_seconds(verb: str) -> float:
    started = time.monotonic()
    subprocess.run(["make", verb], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started
