"""The distribution `holdfast-cl`: what its wheel holds, what it requires, what it refuses to start with."""

import json
import os
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import api_pins
from tests.support.packages import PACKAGES, Installed, build_wheel, install, write_wheel
from tests.support.repository import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(wheel, tmp_path_factory.mktemp("environment"))


def required(extra: str | None = None) -> list[Requirement]:
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def test_the_wheel_holds_every_module_template_static_file_and_migration_and_no_test(wheel: Path) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(path).suffix for path in sources} >= {".py", ".j2", ".js", ".css", ".mako"}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == sources | {"holdfast_cl.py"}


def test_a_wheel_installed_elsewhere_starts_without_the_repository(installed: Installed) -> None:
    where = installed.python(
        f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})))"
    )
    assert where.stdout.split() == [str(installed.folder / name / "__init__.py") for name in PACKAGES]
    shown = installed.run("--version")
    assert (shown.stdout, shown.stderr, shown.returncode) == (f"holdfast {PROJECT['version']}\n", "", 0)
    assert "create" in installed.run("pipeline", "--help").stdout
    home = {"HOLDFAST_HOME": str(installed.elsewhere / "home")}
    migrated = installed.run("migrate", env=home)
    assert (migrated.stdout, migrated.returncode) == ("The database is at this release.\n", 0), (
        migrated.stderr
    )
    assert not (installed.elsewhere / "streams").exists()


def test_a_source_that_is_not_installed_says_that_its_version_is_not_known(tmp_path: Path) -> None:
    # An interpreter that sees the packages and their requirements, but no metadata of ours.
    script = (
        "import importlib.metadata as m, sys\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.version = missing; sys.argv = ['holdfast', '--version']\n"
        "from service.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "holdfast: Holdfast runs from a folder and is not installed, so its version is not known. "
        "Install it with make install, or as an ordinary wheel.\n"
    )


@pytest.mark.parametrize("name", PACKAGES)
def test_another_package_on_the_path_is_refused_in_one_sentence(
    installed: Installed, name: str, tmp_path: Path
) -> None:
    other = tmp_path / name / "__init__.py"
    other.parent.mkdir()
    other.write_text("raise RuntimeError('this is not Holdfast')\n")
    done = installed.run("serve", "api", path=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"holdfast: {other} would be imported in place of Holdfast's own package {name} "
        f"({installed.folder / name}): take it off PYTHONPATH, rename it, or start Holdfast from another "
        "folder.\n"
    )


def test_a_module_on_the_path_shadows_as_a_package_does(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "streams.py").write_text("")
    done = installed.run("serve", "ingest", path=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path / 'streams.py'} would be imported" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("up",), ("serve", "dispatch"), ("demo",)])
def test_what_starts_trainers_refuses_a_folder_that_they_would_search_first(
    installed: Installed, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "__init__.py").write_text("")
    done = installed.run(*arguments, folder=tmp_path, env={"HOLDFAST_HOME": str(tmp_path / "home")})
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/strategies/__init__.py would be imported in place of" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "home").exists()


def test_folders_that_hold_no_code_are_no_packages(installed: Installed, tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("records of streams")
    asked = {"HOLDFAST_HOME": str(tmp_path / "home"), "HOLDFAST_TRAINERS": "none"}
    done = installed.run("up", path=tmp_path, folder=tmp_path, env=asked)
    # It got as far as its settings.
    assert done.returncode == 2
    assert "HOLDFAST_TRAINERS" in done.stderr


def test_files_of_another_distribution_in_our_packages_are_refused(wheel: Path, tmp_path: Path) -> None:
    mixed = install(wheel, tmp_path / "environment")
    other = write_wheel(tmp_path, "street", version="1.0", files={"service/street.py": "", "street.py": ""})
    mixed.install(other)
    done = mixed.run("serve", "api", env={"HOLDFAST_HOME": str(tmp_path / "home")})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "holdfast: The distribution street installed files into Holdfast's package service: uninstall it, "
        "then install holdfast-cl again, in an environment of its own.\n"
    )


def test_no_page_and_no_message_asks_for_the_other_project_of_that_name() -> None:
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    asked = re.compile(
        r"(pip|pipx|uv|uvx|poetry|conda)\s+(tool )?(install|add|run)[^\n`]*?[\s'\"]holdfast(?!-cl)\b"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in [*PAGES, *sources]
        if path.suffix in (".md", ".py", ".j2", ".js")
        for line in path.read_text().splitlines()
        if asked.search(line)
    ]
    assert len(PAGES) > 10
    assert found == []


def test_every_import_is_required_and_every_requirement_is_imported() -> None:
    homes = packages_distributions()
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = {name for path in paths for name in api_pins.imported(path)} - {*PACKAGES, "holdfast_cl"}
    # Several distributions share a package such as `mlflow`, and one that is declared is enough.
    found = {name: {canonicalize_name(home) for home in homes[name]} for name in names}
    declared = {canonicalize_name(requirement.name) for requirement in required()}
    optional = {canonicalize_name(each.name) for extra in ("postgres", "labels") for each in required(extra)}
    # The compiled half of pydantic, which pins it to the version that fits.
    stray = {name for name, own in found.items() if not own & (declared | optional)} - {"pydantic_core"}
    assert stray == set()
    assert declared - set().union(*found.values()) == set()
    assert {"torch", "avalanche-lib", "ray", "mlflow", "numpy", "fastapi"} <= declared


def test_every_distribution_that_is_required_here_is_pinned_at_the_version_tested_here() -> None:
    pins = api_pins.pinned()
    needed = api_pins.closure(
        (str(requirement) for requirement in [*required(), *required("dev")]), left_out={"qpsolvers"}
    )
    # A label such as +cpu says which build of that version it is.
    stray = {
        name: pins.get(name)
        for name in needed
        if not (pins.get(name) or "").endswith(f"=={version(name).split('+')[0]}")
    }
    assert stray == {}


def test_the_pins_of_the_api_are_what_the_role_imports() -> None:
    assert api_pins.API_PINS.read_text() == api_pins.derived(), (
        "constraints-api.txt is not what the API imports: run python -m tests.support.api_pins"
    )
    heavy = {"torch", "ray", "mlflow", "avalanche-lib", "scikit-learn", "confluent-kafka", "redis"}
    assert not heavy & {
        canonicalize_name(line.split("==")[0]) for line in api_pins.API_PINS.read_text().split()
    }


def commands_shown(folder: Path, *, installer: str = "auto", path: Path | None = None) -> str:
    """What `.ci/install` would run, in an environment of this folder; `path` is searched for uv."""
    env = {
        **os.environ,
        "VENV": str(folder / "venv"),
        "PYTHON": sys.executable,
        "INSTALLER": installer,
        "PATH": os.pathsep.join([str(path), "/usr/bin", "/bin"] if path else ["/usr/bin", "/bin"]),
    }
    done = subprocess.run(
        [ROOT / ".ci" / "install", "--show"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "venv").exists()
    return done.stdout


def test_uv_installs_where_it_is_there_and_pip_where_it_is_told_to(tmp_path: Path) -> None:
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text("#!/bin/sh\nexit 1\n")
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
    venv = tmp_path / "venv"
    by_uv = commands_shown(tmp_path, path=uv.parent)
    assert f"+ {uv} pip install --compile-bytecode --python {venv}/bin/python --constraints " in by_uv
    assert " -m pip " not in by_uv
    by_pip = commands_shown(tmp_path, path=uv.parent, installer="pip")
    assert f"+ {venv}/bin/python -m pip --disable-pip-version-check install --constraint " in by_pip
    assert str(uv) not in by_pip
    for shown in (by_uv, by_pip):
        assert "--editable .[dev]" in shown
        assert "GB to download" in shown
        assert " -q" not in shown


def test_uv_is_had_from_the_package_index_where_it_is_not_there(tmp_path: Path) -> None:
    shown = commands_shown(tmp_path).splitlines()
    own = tmp_path / "venv" / "bin"
    assert f"+ {own}/python -m pip --disable-pip-version-check install -c constraints.txt uv" in shown
    assert f"+ {own}/uv pip install --compile-bytecode --python {own}/python" in "\n".join(shown)


def test_pip_installs_where_uv_is_not_to_be_had(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    calls = tmp_path / "calls.ndjson"
    # This environment's pip reaches no index, so that it cannot bring uv; it writes down what it is asked.
    pip = (
        venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages" / "pip.py"
    )
    pip.write_text(
        "import json, sys\n"
        f"open({str(calls)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "sys.exit('uv' in sys.argv)\n"
    )
    env = {**os.environ, "VENV": str(venv), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [ROOT / ".ci" / "install"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "uv is not to be had: pip installs the same" in done.stdout
    asked = [json.loads(line) for line in calls.read_text().splitlines()]
    assert [call[-1] for call in asked] == ["uv", ".[dev]"]
    calls.unlink()
    refused = subprocess.run(
        [ROOT / ".ci" / "install"],
        env={**env, "INSTALLER": "uv"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert "INSTALLER=pip" in refused.stderr


def test_an_installer_that_is_not_known_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / ".ci" / "install"],
        env={**os.environ, "INSTALLER": "conda", "VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "INSTALLER is uv, pip or auto, not 'conda'.\n")
