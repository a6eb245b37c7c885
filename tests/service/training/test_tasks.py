"""Results on disk: written and read back, also those of earlier versions."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from service.gate.base import Column, DataEvidence, Finding, NearDuplicates, Screen
from service.training.answers import HoldoutRecords
from service.training.tasks import RESULT_FILE, Result, is_done, publish, read_result, write_result


def result() -> Result:
    groups = {"places": Column.of(np.array(["sea", "land", "sea"]))}
    return Result(
        data=DataEvidence(records=3, nonfinite_records=0),
        stopped=(),
        screens={4: Screen((64,), (0.1,), (0.6,))},
        data_findings=(Finding("values", "pass", "values: fine", numbers={"records": 3, "rate": 0.5}),),
        challenger={4: np.array([True, False, True])},
        near_duplicates={2: NearDuplicates(20, 5, 0.1)},
        records={4: HoldoutRecords(np.array([0, 1, 0], dtype=np.int64), groups)},
    )


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    assert not is_done(tmp_path)
    assert read_result(tmp_path) is None
    write_result(result(), tmp_path / RESULT_FILE)
    found = read_result(tmp_path)
    assert found is not None
    assert found.near_duplicates == result().near_duplicates
    assert found.data_findings == result().data_findings
    assert [type(number) for number in found.data_findings[0].numbers.values()] == [int, float]
    np.testing.assert_array_equal(found.challenger[4], [True, False, True])
    column = found.records[4].groups["places"]
    assert [column.values[index] for index in column.indices] == ["sea", "land", "sea"]


def test_a_result_of_an_earlier_version_is_read_with_its_former_names(tmp_path: Path) -> None:
    write_result(result(), tmp_path / RESULT_FILE)
    document = json.loads((tmp_path / RESULT_FILE).read_text())
    del document["data_findings"]
    document["twins"] = document.pop("near_duplicates")
    column = document["records"]["4"]["groups"]["places"]
    column["places"] = column.pop("indices")
    (tmp_path / RESULT_FILE).write_text(json.dumps(document))
    found = read_result(tmp_path)
    assert found is not None
    assert found.near_duplicates == {2: NearDuplicates(20, 5, 0.1)}
    assert found.data_findings == ()
    np.testing.assert_array_equal(found.records[4].groups["places"].indices, [1, 0, 1])


def test_the_folder_of_the_first_attempt_stays(tmp_path: Path) -> None:
    first, second, folder = (tmp_path / name for name in ("first", "second", "u1"))
    for scratch in (first, second):
        scratch.mkdir()
        (scratch / RESULT_FILE).write_text(scratch.name)
        publish(scratch, folder)
    assert (folder / RESULT_FILE).read_text() == "first"


def test_a_folder_without_a_result_is_moved_aside_and_the_update_goes_on(tmp_path: Path) -> None:
    (tmp_path / "u1" / "something").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / RESULT_FILE).write_text("{}")
    publish(tmp_path / "scratch", tmp_path / "u1")
    assert is_done(tmp_path / "u1")
    (aside,) = tmp_path.glob("u1.*.tmp")
    assert (aside / "something").is_dir()


def test_all_of_a_folder_is_synced_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path).as_posix())
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    (tmp_path / "scratch" / "learner").mkdir(parents=True)
    for name in (RESULT_FILE, "served.pt2", "learner/state.json"):
        (tmp_path / "scratch" / name).write_text("{}")
    publish(tmp_path / "scratch", tmp_path / "u1")
    before, after = done[: done.index("renamed")], done[done.index("renamed") + 1 :]
    names = ["scratch", *(f"scratch/{each}" for each in ("learner", "learner/state.json", RESULT_FILE))]
    assert {*names, "scratch/served.pt2"} == set(before)
    assert before[-1] == "scratch"
    assert after == ["."]
