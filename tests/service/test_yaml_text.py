"""YAML that says something twice is refused, wherever it is read."""

from pathlib import Path

import pytest
import yaml

from service.commands.pipelines import read_document
from service.errors import HoldfastError, PipelineInvalidError
from service.pipelines import parse
from service.yaml_text import read_yaml

TWICE = ["a: 1\na: 2", "x:\n  - {b: 1, 'b': 1}", "{a: 1, b: {c: 1, c: 1}}", "1: x\n1: y"]


@pytest.mark.parametrize("text", TWICE)
def test_a_repeated_key_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(yaml.YAMLError, match=r"stands twice in one mapping\s.*line"):
        read_yaml(text)
    with pytest.raises(PipelineInvalidError, match="stands twice"):
        parse(text)
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    with pytest.raises(HoldfastError, match="stands twice"):
        read_document(file)


def test_what_is_said_once_is_read() -> None:
    assert read_yaml("a: 1\nb: {a: 1}\nc: [{a: 1}, {a: 2}]") == {
        "a": 1,
        "b": {"a": 1},
        "c": [{"a": 1}, {"a": 2}],
    }
    assert read_yaml("base: &base {a: 1, b: 2}\nown:\n  <<: *base\n  a: 3")["own"] == {"a": 3, "b": 2}
    assert read_yaml("") is None


def test_a_tag_that_makes_an_object_is_refused() -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml("!!python/object/apply:os.getcwd []")


def bomb(levels: int, *, merged: bool = False) -> str:
    """Each level names the one before ten times."""
    lines = ["a0: &a0 {k0: [x, x]}" if merged else "a0: &a0 [x, x]"]
    for level in range(1, levels):
        named = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{named}]}}" if merged else f"[{named}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(10), "become more than 200,000 values"),
        (bomb(10, merged=True), "become more than 200,000 values"),
        ("a: &a x\nb: [" + "*a, " * 1_001 + "]", "more than 1,000 aliases"),
        ("a: &a [x, *a]", "inside of what it names"),
        ("a: &a {b: *a}", "inside of what it names"),
        ("[" * 5_000, "nests too deep"),
        ("{a: " * 5_000, "nests too deep"),
    ],
    ids=["lists", "merges", "many", "ring", "ring of maps", "deep lists", "deep maps"],
)
def test_a_text_that_becomes_much_more_than_it_looks_like_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(yaml.YAMLError, match=message) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(PipelineInvalidError, match=message):
        parse(text)
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    with pytest.raises(HoldfastError, match=message):
        read_document(file)


def test_aliases_in_measure_are_read() -> None:
    assert len(read_yaml("a: &a [x, y]\nb: [" + "*a, " * 1_000 + "]")["b"]) == 1_000
    assert len(read_yaml("a: [" + "x, " * 250_000 + "]")["a"]) == 250_000
