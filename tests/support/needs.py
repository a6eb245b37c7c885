"""What a test needs of the machine. Without it the test is skipped; in CI, where all must run, it fails."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str, *, package: str) -> NoReturn:
    """Skip the test, or fail it where CI=true, and say what to install."""
    reason = f"{what} is missing: install the package {package!r}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI=true, so that no test is left out unseen)", pytrace=False)
    pytest.skip(reason)


def program(name: str, *, package: str, folders: Sequence[str] = ()) -> Path:
    """The path of a program, from PATH or from folders named by glob patterns; the newest version wins."""
    found = shutil.which(name)
    if found:
        return Path(found)
    places = [place for pattern in folders for place in Path("/").glob(f"{pattern.lstrip('/')}/{name}")]
    if not places:
        missing(f"the program {name!r}", package=package)
    return max(
        places,
        key=lambda place: [
            (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in place.parts
        ],
    )
