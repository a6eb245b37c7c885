"""Results on disk: written and read back, also those of earlier versions."""

import json
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


def test_a_folder_that_is_no_result_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "u1" / "something").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(OSError, match="not empty"):
        publish(tmp_path / "scratch", tmp_path / "u1")
