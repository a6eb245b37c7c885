"""The Python of the pages for contributors runs as it stands there, on a home that learnt two experiences."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import registry
from service.settings import Settings
from strategies.catalog import STRATEGIES
from strategies.learning.state import load_any
from tests.support.homes import Home, digits, home
from tests.support.repository import ROOT

PAGES = ROOT / "docs" / "contributing"
SHOWN_ID = "u-4f0c9a1be2d35768"
SHOWN_HOME = "holdfast-home"


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Iterator[Home]:
    """A home whose second update started from a champion that replays."""
    folder = tmp_path_factory.mktemp("examples")
    with home(folder / "home", mlflow_store, strategy={"name": "replay", "capacity": 200}) as each:
        assert [each.learn(digits(batch)).outcome for batch in range(2)] == ["promote", "promote"]
        yield each


def run_blocks(name: str, *, update: str, settings: Settings, **given: Any) -> dict[str, Any]:
    """Run every Python block of a page, in order, as one program about this home and update."""
    blocks = re.findall(r"^```python\n(.*?)^```", (PAGES / name).read_text(), flags=re.M | re.S)
    assert blocks
    program = "\n".join(blocks).replace(SHOWN_ID, update).replace(SHOWN_HOME, str(settings.root))
    namespace: dict[str, Any] = {"__name__": "__main__", **given}
    exec(compile(program, name, "exec"), namespace)
    return namespace


def test_a_checkpoint_folder_is_read_as_the_page_says(
    learnt: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(learnt.settings.root))
    last = learnt.updates()[-1]
    inputs = digits(2).features
    found = run_blocks("checkpoint.md", update=last.id, settings=learnt.settings, inputs=inputs)
    assert (
        found["learner"].predict(inputs) == load_any(found["folder"] / "learner", STRATEGIES).predict(inputs)
    ).all()
    assert set(found["result"].challenger) == {0, 1}
    shown = capsys.readouterr().out
    assert "replay 0" in shown
    assert "2 experiences learnt" in shown
    assert "plugin/replay/inputs [200, 8, 8]" in shown


def test_the_files_of_a_checkpoint_folder_are_those_in_the_table(learnt: Home) -> None:
    folder = learnt.updates()[-1].id
    there = {
        str(path.relative_to(learnt.settings.checkpoints / folder))
        for path in (learnt.settings.checkpoints / folder).rglob("*")
        if path.is_file()
    }
    named = re.findall(r"^\| `([\w./]+)` \|", (PAGES / "checkpoint.md").read_text(), flags=re.M)
    assert set(named) == there


@pytest.mark.parametrize("number", [0, 1], ids=["the first, without a champion", "one from a champion"])
def test_an_update_is_learnt_again_as_the_page_says(
    learnt: Home, number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(learnt.settings.root))
    run_blocks("replay-update.md", update=learnt.updates()[number].id, settings=learnt.settings)
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["state.json is the same", "tensors.safetensors is the same"]


def test_a_trainer_is_debugged_in_one_process_as_the_page_says(
    learnt: Home, mlflow_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(settings: Settings) -> None:
        # The same tables, made once for all tests.
        shutil.copy(mlflow_store, settings.root / "mlflow.db")

    monkeypatch.setattr(registry, "warm_up", copied)
    run_blocks("debug-one-role.md", update="none", settings=learnt.settings)
    shown = capsys.readouterr().out
    assert "experience 0 learnt; no past holdouts yet" in shown
    assert "'schema': 'holdfast.verdict/" in shown
