"""The home is its owner's alone, and so is every file that a role makes."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.cli import serve_app
from service.errors import SettingsError
from service.home import take_home
from service.settings import Settings
from tests.support.running import free_port, wait_for

ROLES = [str(command.name) for command in serve_app.registered_commands]


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def taken(home: Path) -> list[str]:
    """Take a home, make a file and a folder in it; what the log says."""
    with capture_logs() as logged:
        take_home(Settings(home=home))
    (home / "file").touch()
    (home / "folder").mkdir()
    return [str(line["event"]) for line in logged]


def test_a_home_is_made_for_its_owner(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    assert taken(home) == []
    assert (mode_of(home), mode_of(home / "file"), mode_of(home / "folder")) == (0o700, 0o600, 0o700)


@pytest.mark.parametrize("mode", [0o755, 0o775, 0o777, 0o711, 0o2755, 0o701])
def test_a_home_that_all_users_can_enter_is_closed_with_one_line(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    (said,) = taken(tmp_path)
    assert "it is private now" in said
    assert mode_of(tmp_path) & 0o077 == 0
    assert (mode_of(tmp_path / "file"), mode_of(tmp_path / "folder") & 0o777) == (0o600, 0o700)
    (tmp_path / "file").unlink()
    (tmp_path / "folder").rmdir()
    assert taken(tmp_path) == [], "it is said once"


@pytest.mark.parametrize(("mode", "file"), [(0o750, 0o640), (0o770, 0o660), (0o2770, 0o660)])
def test_a_home_that_a_group_shares_stays_shared(tmp_path: Path, mode: int, file: int) -> None:
    tmp_path.chmod(mode)
    assert taken(tmp_path) == []
    assert mode_of(tmp_path) == mode
    assert mode_of(tmp_path / "file") == file


def test_a_folder_that_all_users_share_by_intent_is_left_to_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (said,) = taken(tmp_path)
    assert "take a folder of your own" in said
    assert mode_of(tmp_path) == 0o1777
    assert mode_of(tmp_path / "file") & 0o007 == 0


def test_a_home_that_cannot_be_made_is_one_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="HOLDFAST_HOME"):
        take_home(Settings(home=tmp_path / "file" / "home"))


@pytest.mark.parametrize("role", ROLES)
def test_every_role_closes_the_home_and_makes_files_for_its_user_alone(role: str, tmp_path: Path) -> None:
    """Whatever role is started first, and by whom: a role is a command of `holdfast serve`."""
    home = tmp_path / "home"
    home.mkdir()
    ports = {"HOLDFAST_PORT": str(free_port()), "HOLDFAST_MLFLOW_PORT": str(free_port())}
    own = {**os.environ, "HOLDFAST_HOME": str(home), **ports}
    if role in ("ingest", "dispatch"):
        # Both want a database of this release; then its folder is opened again.
        subprocess.run([sys.executable, "-m", "service.cli", "migrate"], env=own, check=True)
        home.chmod(0o755)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", role], env=own, stderr=log, stdout=log
        )
    try:
        wait_for(lambda: mode_of(home) == 0o700 or process.poll(), seconds=60, hint="closed home")
        assert wait_for(lambda: umask_of(process.pid) == 0o077, seconds=20, hint="umask of the role")
    finally:
        # Not SIGKILL: a role ends what it started itself.
        process.terminate()
        process.wait(60)
    assert "it is private now" in (tmp_path / "log").read_text()


def umask_of(process: int) -> int:
    found = re.search(r"^Umask:\s+(\d+)$", Path(f"/proc/{process}/status").read_text(), flags=re.M)
    assert found is not None
    return int(found.group(1), 8)
