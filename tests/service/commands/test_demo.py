"""The demo shows what it promises, decided by evidence."""

import stat
from pathlib import Path

import psutil
import pytest

from tests.support.demo_run import demo_run

pytestmark = pytest.mark.usefixtures("demo")


def test_fine_tuning_is_stopped_for_forgetting_at_every_step() -> None:
    pipeline = demo_run().document["pipelines"]["digits-naive"]
    first, *later = pipeline["updates"]
    assert first["outcome"] == "promote"
    assert [update["outcome"] for update in later] == ["reject"] * 4
    assert all(update["reason"].startswith("experience 0 lost between") for update in later)
    assert all(update["accuracy"][0] < first["accuracy"][0] - 0.10 for update in later)
    assert pipeline["champion_version"] == 1


def test_replay_is_promoted_at_every_step_and_keeps_what_it_learnt() -> None:
    pipeline = demo_run().document["pipelines"]["digits-replay"]
    assert [update["outcome"] for update in pipeline["updates"]] == ["promote"] * 5
    assert min(pipeline["updates"][-1]["accuracy"]) > 0.90


def test_bad_data_is_stopped_before_it_is_learnt() -> None:
    stopped = {entry["what"]: entry for entry in demo_run().document["stopped"]}
    assert set(stopped) == {"shuffled labels", "corrupted pixels"}
    for entry in stopped.values():
        assert entry["outcome"] == "reject"
        assert "the batch was not learnt" in entry["reason"]
        assert entry["version"] is None, "nothing was learnt, so there is no version"


def test_a_person_approves_what_the_evidence_cannot_settle_and_rolls_it_back() -> None:
    document = demo_run().document
    assert document["decision"]["outcome"] == "review"
    assert "cannot settle it" in document["decision"]["reason"]
    assert document["decision"]["decision"] == "approve"
    approved = document["decision"]["version"]
    assert (document["rollback"]["from"], document["rollback"]["to"]) == (approved, 5)
    assert document["pipelines"]["digits-replay"]["champion_version"] == 5


def test_it_says_where_to_look_and_the_report_is_there() -> None:
    run = demo_run()
    report = Path(run.document["report"])
    assert str(report) in run.shown
    assert "mlflow server --backend-store-uri" in run.shown
    assert "Rejected: digits-naive" in report.read_text()
    assert run.document["seconds"] > 0


def test_no_file_of_any_role_can_be_read_by_others() -> None:
    """Databases, experiences, checkpoints, MLflow's artifacts and the log, as every role has left them."""
    home = demo_run().home
    open_to_others = {
        str(path.relative_to(home)): oct(mode)
        for path in [home, *home.rglob("*")]
        if (mode := stat.S_IMODE(path.lstat().st_mode)) & 0o077
    }
    assert open_to_others == {}
    made = {path.name for path in home.iterdir()}
    assert {"holdfast.db", "mlflow.db", "experiences", "checkpoints", "mlflow-artifacts"} <= made


def test_it_leaves_no_process_behind() -> None:
    home = str(demo_run().home)
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOLDFAST_HOME") == home:
                left.append(process.cmdline())
        except psutil.Error:
            continue
    assert left == []
