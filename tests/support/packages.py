"""Holdfast as an ordinary wheel: built from a copy of the sources, installed where the repository is not."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.repository import ROOT

PACKAGES = ("service", "streams", "strategies")
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "holdfast_cl.py", *PACKAGES)


def build_wheel(folder: Path) -> Path:
    """The wheel, built with the setuptools of this environment, so that nothing is downloaded."""
    sources = folder / "sources"
    sources.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources / name)
    script = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=sources, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(sources)
    return wheel


def write_wheel(folder: Path, name: str, *, version: str, files: Mapping[str, str]) -> Path:
    """A small wheel of somebody else's: a distribution without requirements that holds these files."""
    info = f"{name}-{version}.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members[f"{info}/RECORD"] = "".join(f"{member},,\n" for member in [*members, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in members.items():
            wheel.writestr(member, text)
    return path


@dataclass(frozen=True)
class Installed:
    """Holdfast installed in a folder of its own; what it requires is taken from this environment."""

    folder: Path
    elsewhere: Path
    """A folder that holds no package: commands run there."""

    def run(
        self,
        *arguments: str,
        path: Path | None = None,
        folder: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`holdfast ...`, as installed.

        Args:
            path: a folder that PYTHONPATH names before the installation.
            folder: where the command is run; default: `elsewhere`.
            env: more variables.
        """
        return self._call(
            [str(self.folder / "bin" / "holdfast"), *arguments], path=path, folder=folder, env=env
        )

    def python(self, script: str) -> subprocess.CompletedProcess[str]:
        """A script in an interpreter that imports the installation."""
        return self._call([sys.executable, "-P", "-c", script], path=None, folder=None, env=None)

    def install(self, wheel: Path) -> None:
        """Put another distribution into the same folder."""
        _install(wheel, self.folder)

    def _call(
        self, command: list[str], *, path: Path | None, folder: Path | None, env: Mapping[str, str] | None
    ) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        paths = [str(each) for each in (path, self.folder) if each is not None]
        return subprocess.run(
            command,
            cwd=folder or self.elsewhere,
            env={**clean, "PYTHONPATH": os.pathsep.join(paths), **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def install(wheel: Path, folder: Path) -> Installed:
    """Install a wheel of Holdfast into a folder, without what it requires."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(parents=True)
    _install(wheel, folder / "installed")
    return Installed(folder / "installed", elsewhere)


def _install(wheel: Path, target: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", target, wheel],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
