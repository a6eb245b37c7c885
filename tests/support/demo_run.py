"""One run of the demo, as a user starts it, shared by every test that looks at what it left behind."""

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DemoRun:
    home: Path
    document: dict[str, Any]
    """The last line of `holdfast demo --json`."""
    shown: str
    """What a person saw."""


@cache
def demo_run() -> DemoRun:
    home = Path(tempfile.mkdtemp(prefix="holdfast-test-demo-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "demo", "--json", "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr + (home / "service.log").read_text()
    return DemoRun(home, json.loads(done.stdout.splitlines()[-1]), done.stderr)
