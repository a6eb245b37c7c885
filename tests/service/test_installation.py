"""Holdfast installed as users install it: in empty environments, away from the repository.

These tests use the package index, and download gigabytes where nothing is cached.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import msgspec
import pyarrow as pa
import pytest
import yaml
from packaging.utils import canonicalize_name

from streams.sources.datasets import DIGITS_SCHEMA, DatasetsConfig, digits_step
from streams.wire.decode import encode_json
from tests.support import api_pins
from tests.support.packages import PACKAGES, build_wheel, write_wheel
from tests.support.repository import ROOT
from tests.support.running import free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

API_MEGABYTES = 540
"""What an API-only environment may take on disk; docs/how-to/install.md has what it takes."""
BATCH = 1200


def called(
    command: Sequence[str | Path],
    *,
    folder: Path = ROOT,
    env: Mapping[str, str] | None = None,
    seconds: float = 1200,
) -> str:
    """What a command prints, with no variable of Holdfast's or Python's own; it must succeed."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "PYTHON"))
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**clean, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def environment(folder: Path) -> Path:
    """An empty environment's folder of programs."""
    called([sys.executable, "-m", "venv", folder])
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """uv: this machine's, or the pinned one from the package index."""
    found = shutil.which("uv")
    if found:
        return Path(found)
    programs = environment(tmp_path_factory.mktemp("uv"))
    called([programs / "python", "-m", "pip", "install", "-c", api_pins.PINS, "uv"])
    return programs / "uv"


@contextmanager
def started(programs: Path, *arguments: str, folder: Path) -> Iterator[tuple[dict[str, str], IO[str]]]:
    """`holdfast ...` of an environment, run in an empty folder; its settings, and what it prints."""
    folder.mkdir(parents=True)
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "PYTHON"))
    }
    ports = {"HOLDFAST_PORT": str(free_port()), "HOLDFAST_MLFLOW_PORT": str(free_port())}
    settings = {**ports, "HOLDFAST_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [programs / "holdfast", *arguments],
            cwd=folder,
            env={**clean, **settings},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        yield settings, process.stdout
        process.send_signal(signal.SIGTERM)
        # uvicorn hands the signal on once it has shut down, so that the API alone ends by it.
        assert process.wait(60) in (0, -signal.SIGTERM), (folder / "log").read_text()
    finally:
        process.stdout.close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str) -> Callable[[], httpx.Response | None]:
    def ask() -> httpx.Response | None:
        try:
            answer = httpx.get(url, timeout=5.0)
        except httpx.TransportError:
            return None
        return answer if answer.is_success else None

    return ask


def digits_pipeline(folder: Path) -> tuple[Path, Path]:
    """A declared pipeline of digits, and the records of one experience, as files."""
    declared = {
        "name": "digits",
        "schema": DIGITS_SCHEMA.model_dump(mode="json"),
        "source": {"kind": "pushed"},
        "trigger": {"kind": "records", "records": BATCH},
        "split": {"gate": 0.334, "audit": 0.05},
        "strategy": {"name": "naive", "hidden": [32], "epochs": 8, "learning_rate": 5e-3, "device": "cpu"},
        "gate": {"margin": 0.2, "learning_margin": 0.2},
    }
    pipeline, records = folder / "digits.yaml", folder / "records.ndjson"
    pipeline.write_text(yaml.safe_dump(declared))
    step = digits_step(DatasetsConfig(protocol="rotated-digits", angles=(0.0,)), 0).take(slice(0, BATCH))
    records.write_bytes(b"\n".join(encode_json(step, DIGITS_SCHEMA)))
    return pipeline, records


def test_the_whole_service_runs_from_a_wheel_in_an_empty_environment(
    uv: Path, wheel: Path, tmp_path: Path
) -> None:
    programs = environment(tmp_path / "environment")
    python = programs / "python"
    called([uv, "pip", "install", "--python", python, "--constraints", api_pins.PINS, wheel])
    elsewhere = tmp_path / "elsewhere"
    with started(programs, "up", folder=elsewhere) as (settings, printed):
        where = called(
            [python, "-c", f"import {', '.join(PACKAGES)}; print(service.__file__)"], folder=elsewhere
        )
        assert Path(where.strip()).is_relative_to(tmp_path / "environment")
        assert called([programs / "holdfast", "--version"], folder=elsewhere).startswith("holdfast ")
        assert "holdfast is up" in printed.readline()
        pipeline, records = digits_pipeline(elsewhere)
        called([programs / "holdfast", "pipeline", "create", pipeline], folder=elsewhere, env=settings)
        called([programs / "holdfast", "push", "digits", records], folder=elsewhere, env=settings)
        url = f"http://127.0.0.1:{settings['HOLDFAST_PORT']}"
        learnt = wait_for(answers(f"{url}/v1/pipelines/digits/champion"), seconds=300, hint="champion")
        assert learnt.json()["learnt"] == [0]
        (update,) = httpx.get(f"{url}/v1/pipelines/digits/updates", timeout=60).json()
        assert (update["state"], update["outcome"]) == ("done", "promote")
        ledger = called([programs / "holdfast", "ledger", "digits"], folder=elsewhere, env=settings)
        assert "experience 0 learnt" in ledger
        assert "The chain of hashes holds." in ledger
        pages = f"http://127.0.0.1:{settings['HOLDFAST_MLFLOW_PORT']}/"
        assert "MLflow" in wait_for(answers(pages), seconds=120, hint="MLflow's pages").text
    assert "Traceback" not in (elsewhere / "log").read_text()


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_the_api_alone_runs_in_a_small_environment(
    uv: Path, wheel: Path, tmp_path: Path, installer: str
) -> None:
    programs = environment(tmp_path / "environment")
    python = programs / "python"
    install: list[str | Path] = [python, "-m", "pip", "install"]
    if installer == "uv":
        install = [uv, "pip", "install", "--python", python]
    called([*install, "-r", api_pins.API_PINS])
    called([*install, "--no-deps", wheel])
    size = sum(path.stat().st_size for path in (tmp_path / "environment").rglob("*") if path.is_file())
    assert size < API_MEGABYTES * 10**6
    elsewhere = tmp_path / "elsewhere"
    with started(programs, "serve", "api", folder=elsewhere) as (settings, _printed):
        url = f"http://127.0.0.1:{settings['HOLDFAST_PORT']}"
        ready = wait_for(answers(f"{url}/readyz"), seconds=60, hint="answer of the API")
        assert ready.json()["roles"] == []
        for page in ("/healthz", "/docs", "/openapi.json", "/docs/swagger-ui.css"):
            assert httpx.get(url + page, timeout=60).is_success, page
        pipeline, records = digits_pipeline(elsewhere)
        called([programs / "holdfast", "pipeline", "create", pipeline], folder=elsewhere, env=settings)
        shown = called([programs / "holdfast", "push", "digits", records], folder=elsewhere, env=settings)
        assert str(BATCH) in shown.replace(",", "")
        push_in_every_form(f"{url}/v1/pipelines/digits/records")
        asked = httpx.post(f"{url}/v1/pipelines/digits/updates", timeout=60)
        assert asked.status_code == 202, asked.text
        for command in (("stream", "status", "digits"), ("ledger", "digits"), ("holdout", "list", "digits")):
            called([programs / "holdfast", *command], folder=elsewhere, env=settings)
    assert "Traceback" not in (elsewhere / "log").read_text()


def push_in_every_form(url: str) -> None:
    """Two records in each form that the API takes over HTTP besides NDJSON."""
    pixels = [[1.0] * 8] * 8
    records = [{"id": f"m{number}", "features": pixels, "label": "3"} for number in range(2)]
    columns = {
        "id": ["a0", "a1"],
        "features": pa.array([[1.0] * 64] * 2, type=pa.list_(pa.float32(), 64)),
        "label": ["3", "4"],
    }
    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    bodies = {
        "application/msgpack": msgspec.msgpack.encode(records),
        "application/vnd.apache.arrow.stream": sink.getvalue().to_pybytes(),
    }
    for media_type, body in bodies.items():
        answer = httpx.post(url, content=body, headers={"Content-Type": media_type}, timeout=60)
        assert answer.status_code == 202, (media_type, answer.text)


def picked(printed: str) -> dict[str, str]:
    """Canonical name -> version of what uv or pip says it would install."""
    lines = re.findall(r"^ \+ (\S+)==(\S+)$", printed, re.MULTILINE)
    (would,) = re.findall(r"^Would install (\S+-.*)$", printed, re.MULTILINE) or [""]
    pairs = [*lines, *(each.rsplit("-", 1) for each in would.split())]
    return {canonicalize_name(name): version for name, version in pairs}


def unpinned(found: Mapping[str, str]) -> dict[str, str]:
    """What of it has another version than `constraints.txt`, or none there."""
    pins = {name: line.split("==")[1] for name, line in api_pins.pinned().items()}
    return {name: version for name, version in found.items() if pins.get(name, version + "?") != version}


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_a_torch_for_cpus_that_is_there_is_kept_and_no_cuda_library_comes(
    uv: Path, tmp_path: Path, installer: str
) -> None:
    programs = environment(tmp_path / "environment")
    # Stand-ins: PyTorch's own index has the real ones, and a resolver sees no more of them than this.
    stubs = [
        write_wheel(tmp_path, name, version=f"{version}+cpu", files={f"{name}/__init__.py": ""})
        for name, version in (("torch", "2.15.0"), ("torchvision", "0.29.2"))
    ]
    called([uv, "pip", "install", "--python", programs / "python", "--no-deps", *stubs])
    env = {"VENV": str(tmp_path / "environment"), "INSTALLER": installer}
    printed = called([ROOT / ".ci" / "install", "--dry-run"], env={**env, "PATH": searched(uv)})
    found = picked(printed)
    assert {"ray", "mlflow", "avalanche-lib", "fastapi", "pytest"} <= found.keys()
    assert not {
        name for name in found if name.startswith(("nvidia-", "cuda-")) or name in ("torch", "triton")
    }
    assert "torchvision" not in found
    assert "Keeping torch 2.15.0+cpu" in printed
    found.pop("holdfast-cl", None)
    assert unpinned(found) == {}


def test_uv_takes_what_is_pinned_and_leaves_out_the_solvers(uv: Path, tmp_path: Path) -> None:
    programs = environment(tmp_path / "environment")
    env = {"VENV": str(tmp_path / "environment"), "INSTALLER": "uv", "PATH": searched(uv)}
    ours = picked(called([ROOT / ".ci" / "install", "--dry-run"], env=env))
    install: list[str | Path] = [
        uv,
        "pip",
        "install",
        "--dry-run",
        "--python",
        programs / "python",
        "--constraints",
        api_pins.PINS,
    ]
    # As anybody else installs it, with an installer that reads every extra.
    theirs = picked(called([*install, f"{ROOT}[dev]"]))
    assert unpinned(ours) == unpinned(theirs) == {}
    assert {"jaxlib", "scs", "quadprog"} <= theirs.keys() - ours.keys()
    assert ours.keys() < theirs.keys()


def searched(uv: Path) -> str:
    """PATH with uv in it."""
    return os.pathsep.join([str(uv.parent), os.environ["PATH"]])
