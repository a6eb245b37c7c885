"""Where two JSON documents differ."""

from service.differences import LONGEST, FieldDifference, document_differences


def test_every_field_that_differs_is_named_by_its_path() -> None:
    before = {"a": 1, "list": [{"x": 0.1}, {"x": 2}], "gone": None, "flag": True}
    after = {"a": 1.0, "list": [{"x": 0.1 + 2**-56}, {"x": 2}, {}], "new": "n", "flag": 1}
    assert document_differences(before, after) == [
        FieldDifference("list", "2 entries", "3 entries"),
        FieldDifference("list[0].x", "0.1", "0.10000000000000002"),
        FieldDifference("gone", "null", "missing"),
        FieldDifference("flag", "true", "1"),
        FieldDifference("new", "missing", '"n"'),
    ]
    assert document_differences(before, before) == []


def test_a_long_value_is_shown_by_its_beginning() -> None:
    (difference,) = document_differences("a" * 1000, "b")
    assert difference.where == ""
    assert len(difference.before) == LONGEST + len(" ...")
