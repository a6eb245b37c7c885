"""The rule about what a machine lacks: skipped with the reason here, failed where CI=true."""

from pathlib import Path

import pytest

from tests.support import needs


def test_a_program_is_found_in_the_path_and_in_folders(tmp_path: Path) -> None:
    assert needs.program("sh", package="dash").name == "sh"
    for version in ("9", "15"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "no-such-tool").touch()
    found = needs.program("no-such-tool", package="tool", folders=[f"{tmp_path}/*"])
    assert found == tmp_path / "15" / "no-such-tool"


def test_what_is_missing_skips_the_test_and_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="'no-such-tool' is missing: install the package 'tool'"):
        needs.program("no-such-tool", package="tool")


def test_in_ci_what_is_missing_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no test is left out unseen"):
        needs.program("no-such-tool", package="tool")
