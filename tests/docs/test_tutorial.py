"""The tutorial works as written: its blocks are run one after the other, as a reader would."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.doc_pages import DOCS
from tests.support.repository import ROOT
from tests.support.running import free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

START_SECONDS = 600
VERDICT_SECONDS = 200


def run(command: str, *, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@contextmanager
def service(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """`holdfast up`, as in the first terminal, until the reader presses Ctrl-C."""
    log = folder / "up.log"
    with (
        log.open("w") as output,
        subprocess.Popen(["holdfast", "up"], cwd=folder, env=environment, stdout=output, stderr=output) as up,
    ):
        try:
            wait_for(
                lambda: "holdfast is up" in log.read_text(), seconds=START_SECONDS, hint=f"{log} to say so"
            )
            yield
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(60)


def test_the_tutorial_leads_to_two_promotions_and_a_rejection(tmp_path: Path) -> None:
    text = (DOCS / "tutorial.md").read_text()
    steps = [block.strip() for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S)]
    (script,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    start, *steps = steps
    assert start.endswith("holdfast up")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOLDFAST_PORT": str(free_port()),
        "HOLDFAST_MLFLOW_PORT": str(free_port()),
    }
    run(start.removesuffix("holdfast up"), folder=tmp_path, environment=environment)
    folder = tmp_path / "first"
    (folder / "make_csv.py").write_text(script)

    def ended() -> list[str]:
        listed = run("holdfast update list digits", folder=folder, environment=environment)
        return [line.split()[3] for line in listed.splitlines() if line.split()[2] == "done"]

    with service(folder, environment):
        copied = 0
        for step in steps:
            shown = run(re.sub(r"u-[0-9a-f]{16}", _newest, step), folder=folder, environment=environment)
            if step.startswith("cp day-"):
                copied += 1
                wait_for(lambda: len(ended()) == copied, seconds=VERDICT_SECONDS, hint="a verdict")  # noqa: B023
            if step.startswith("holdfast update explain"):
                assert "the past holdout kept within 5 points; experience 1 learnt" in shown
        assert ended() == ["reject", "promote", "promote"]
        assert "The chain of hashes holds." in shown
        assert '"version": 2' in shown
        assert re.search(r"^ +2  parked +800 records", shown, flags=re.M)


def _newest(_found: re.Match[str]) -> str:
    return "$(holdfast update list digits --limit 1 | cut -d' ' -f1)"
